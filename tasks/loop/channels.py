"""Which channels may go and what they are worth, for structured pruning; and the model that they leave.

Channels are scored by the criterion; what they leave is recovered without training.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from typing import TypeVar

import torch
from torch import nn

import pruning
from pruning.containers import Inputs
from pruning.errors import TargetError
from pruning.importance import Criterion, Ranking, needs_of
from pruning.plan.masks import compose, without_blocks
from pruning.plan.plan import Plan
from pruning.recovery.basis import in_principal_components
from pruning.recovery.fold import fold
from pruning.recovery.normal_equations import MEAN_ALONE
from pruning.statistics.collect import Statistics
from tasks.config.prune_schema import Structured
from tasks.data import read_split
from tasks.loop.recovery import recalibrate, reconstruct
from tasks.loop.step_context import StepContext
from tasks.models import chosen_criterion
from tasks.passes import SamplesOf
from tasks.pretrained import fields_of
from tasks.statistics import collect

log = logging.getLogger("secateur")

Made = TypeVar("Made")

JUDGED_ON = 512  # validation samples that tell one candidate from another


class Offered:
    """The channels that may go, and what they are worth; statistics are gathered when they are first asked for.

    Attributes:
        context: Where the step starts, its model turned for the sake of its streams where they are offered.
        groups: Of its model.
        streams: Whether channels of residual streams are among them.
    """

    def __init__(self, context: StepContext, streams: bool) -> None:
        if streams and structured(context).blocks == "never":  # else all of the step begins with the turned model
            context = in_basis(context)
        self.context, self.streams = context, streams
        self.groups = pruning.find_groups(context.model, context.example, allow_mixed=streams)
        if context.settings.keeps_class:
            fields = fields_of(context.settings, context.baseline, context.example, streams=streams)
            self.groups = self.groups.with_common_sizes(fields)

    @cached_property
    def statistics(self) -> Statistics:
        """What the criteria look at."""
        seen, needs = SamplesOf("train", structured(self.context).criterion_samples), needs_of(self._criteria)
        if structured(self.context).allocation.strategy == "evolve":
            needs |= {"moments"}  # of which levels are made
        return collect(self.context.passes, self.groups, needs, seen, "statistics: batches")

    @cached_property
    def ranking(self) -> Ranking:
        """Which channels of a group go first."""
        return Ranking(self.groups, self._criteria, self.statistics)

    @property
    def _criteria(self) -> list[str | Criterion]:
        chosen = structured(self.context)
        return [chosen_criterion(name) for name in (chosen.criterion, chosen.fallback)]


def in_basis(context: StepContext) -> StepContext:
    """Turn the residual streams of a context's model into their principal components, where the settings say so.

    The turned model computes the same. Streams that can't be turned stay as they are.

    Raises:
        TargetError: None can be turned, and the settings ask for it.
    """
    chosen = structured(context)
    if not chosen.turns_streams:
        return context
    groups = pruning.find_groups(context.model, context.example, allow_mixed=True)
    samples = read_split(context.settings, context.workspace, "train").spread(chosen.criterion_samples)
    turned = in_principal_components(groups, samples, batch_size=context.settings.training.batch_size)
    refused = "; ".join(f"{name}: {why}" for name, why in turned.refused.items())
    if not turned.streams and chosen.basis == "principal_components":
        raise TargetError(
            f"no residual stream can be turned into its principal components: {refused or 'none is there'}"
        )
    if turned.streams:
        log.info("prune: streams in their principal components: %s", ", ".join(turned.streams))
    if refused:
        log.info("prune: streams that can't be turned, whose channels go as they are: %s", refused)
    return replace(context, model=turned.model, reference=turned.model) if turned.streams else context


def context_without(context: StepContext, blocks: tuple[str, ...], shallow: nn.Module | None = None) -> StepContext:
    """Return the context of a model without some blocks.

    Args:
        context: Where the attempt starts.
        blocks: Their names.
        shallow: The model without them, if it is there already.
    """
    if shallow is None:
        shallow = without_blocks(context.model, blocks, context.example)
    gone = Plan(removed={}, sizes={}, blocks=blocks)
    plan = compose(context.plan, gone, context.baseline, context.example)
    return replace(context, model=shallow, plan=plan, blocks=blocks)


_VERIFIED_ON, _BATCH = 64, 16  # samples, where verifying on the example shows nothing


def narrow_by(
    plan: Plan, offered: Offered, context: StepContext, *, whole: nn.Module | None = None, verify: bool = True
) -> nn.Module:
    """Return the model that a plan leaves: the last one narrowed, or what training is to begin with.

    Args:
        plan: Which channels go.
        offered: Among these.
        context: Where the step starts.
        whole: Its model with the context's blocks, against which their removal is verified too.
        verify: Whether anything is.
    """
    model, example = context.model, context.example
    samples = _batches(context) if verify else ()
    if context.start is None:
        if whole is not None and context.blocks:
            model, plan = whole, context.removed_blocks.then(plan)
        return pruning.narrow(model, plan, example, groups=offered.groups, samples=samples, verify=verify)
    return pruning.narrow(context.start, context.plan.then(plan), example, samples=samples, verify=verify)


def _batches(context: StepContext) -> Iterator[Inputs]:
    """Training samples, read only if verifying on the example shows nothing."""
    samples = read_split(context.settings, context.workspace, "train").spread(_VERIFIED_ON)
    yield from (batch.to(torch.device(context.settings.run.device)).inputs for batch in samples.ordered(_BATCH))


def recover(
    narrowed: nn.Module, chosen: Plan, offered: Offered, context: StepContext, num_samples: int | None = None
) -> None:
    """Recover a narrowed model in place, by the settings' method.

    Args:
        narrowed: What `chosen` leaves of the model that the groups were found on.
        chosen: Which channels are gone.
        offered: Its groups were found on the model before; the criterion's solution is folded from its statistics.
        context: Names settings and data.
        num_samples: Samples that are looked at; as the settings say, if not given.
    """
    settings = structured(context)
    method, samples = settings.recover.method, SamplesOf("train", num_samples or settings.recover.num_samples)
    if method == "recalibrate":
        recalibrate(context.passes, narrowed, samples)
    elif method == "fold":
        fold(narrowed, chosen, offered.groups, offered.statistics, chosen_criterion(settings.criterion))
    elif method in ("absorb_means", "reconstruct"):
        ridge = MEAN_ALONE if method == "absorb_means" else settings.recover.ridge
        if context.blocks:
            chosen = context.removed_blocks.then(chosen)
        reconstruct(context.passes, narrowed, context.reference, chosen, offered.groups, samples, ridge)


def structured(context: StepContext) -> Structured:
    """Return the settings of a run whose kind is structured."""
    assert isinstance(context.settings.prune, Structured), "`take_step` goes by the kind"
    return context.settings.prune
