"""Which freedom and which allocation, for structured pruning: what they leave is recovered, and judged untrained."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache, partial
from math import inf
from pathlib import Path
from typing import Any, TypeVar

from safetensors import safe_open
from safetensors.torch import save as format_safetensors
from torch import Tensor

from pruning.allocation.selection import JudgeEach, Tried, choose_by_trial
from pruning.errors import ModelError, TargetError
from pruning.io.files import replace_file
from pruning.plan.constraints import Freedom, Limits, within_first
from pruning.plan.plan import Plan
from tasks.config.schema import Settings
from tasks.fan_out import Part
from tasks.loop.allocation import Choice, choose_within_limits
from tasks.loop.channels import (
    JUDGED_ON,
    Offered,
    context_without,
    in_basis,
    narrow_by,
    recover,
    structured,
)
from tasks.loop.step_context import Sharing, StepContext, open_again
from tasks.passes import SamplesOf
from tasks.terminal import shown
from tasks.workspace import Workspace, digest

log = logging.getLogger("secateur")

Made = TypeVar("Made")


def choose_channels(context: StepContext) -> tuple[Choice, Offered, Freedom]:
    """Choose which channels go, by the criterion, and how many, by the allocation.

    Returned are the choice, what it was made from, and what it was free to do: the first of the settings' freedoms that
    lets the goal be met. Where that takes looser limits and streams may go, the first that lets streams go is tried as
    well; taken is the one whose model, recovered and not trained, has the lower loss on validation samples.

    Raises:
        TargetError: The goal can't be met.
    """
    allowed, offered = structured(context).freedoms, cache(partial(Offered, context))

    def freedoms() -> Iterator[Freedom]:
        for freedom in allowed:
            was_tried = freedom.streams and replace(freedom, streams=False) in allowed
            if not was_tried or any(group.mixed for group in offered(streams=True).groups):
                yield freedom  # in a model without residual streams the same groups were tried before

    allocation = structured(context).allocation

    def choose_within(freedom: Freedom) -> Choice:
        found, limits = offered(streams=freedom.streams), freedom.limits
        if allocation.strategy == "trial":
            return _choose_by_trial(context, found, limits)
        return choose_within_limits(context, found, limits, allocation)

    choice, freedom = within_better(
        freedoms, choose_within, lambda made, within: _loss_after(offered(streams=within.streams), made)
    )
    return choice, offered(streams=freedom.streams), freedom


def within_better(
    freedoms: Callable[[], Iterator[Freedom]],
    make: Callable[[Freedom], Made],
    loss: Callable[[Made, Freedom], float],
) -> tuple[Made, Freedom]:
    """Make something within the first freedom that lets its target be met, or the first that lets streams go.

    Args:
        freedoms: Gives them in their order, each time anew; what is not asked for is not worked out.
        make: Makes it within one of them.
        loss: What it costs; only asked where limits had to give way and streams would do as well.

    Raises:
        OutOfReachError: The target is out of reach of all.
    """
    made, freedom = within_first(freedoms(), make)
    if freedom.streams or freedom == next(freedoms()):
        return made, freedom
    with_streams = [one for one in freedoms() if one.streams]
    if with_streams:
        with suppress(TargetError):  # then the limits are what has to give way
            other, way = within_first(with_streams, make)
            losses = loss(made, freedom), loss(other, way)
            log.info(
                "prune: loss on validation samples before training, within %s: %.6g; within %s: %.6g",
                *(freedom, losses[0], way, losses[1]),
            )
            if losses[1] < losses[0]:
                return other, way
    return made, freedom


def _loss_after(offered: Offered, choice: Choice) -> float:
    """Return the mean loss on validation samples of what a choice leaves, recovered, not trained; infinite without."""
    try:
        num_samples = structured(offered.context).recover.num_samples
        return float(_losses_after(offered, num_samples, JUDGED_ON, choice.plan).double().mean())
    except ModelError:
        return inf


def _choose_by_trial(context: StepContext, offered: Offered, limits: Limits) -> Choice:
    """Choose within some limits by several allocations, and take the first that can't be told from the best.

    Each is narrowed and recovered, and judged by its loss on validation samples without training; at first after a
    recovery that looks at a quarter of the samples.

    Raises:
        TargetError: The goal can't be met by any of them, or none leaves a model that can be judged.
    """
    choices: dict[str, Choice] = {}
    refused: dict[str, TargetError] = {}
    for name, allocation in structured(context).allocation.candidates_tried().items():
        try:
            choices[name] = choose_within_limits(context, offered, limits, allocation)
        except TargetError as fault:
            refused[name] = fault
    if not choices:
        raise next(iter(refused.values()))
    num_samples = structured(context).recover.num_samples
    judges = [_Judge(offered, max(2, num_samples // 4), JUDGED_ON), _Judge(offered, num_samples, 4 * JUDGED_ON)]
    with shown("trial: allocations") as progress:
        plans = {name: choice.plan for name, choice in choices.items()}
        tried = choose_by_trial(plans, judges, ahead=_judge_ahead, progress=progress)
    chosen = next(one.name for one in tried if one.chosen)
    faults = (Tried(name=name, fault=str(fault)) for name, fault in refused.items())
    return replace(choices[chosen], tried=(*tried, *faults))


def _losses_after(offered: Offered, num_samples: int, num_judged: int, plan: Plan) -> Tensor:
    """Return the loss of each of some validation samples in the model that a plan leaves, recovered, not trained."""
    context = offered.context
    model = narrow_by(plan, offered, context, verify=False)
    recover(model, plan, offered, context, num_samples)
    losses = context.passes.evaluate(model, SamplesOf("validation", num_judged), each=True).losses
    assert losses is not None, "it was asked for"
    return losses


@dataclass(frozen=True)
class _Judge:
    """Judges plans by the losses of what they leave; here, or reads what other processes have found.

    Attributes:
        offered: The plans are of its groups.
        num_samples: That a recovery looks at.
        num_judged: Validation samples.
    """

    offered: Offered
    num_samples: int
    num_judged: int

    def __call__(self, plan: Plan) -> Tensor:
        """Return the loss of each sample.

        Raises:
            ModelError: What the plan leaves can't be judged.
        """
        sharing = self.offered.context.sharing
        if sharing is None:
            return _losses_after(self.offered, self.num_samples, self.num_judged, plan)
        return _read_losses(self._part(plan, sharing).files[0])

    def ahead(self, plans: Sequence[Plan]) -> None:
        """Have plans judged side by side, where the settings ask for that."""
        context = self.offered.context
        if context.sharing is not None:
            parts = [self._part(plan, context.sharing) for plan in plans]
            context.sharing.compute(parts, context.settings, context.workspace)

    def _part(self, plan: Plan, sharing: Sharing) -> Part:
        context = self.offered.context
        arguments: dict[str, Any] = {
            "attempt": sharing.attempt,
            "offered": [self.offered.streams, context.start is None, *context.blocks],
            "plan": plan.model_dump(mode="json"),
            "samples": [self.num_samples, self.num_judged],
        }
        name = f"allocation-{digest(arguments)[:16]}"
        return Part(name, "tasks.loop.trial:judge_part", arguments, (sharing.place / f"{name}.safetensors",))


def _judge_ahead(judge: JudgeEach, plans: Sequence[Plan]) -> None:
    assert isinstance(judge, _Judge), "there are no others"
    judge.ahead(plans)


def _read_losses(path: Path) -> Tensor:
    with safe_open(path, framework="pt") as file:
        fault = file.metadata().get("fault")
        if fault is not None:
            raise ModelError(fault)
        losses: Tensor = file.get_tensor("losses")
    return losses


def judge_part(
    settings: Settings,
    workspace: Workspace,
    files: Sequence[Path],
    attempt: Mapping[str, Any],
    offered: Sequence[Any],
    plan: Mapping[str, Any],
    samples: tuple[int, int],
) -> None:
    """Judge one plan while its attempt is under way, and write the losses: a part for `tasks.fan_out`.

    Args:
        settings: Of the run.
        workspace: Of the run.
        files: The one to write.
        attempt: Which, see `tasks.loop.step_context.Sharing`.
        offered: Whether channels of residual streams may go; whether the weights are those of the last accepted model,
            whatever training begins with; the names of the blocks that are gone before.
        plan: Which channels go, as JSON.
        samples: How many the recovery looks at, and how many validation samples it is judged on.
    """
    asked = (files[0].parent, attempt["number"], *offered)
    if asked not in _offered:
        _offered.clear()
        streams, learned, *blocks = offered
        context = open_again(settings, workspace, attempt)
        if structured(context).blocks != "never":
            context = in_basis(context)
        if learned:
            context = replace(context, start=None)
        if blocks:
            context = context_without(context, tuple(blocks))
        _offered[asked] = Offered(context, streams)
    state, metadata = {}, {}
    try:
        losses = _losses_after(_offered[asked], *samples, Plan.model_validate(plan))
        state["losses"] = losses.cpu().contiguous()
    except ModelError as fault:
        metadata["fault"] = str(fault)
    replace_file(files[0], format_safetensors(state, metadata={**metadata, "kind": "losses"}))


_offered: dict[tuple[Any, ...], Offered] = {}
"""At most one: what this process has loaded for the plans that it is given."""
