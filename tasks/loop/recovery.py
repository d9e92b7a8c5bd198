"""Recovery of a narrowed model without training, by the ranks of the loop together."""

from __future__ import annotations

from torch import nn

from pruning.batches import Batches
from pruning.evaluation import Progress
from pruning.graph.groups import Groups
from pruning.plan.plan import Plan
from pruning.recovery import calibrate
from pruning.recovery import reconstruct as subject
from pruning.recovery.least_squares import Refit
from pruning.world import World
from tasks.config.schema import Settings
from tasks.passes import Passes, SamplesOf

_BATCH = 64


def recalibrate(passes: Passes, model: nn.Module, samples: SamplesOf) -> None:
    """Recompute the statistics of a model's batch norms, in place; see `pruning.recovery.calibrate.recalibrate`."""
    passes.share(_recalibrate, (model,), samples, passes.settings.training.batch_size, changed=model)


def _recalibrate(
    world: World, _progress: Progress | None, settings: Settings, samples: Batches, model: nn.Module
) -> None:
    batch_size = settings.training.batch_size
    calibrate.recalibrate(model, samples, num_samples=len(samples), batch_size=batch_size, world=world)


def reconstruct(
    passes: Passes,
    dense: nn.Module,
    reference: nn.Module,
    plan: Plan,
    groups: Groups,
    samples: SamplesOf,
    ridge: float,
) -> tuple[Refit, ...]:
    """Refit the layers of a narrowed model, in place; see `pruning.recovery.reconstruct.reconstruct`.

    Args:
        passes: Of the loop.
        dense: The narrowed model.
        reference: The model that it was narrowed from.
        plan: What was removed.
        groups: Of the reference, or of it without the blocks that the plan removes.
        samples: Whose inputs are looked at.
        ridge: Least strength of the pull to the old weights.
    """
    given = (dense, reference, plan, groups, ridge)
    return passes.share(_reconstruct, given, samples, _BATCH, title="reconstruction: layers", changed=dense)


def _reconstruct(
    world: World,
    progress: Progress | None,
    _settings: Settings,
    samples: Batches,
    dense: nn.Module,
    reference: nn.Module,
    plan: Plan,
    groups: Groups,
    ridge: float,
) -> tuple[Refit, ...]:
    return subject.reconstruct(
        dense, reference, plan, groups, samples, ridge=ridge, batch_size=_BATCH, progress=progress, world=world
    )
