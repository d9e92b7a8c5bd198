"""The kinds of pruning: how each takes a step towards a goal, and what the training that follows has to keep.

Removed are whole channels and blocks (structured), single weights (unstructured), all but N of every M weights (n_m),
or for each input other channels, chosen by gates (dynamic).
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import takewhile
from math import floor
from pathlib import Path
from typing import Any, cast

from torch import nn

import pruning
from pruning.allocation.depth import choose_depth, score_blocks
from pruning.allocation.selection import Tried
from pruning.dynamic.gates import GatedModel, GateTraining, add_gates, calibrate_gates
from pruning.errors import ModelError, TargetError
from pruning.plan.blocks import Block, Blocks
from pruning.plan.constraints import parameters_in
from pruning.plan.masks import without_blocks
from pruning.plan.plan import Cost, Plan
from pruning.unstructured.criteria import WeightCriterion
from pruning.unstructured.masks import (
    WeightMasks,
    WeightScope,
    choose_n_of_m,
    choose_weights,
    enforce_masks,
    sparsity_of,
    zero_weights,
)
from pruning.world import World
from tasks.config.prune_schema import Dynamic, NOfM, Unstructured
from tasks.config.target_schema import Kind
from tasks.data import read_description, read_inputs, read_split
from tasks.loop.channels import JUDGED_ON, context_without, in_basis, narrow_by, recover, structured
from tasks.loop.measurements import latency_cost
from tasks.loop.step_context import StepContext
from tasks.loop.targets import LATENCY
from tasks.loop.trial import choose_channels
from tasks.models import chosen_criterion, example_inputs, load_model, loss_and_metric, sparsity_training
from tasks.passes import SamplesOf
from tasks.training import Hooks, Job

log = logging.getLogger("secateur")


@dataclass(frozen=True)
class Step:
    """A step taken, before training.

    Attributes:
        model: The result.
        plan: Which channels of the last model are gone, and which blocks.
        hooks: Take part while a copy of `model` is trained: removed parts stay removed.
        reached: Its reduction; None if that has to be measured.
        unrounded: Channels that each group would have kept, had its count not been rounded; None where none was.
        relaxed: What was allowed, if the goal is out of reach within the first limits.
        streams: The residual streams that lose channels, by the names of their groups.
        tried: What came of each allocation, where several were tried.
        whole_plan: From the factory's model to `model`, where that is known; else it follows from `plan`.
    """

    model: nn.Module
    plan: Plan
    hooks: Hooks
    reached: float | None = None
    unrounded: Mapping[str, int] | None = None
    relaxed: str | None = None
    streams: tuple[str, ...] = ()
    tried: tuple[Tried, ...] = ()
    whole_plan: Plan | None = None


def narrow(context: StepContext) -> Step:
    """Remove channels for good, blocks before them where they may go; recover what can be recovered without training.

    Raises:
        TargetError: The goal can't be met.
    """
    if structured(context).blocks == "never":
        return _narrow_channels(context)
    context = in_basis(context)
    settings, example = context.settings, context.example
    loss, _ = loss_and_metric(settings)
    judged_on = SamplesOf("validation", JUDGED_ON)
    batch_size = settings.training.batch_size
    unlearned = replace(context, start=None)  # fresh weights would say nothing of what a block is worth

    def attempt(shallow: nn.Module, gone: tuple[str, ...]) -> tuple[Step, float]:
        step = _narrow_channels(unlearned, shallow, gone)
        try:
            return step, context.passes.evaluate(step.model, judged_on).loss
        except ModelError as fault:  # without training; another number of blocks may do
            raise TargetError(str(fault)) from fault

    found = choose_depth(
        context.model,
        example,
        attempt,
        partial(
            score_blocks,
            samples=judged_on.read(settings, context.workspace),
            measure=structured(context).block_measure,
            loss=loss,
            batch_size=batch_size,
        ),
        saved=partial(_saved, context),
        may_go=partial(_may_go, parameters_in(context.model, settings.prune.ignore, "ignore")),
        enough=lambda step: not any(step.plan.removed.values()),
        watch=lambda depth: log.info("prune: %s", depth),
    )
    if context.start is None:
        assert found.made is not None, "`choose_depth` raises otherwise"
        return found.made
    shallow = without_blocks(context.model, found.blocks, example)
    return _narrow_channels(context, shallow, found.blocks)


def _may_go(ignored: Mapping[str, str], block: Block) -> bool:
    return ignored.keys().isdisjoint(block.parameters)


def _saved(context: StepContext, blocks: Blocks) -> dict[str, float]:
    """What goes with each block, as the largest of its shares of what the targets count in the baseline."""
    baseline, latency = context.ledger.baseline, None
    if any(kind in LATENCY for kind in context.reductions):
        latency = latency_cost(context.workspace, pruning.find_groups(blocks.model, context.example))

    def share(block: Block, kind: str) -> float:
        if kind == "mac_reduction":
            return block.macs / baseline.macs
        tensors = [blocks.model.get_parameter(name) for name in block.parameters]
        if kind == "parameter_reduction":
            return sum(tensor.numel() for tensor in tensors) / baseline.parameters
        if kind == "size_bytes":
            return sum(tensor.nbytes for tensor in tensors) / baseline.size_bytes
        assert latency is not None, "the loop was opened with a profile"
        return latency.of_layers(block.parameters) / latency.profile.whole_ms

    return {name: max(share(block, kind) for kind in context.reductions) for name, block in blocks.items()}


def _narrow_channels(context: StepContext, shallow: nn.Module | None = None, blocks: tuple[str, ...] = ()) -> Step:
    """Narrow the model of a context, without some blocks, and recover it.

    Args:
        context: Where the attempt starts.
        shallow: Its model without the blocks.
        blocks: Their names.

    Raises:
        TargetError: The goal can't be met.
    """
    model = context.model
    gone = Plan(removed={}, sizes={}, blocks=blocks)
    if shallow is not None:
        context = context_without(context, blocks, shallow)
    choice, offered, freedom = choose_channels(context)
    context = offered.context
    chosen, groups = gone.then(choice.plan) if blocks else choice.plan, offered.groups
    narrowed = narrow_by(choice.plan, offered, context, whole=model)
    recover(narrowed, choice.plan, offered, context)

    relaxed = None if freedom == structured(context).freedoms[0] else str(freedom)
    streams = tuple(name for name in chosen.removed if groups[name].mixed)
    return Step(
        narrowed,
        chosen,
        bring_sparsity,
        unrounded=choice.unrounded,
        relaxed=relaxed,
        streams=streams,
        tried=choice.tried,
    )


@contextmanager
def bring_sparsity(model: nn.Module, job: Job, _world: World) -> Iterator[dict[str, Any]]:
    """Bring about the sparsity that the recipe names, if any."""
    settings = job.settings
    example = example_inputs(job.workspace, settings)
    sparsity = sparsity_training(job.recipe, model, example, settings.prune.ignore)
    yield {"after_step": sparsity, "memory": sparsity}


def loaded_step(context: StepContext, folder: Path) -> Step:
    """Return a step that another process has taken, before training.

    Args:
        context: Where the step started.
        folder: The narrowed model's checkpoint. Of the other kinds there is none: their steps, which cost little
            beside training, are taken again.
    """
    if context.settings.prune.kind != "structured":
        return take_step(context)
    data = read_description(context.workspace)
    model, plan, _ = load_model(folder, context.settings, data, context.example)
    return Step(model, Plan(removed={}, sizes={}), bring_sparsity, whole_plan=plan)


def zero_share(context: StepContext) -> Step:
    """Zero the share of single weights that is the goal.

    Raises:
        TargetError: The goal can't be met.
    """
    chosen = context.settings.prune
    assert isinstance(chosen, Unstructured), "`take_step` goes by the kind"
    scope = WeightScope(chosen.weights.scope, chosen.weights.max_layer_sparsity)
    return _without_weights(context, partial(choose_weights, scope=scope, weight_sparsity=context.goal))


def zero_all_but_n_of_m(context: StepContext) -> Step:
    """Go to the pattern of the target's M that is nearest to the goal, and at least one weight beyond the last.

    Raises:
        TargetError: What failed since the last accepted pattern is the next one, or M doesn't divide a layer.
    """
    target, ledger = context.settings.prune.target, context.ledger
    assert target.pattern is not None, "the settings see to it"
    of = target.pattern.of
    before = round(ledger.accepted[-1].reached * of) if ledger.accepted else 0
    since = list(takewhile(lambda row: not row.accepted, reversed(ledger.rows)))
    failed = min((round(row.reached * of) for row in since if row.measured), default=of)
    num_gone = min(max(floor(context.goal * of + 0.5), before + 1), failed - 1)
    if num_gone <= before:
        raise TargetError(
            f"no pattern of {of} lies between {of - before}:{of}, which is reached, and {of - failed}:{of}, "
            "which failed"
        )
    return _without_weights(context, partial(choose_n_of_m, num_kept=of - num_gone, of=of))


def _without_weights(context: StepContext, choose: Callable[..., WeightMasks]) -> Step:
    settings, chosen = context.settings, context.settings.prune
    assert isinstance(chosen, Unstructured | NOfM), "`take_step` goes by the kind"
    groups = pruning.find_groups(context.model, context.example)
    masks = choose(
        groups,
        criterion=cast(str | WeightCriterion, chosen_criterion(chosen.criterion)),
        ignore=chosen.ignore,
        samples=read_split(context.settings, context.workspace, "train").spread(chosen.criterion_samples),
        loss=loss_and_metric(settings)[0],
        seed=settings.run.seed,
    )
    model = copy.deepcopy(context.model if context.start is None else context.start)
    zero_weights(model, masks)

    return Step(model, Plan(removed={}, sizes={}), partial(keep_zeros, masks=masks), sparsity_of(masks))


@contextmanager
def keep_zeros(model: nn.Module, _job: Job, _world: World, *, masks: WeightMasks) -> Iterator[dict[str, Any]]:
    """Keep the weights that masks take away at zero."""
    with enforce_masks(model, masks):
        yield {}


def gate_channels(context: StepContext) -> Step:
    """Put gates on the groups, or continue with existing gates, and train them to the goal.

    Raises:
        ModelError: No group can have a gate.
    """
    chosen, gated = context.settings.prune, context.model
    assert isinstance(chosen, Dynamic), "`take_step` goes by the kind"
    if not isinstance(gated, GatedModel):
        gated, _ = add_gates(pruning.find_groups(context.model, context.example), ignore=chosen.ignore)
    macs = (1 - context.goal) * context.ledger.baseline.macs
    return Step(gated, Plan(removed={}, sizes={}), partial(train_gates, macs=macs))


@contextmanager
def train_gates(model: nn.Module, job: Job, _world: World, *, macs: float) -> Iterator[dict[str, Any]]:
    """Train gates towards a number of MACs, and set them to it when training has ended."""
    settings = job.settings
    chosen = settings.prune
    assert isinstance(model, GatedModel)
    assert isinstance(chosen, Dynamic), "it is trained by such settings"
    cost = Cost(pruning.find_groups(model.model, example_inputs(job.workspace, settings)))
    training = GateTraining(model, cost, macs, weight=chosen.gates.weight, ramp=chosen.gates.ramp)
    yield {"penalty": training.penalty, "after_step": training.after_step, "memory": training}
    inputs = read_inputs(settings, job.workspace, "validation")
    calibrate_gates(model, cost, inputs, macs, batch_size=settings.training.batch_size)


_KINDS: dict[Kind, Callable[[StepContext], Step]] = {
    "structured": narrow,
    "unstructured": zero_share,
    "n_m": zero_all_but_n_of_m,
    "dynamic": gate_channels,
}


def take_step(context: StepContext) -> Step:
    """Take a step of the kind that the settings name.

    Raises:
        TargetError: The goal can't be met.
    """
    return _KINDS[context.settings.prune.kind](context)
