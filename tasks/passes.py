"""Passes over samples that ranks share: evaluation here, statistics in `tasks.statistics`, `tasks.loop.recovery`.

    small, or nobody to share it with ──► computed here
    else: models and groups are sent ───► each rank reads and runs its share ──► the answer is here

The answer has the same bytes either way: it depends on `run.shards`, not on who computes which. Whatever becomes of the
other ranks, the pass is computed: here, if one of them is lost.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from pruning.batches import Batch, Batches
from pruning.containers import Inputs, as_call
from pruning.evaluation import Evaluation, Progress, device_of, evaluate_together, restored_modes
from pruning.plan.verification import difference_on
from pruning.world import World
from tasks.config.schema import Settings
from tasks.data import read_inputs, read_split, task_of
from tasks.data_sets import Split
from tasks.determinism import begin
from tasks.models import ModelMetrics, loss_and_metric, own_evaluation, score, with_costs
from tasks.rank_group import LostRankError, agree, group
from tasks.terminal import shown
from tasks.workspace import Workspace

_FEWEST = 2  # batches for each rank: sharing costs some tenths of a second

T = TypeVar("T")

log = logging.getLogger("secateur")


@dataclass(frozen=True)
class SamplesOf:
    """Some samples of a split, which every rank reads by itself.

    Attributes:
        split: Its name.
        count: How many, spread evenly; all of them if None.
        targets: Of all of the split, in place of its own.
        has_targets: Whether any are needed.
    """

    split: Split
    count: int | None = None
    targets: Any = None
    has_targets: bool = True

    def read(self, settings: Settings, workspace: Workspace) -> Batches:
        """Return them."""
        if self.targets is None and self.has_targets:
            found = read_split(settings, workspace, self.split)
        else:
            found = read_inputs(settings, workspace, self.split)
            found = found if self.targets is None else found.with_targets(self.targets)
        return found if self.count is None else found.spread(self.count)


@dataclass(frozen=True)
class Passes:
    """The passes of a stage.

    Attributes:
        stage: Its name.
        settings: Of the run.
        workspace: Of the run.
    """

    stage: str
    settings: Settings
    workspace: Workspace

    def evaluate(self, model: nn.Module, samples: SamplesOf, *, each: bool = False) -> Evaluation:
        """Evaluate a model by the task's loss and metric, batch by batch; see `pruning.evaluation.evaluate`."""
        return self.share(_evaluate, (model, each), samples, self.settings.training.batch_size)

    def score(self, model: nn.Module, samples: SamplesOf) -> Evaluation:
        """Evaluate a model: by the task's own `evaluate` where it has one, which runs here alone."""
        if own_evaluation(task_of(self.settings)) is None:
            return self.evaluate(model, samples)
        return score(model, samples.read(self.settings, self.workspace), self.settings)

    def measure(self, model: nn.Module, samples: SamplesOf, example: Inputs) -> tuple[ModelMetrics, Evaluation]:
        """Evaluate a model and count its costs; see `tasks.models.measure_whole`."""
        found = self.score(model, samples)
        read = samples.read(self.settings, self.workspace)
        return with_costs(found, model, read, self.settings, example), found

    def difference(self, expected: nn.Module, found: nn.Module, samples: SamplesOf) -> float:
        """Return how far two models are from each other on any batch; see `pruning.plan.verification.difference_on`."""
        return self.share(_difference, (expected, found), samples, self.settings.training.batch_size)

    def answers(self, model: nn.Module, samples: SamplesOf) -> list[Any]:
        """Return what stands for the targets of each batch, by the task's `answers`, on the CPU."""
        return self.share(_answers, (model,), samples, self.settings.training.batch_size)

    def share(
        self,
        work: Callable[..., T],
        arguments: tuple[Any, ...],
        samples: SamplesOf,
        batch_size: int,
        *,
        title: str = "",
        changed: nn.Module | None = None,
    ) -> T:
        """Do a pass, with the other ranks where that pays.

        Args:
            work: (world, progress, settings, samples, *arguments) -> what comes of it: a function of a module.
            arguments: Sent to the others.
            samples: What is passed.
            batch_size: Samples per forward pass.
            title: Of the bar that shows how far it has got; none if it is empty.
            changed: The model that the pass changes.
        """
        shards = self.settings.run.shards
        read = samples.read(self.settings, self.workspace)
        with shown(title or "samples") as shows:
            progress = shows if title else None
            fits = 1 < group.ranks <= shards and self.settings.run.device == "cpu"
            if fits and _FEWEST * group.ranks <= -(-len(read) // batch_size) and group.is_ready:
                before = {} if changed is None else _copy(changed)
                try:
                    given = (work, self, samples, arguments)
                    found: T = group.lead(_as_rank, given, shards=shards, device="cpu", progress=progress)
                    return found
                except TypeError as fault:
                    log.info("%s: computed in this process alone, since it can't be sent: %s", self.stage, fault)
                except LostRankError as fault:
                    reason = group.why_lost() or str(fault)
                    log.warning("%s: %s; what it had a share in is computed in this process", self.stage, reason)
                    if changed is not None:
                        changed.load_state_dict(before)
            return work(World(shards), progress, self.settings, read, *arguments)


def _copy(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def _as_rank(
    world: World,
    progress: Progress | None,
    work: Callable[..., T],
    passes: Passes,
    samples: SamplesOf,
    arguments: tuple[Any, ...],
) -> T:
    """Do a pass as one of the ranks.

    Raises:
        LaunchError: They aren't alike; in all of them, with the same text.
        LostRankError: A model came to one as another one.
    """
    settings = passes.settings
    if not world.is_first:
        begin(settings)
    agree(world, passes.stage, settings, passes.workspace)
    hashes = world.gather(_hash([one for one in arguments if isinstance(one, nn.Module)]))
    if len(set(hashes)) > 1:
        raise LostRankError("a model that was sent to the other ranks arrived with other weights")
    return work(world, progress, settings, samples.read(settings, passes.workspace), *arguments)


def _hash(models: Collection[nn.Module]) -> str:
    found = sha256()
    for model in models:
        for name, tensor in model.state_dict().items():
            found.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
            found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def _evaluate(
    world: World, _progress: Progress | None, settings: Settings, samples: Batches, model: nn.Module, each: bool
) -> Evaluation:
    task, metric = loss_and_metric(settings)
    batch_size = settings.training.batch_size
    return evaluate_together(world, model, samples, loss=task, metric=metric, batch_size=batch_size, each=each)


def _difference(
    world: World,
    _progress: Progress | None,
    settings: Settings,
    samples: Batches,
    expected: nn.Module,
    found: nn.Module,
) -> float:
    device = device_of(found)

    def look(_number: int, batch: Batch) -> float:
        return difference_on(expected, found, batch.to(device).inputs)

    return max(world.take_turns(_slices(samples, settings), samples.read, look), default=0.0)


@torch.no_grad()
def _answers(
    world: World, _progress: Progress | None, settings: Settings, samples: Batches, model: nn.Module
) -> list[Any]:
    task, device = task_of(settings), device_of(model)

    def look(_number: int, batch: Batch) -> Any:
        args, kwargs = as_call(batch.to(device).inputs)
        return task.answers(model(*args, **kwargs)).cpu()

    with restored_modes(model):
        model.eval()
        return list(world.take_turns(_slices(samples, settings), samples.read, look))


def _slices(samples: Batches, settings: Settings) -> list[slice]:
    size = settings.training.batch_size
    return [slice(start, start + size) for start in range(0, len(samples), size)]
