"""What criteria look at, gathered from samples by the ranks of a stage together."""

from __future__ import annotations

from collections.abc import Collection

from pruning.batches import Batches
from pruning.evaluation import Progress
from pruning.graph.groups import Groups
from pruning.statistics import collect as subject
from pruning.statistics.collect import Statistics
from pruning.world import World
from tasks.config.schema import Settings
from tasks.models import loss_and_metric
from tasks.passes import Passes, SamplesOf

_BATCH = 64


def collect(passes: Passes, groups: Groups, needs: Collection[str], samples: SamplesOf, title: str) -> Statistics:
    """Gather what criteria need; see `pruning.statistics.collect.collect`.

    Args:
        passes: Of the stage.
        groups: Of the model to be scored.
        needs: What is asked for.
        samples: What it is gathered on, if anything but weights is.
        title: Of the progress bar.
    """
    if not set(needs) - {"weights"}:
        return subject.collect(groups, needs)
    return passes.share(_collect, (groups, sorted(needs)), samples, _BATCH, title=title)


def _collect(
    world: World,
    progress: Progress | None,
    settings: Settings,
    samples: Batches,
    groups: Groups,
    needs: Collection[str],
) -> Statistics:
    loss, _ = loss_and_metric(settings)
    seed = settings.run.seed
    return subject.collect(groups, needs, samples, loss, batch_size=_BATCH, seed=seed, progress=progress, world=world)
