"""Passes over samples that ranks share: evaluation here, statistics in `tasks.statistics`, `tasks.loop.recovery`.

    small, or nobody to share it with ──► computed here
    else: models and groups are sent ───► each rank reads and runs its share ──► the answer is here

The answer has the same bytes either way: it depends on `run.shards`, not on who computes which. Whatever becomes of the
other ranks, the pass is computed: here, if one of them is lost, or if a model isn't there what it is here.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from pruning.batches import Batch, Batches
from pruning.containers import Inputs, as_call, find_tensors, take, with_tensors
from pruning.errors import LaunchError
from pruning.evaluation import Evaluation, Progress, device_of, evaluate_together, restored_modes
from pruning.graph.contexts import seeded
from pruning.graph.groups import Groups
from pruning.graph.module_copy import copy_whole
from pruning.plan.verification import difference_on
from pruning.world import World
from tasks.config.schema import Settings
from tasks.data import read_description, read_inputs, read_split, task_of
from tasks.data_sets import Split
from tasks.determinism import begin
from tasks.models import ModelMetrics, loss_and_metric, make_factory, own_evaluation, score, with_costs
from tasks.rank_group import CantBeSentError, LostRankError, agree, group
from tasks.terminal import shown
from tasks.workspace import Workspace

_FEWEST = 2  # batches for each rank: sharing costs some tenths of a second
_FEW = 2  # samples that models are compared by

T = TypeVar("T")

log = logging.getLogger("secateur")


class _UnlikeModelError(LaunchError):
    """A model can't be passed by several ranks to the bytes of one."""


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
                except CantBeSentError as fault:
                    log.info("%s: computed in this process alone, since it can't be sent: %s", self.stage, fault)
                except _UnlikeModelError as fault:
                    log.warning("%s: computed in this process alone: %s", self.stage, fault)
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
        _UnlikeModelError: A model isn't the same in all, or from call to call; likewise.
    """
    settings = passes.settings
    if not world.is_first:
        _call_factory(settings, passes.workspace)
        begin(settings)
    agree(world, passes.stage, settings, passes.workspace)
    read = samples.read(settings, passes.workspace)
    _check_models(world, arguments, read)
    return work(world, progress, settings, read, *arguments)


_called: set[str] = set()


def _call_factory(settings: Settings, workspace: Workspace) -> None:
    """Make a model once, in a process that is only sent some: what the factory sets outside of it is set here too."""
    if settings.model.factory is not None and (known := settings.model.model_dump_json()) not in _called:
        make_factory(settings, read_description(workspace))()
        _called.add(known)


def _check_models(world: World, arguments: Collection[Any], samples: Batches) -> None:
    """See that all ranks have the same models, which answer the same again: by their first two samples.

    Raises:
        _UnlikeModelError: They haven't; in all of them, with the same text.
    """
    models = {id(m): m for m in (one.model if isinstance(one, Groups) else one for one in arguments)}
    inputs = next(iter(samples.read([slice(0, _FEW)]))).inputs
    found = [_look_at(model, take(inputs, slice(_FEW))) for model in models.values() if isinstance(model, nn.Module)]
    for looks in zip(*world.gather(found), strict=True):
        if len({one.state for one in looks}) > 1:
            raise _UnlikeModelError("a model that was sent to the other ranks arrived with other weights")
        if reason := next((one.reason for one in looks if one.reason), ""):
            raise _UnlikeModelError(reason)
        if len({one.answers for one in looks}) > 1:
            raise _UnlikeModelError(
                "a model that was sent to the other ranks answers otherwise there: its pickled state leaves out "
                "something that it needs, or it reads a variable outside of itself"
            )


@dataclass(frozen=True)
class _Look:
    """Hashes of a model's state and of its answers, and why ranks can't share it; "" if nothing is against that."""

    state: str
    answers: str
    reason: str


def _look_at(model: nn.Module, inputs: Inputs) -> _Look:
    """Run a copy of a model twice."""
    state = _hash(model.state_dict())
    try:
        with seeded(), torch.no_grad():
            copy = copy_whole(model).eval()
            first, second = (_hash(_answer(copy, inputs)) for _ in range(2))
    except Exception as fault:  # noqa: BLE001 - of the user's code, which is met again where the model itself is run
        return _Look(state, "", f"a copy of the model raises {type(fault).__name__}: {fault}")
    if first == second and state == _hash(copy.state_dict()):
        return _Look(state, first, "")
    return _Look(
        state,
        first,
        "the model answers otherwise when it is given the same samples again, or changes its buffers as it runs, in "
        "eval mode: its answers would depend on how many ranks there are",
    )


def _answer(model: nn.Module, inputs: Inputs) -> dict[str, Tensor]:
    args, kwargs = as_call(with_tensors(inputs, Tensor.clone))
    found = find_tensors(model(*args, **kwargs), by_value=True)
    return {str(number): tensor for number, tensor in enumerate(found)}


def _hash(tensors: Mapping[str, Any]) -> str:
    found = sha256()
    for name, tensor in tensors.items():
        found.update(f"{name} ".encode())
        if isinstance(tensor, Tensor):
            found.update(f"{tensor.dtype} {list(tensor.shape)}".encode())
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
