"""The kinds of pruning: how each takes a step towards a goal, and what the training that follows has to keep.

Removed are whole channels (structured), single weights (unstructured), all but N of every M weights (n_m), or for each
input other channels, chosen by gates (dynamic).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from math import floor
from typing import cast

import torch
from torch import Tensor, nn

import pruning
from pruning.allocation.budget import Budget, BudgetSolver, Measure, joined
from pruning.allocation.hardware_widths import find_kernel_widths, plan_for_latency, rounded
from pruning.allocation.knapsack import allocate, search
from pruning.allocation.selection import Scope, choose, free_groups
from pruning.dynamic.gates import GatedModel, GateTraining, add_gates, calibrate_gates
from pruning.errors import TargetError
from pruning.evaluation import evaluate
from pruning.graph.groups import Groups
from pruning.importance import Ranking, needs_of
from pruning.latency.profile import LatencyCost
from pruning.plan.constraints import Limits, find_tied_groups, within_first
from pruning.plan.plan import Cost, Plan
from pruning.recovery.batch_norm import recalibrate
from pruning.recovery.fold import fold
from pruning.recovery.least_squares import MEAN_ALONE
from pruning.recovery.reconstruct import reconstruct
from pruning.statistics.collect import Statistics, collect
from pruning.training.recipe import Recipe
from pruning.unstructured.criteria import WeightCriterion
from pruning.unstructured.masks import WeightMasks, enforce_masks, sparsity_of, zero_weights
from pruning.unstructured.select import WeightScope, choose_n_of_m, choose_weights
from tasks.config.prune_schema import Dynamic, NOfM, Structured, Unstructured
from tasks.config.schema import Settings
from tasks.config.target_schema import Kind
from tasks.data import read_inputs, read_split, spread
from tasks.loop.ledger import Ledger
from tasks.loop.measurements import latency_cost, read_curves
from tasks.loop.targets import LATENCY
from tasks.models import chosen_criterion, loss_and_metric, sparsity_training
from tasks.terminal import shown
from tasks.workspace import Workspace

__all__ = ["Step", "StepContext", "take_step"]

Train = Callable[..., None]
"""(model, **hooks): fine-tune it by the recipe at hand; hooks are fields of `pruning.training.trainer.Callbacks`."""


@dataclass(frozen=True)
class StepContext:
    """Where an attempt starts.

    Attributes:
        settings: Of the run.
        workspace: Data and curves lie in it.
        ledger: What came before.
        goal: The reduction to reach, against the baseline.
        reductions: The same for each kind of target.
        model: The last accepted one, or one of the original's shape where channels may come back; it is left as it is.
        plan: From the original to it.
        example: One sample [1, ...].
        reference: A model of the shape of `model` whose layers' outputs are to be kept: itself, or the baseline if
            channels may come back that weren't trained in the meantime.
        start: A model of the original shape whose weights the next training begins with; None keeps the present ones.
    """

    settings: Settings
    workspace: Workspace
    ledger: Ledger
    goal: float
    reductions: Mapping[str, float]
    model: nn.Module
    plan: Plan
    example: Tensor
    reference: nn.Module
    start: nn.Module | None = None


@dataclass(frozen=True)
class Step:
    """A step taken, before training.

    Attributes:
        model: The result.
        plan: Which channels of the last model are gone.
        train: Trains a copy of `model` by a recipe, keeping removed parts removed.
        reached: Its reduction; None if that has to be measured.
        unrounded: Channels that each group would have kept, had its count not been rounded; None where none was.
        relaxed: The limits that were taken, if the goal is out of reach within the first ones.
    """

    model: nn.Module
    plan: Plan
    train: Callable[[nn.Module, Recipe, Train], None]
    reached: float | None = None
    unrounded: Mapping[str, int] | None = None
    relaxed: str | None = None


def _structured(context: StepContext) -> Structured:
    assert isinstance(context.settings.prune, Structured), "`take_step` goes by the kind"
    return context.settings.prune


_JUDGED_ON = 512  # validation samples that tell one candidate of a search from another


@dataclass(frozen=True)
class Choice:
    """Which channels go.

    Attributes:
        plan: Says it.
        unrounded: What each group would keep without rounding; None if nothing was rounded, or if finding it would need
            another search.
    """

    plan: Plan
    unrounded: Mapping[str, int] | None = None


def choose_channels(context: StepContext, groups: Groups) -> tuple[Choice, Limits, Statistics]:
    """Choose which channels go, by the criterion, and how many, by the allocation.

    Returned are the choice, the limits that it keeps, and the statistics that were used.

    Raises:
        TargetError: The goal can't be met.
    """
    settings, chosen = context.settings, _structured(context)
    criteria = [chosen_criterion(name) for name in (chosen.criterion, chosen.fallback)]
    loss, _ = loss_and_metric(settings)
    seen = spread(read_split(context.workspace, "train"), chosen.criterion_samples)
    with shown("statistics: batches") as progress:
        needs = needs_of(criteria)
        statistics = collect(groups, needs, seen, loss, seed=settings.run.seed, progress=progress)
    ranking = Ranking(groups, criteria, statistics)
    choice, limits = within_first(chosen.limits, partial(_choose_within, context, ranking))
    return choice, limits, statistics


def _choose_within(context: StepContext, ranking: Ranking, limits: Limits) -> Choice:
    """Choose within some limits.

    Widths are rounded to what the runtime rewards, see `pruning.allocation.hardware_widths`. A latency is come down to
    by the widths that gain speed; the ratio of measured to predicted latency that the loop found last corrects it.

    Raises:
        TargetError: The goal can't be met.
    """
    chosen, groups = _structured(context), ranking.groups
    sizes = context.plan.sizes  # of the original model; a group that isn't in it has lost nothing
    round_to = chosen.round_to if isinstance(chosen.round_to, int) else 1
    bundles = find_tied_groups(groups, limits, ignore=chosen.ignore, round_to=round_to, original_sizes=sizes)
    latency = latency_cost(context.workspace, groups)
    targets, latency_name, at_most_ms = _targets(context, Cost(groups), latency)
    whole = BudgetSolver(bundles, joined(targets)) if targets else None
    met = whole is None or whole.met([0] * len(bundles))
    is_slow = latency is not None and latency.predict({}) > at_most_ms
    choose_by = partial(_choose_by, context, ranking)
    if latency is not None and is_slow:
        return Choice(plan_for_latency(bundles, latency, at_most_ms, latency_name, choose_by, targets))
    if whole is None or met:
        return Choice(Plan.of(groups, {}))
    if chosen.round_to != "auto":
        return Choice(choose_by(whole))
    plan = choose_by(rounded(bundles, whole.budget, find_kernel_widths(chosen.round_for), sizes))
    if chosen.allocation.strategy == "search":
        return Choice(plan)
    kept = choose_by(whole).kept_sizes(groups)
    return Choice(plan, {group.name: kept.get(group.name, group.size) for group in groups})


def _choose_by(context: StepContext, ranking: Ranking, solver: BudgetSolver) -> Plan:
    """Divide a target among the groups by the strategy of the settings."""
    allocation, groups = _structured(context).allocation, ranking.groups
    if allocation.strategy in ("local", "global", "scoped"):
        return choose(ranking, solver, Scope(allocation.strategy, allocation.normalise, allocation.scopes))
    orders = ranking.orders(free_groups(solver.bundles))
    if allocation.strategy == "search":
        return _search(context, groups, solver, orders)
    return allocate(groups, solver, read_curves(context.workspace), orders)


def _targets(context: StepContext, cost: Cost, latency: LatencyCost | None) -> tuple[list[Budget], str, float]:
    """Return what is to come down how far, but for the latency; its name, and its milliseconds (infinite if not asked).

    A latency longer than predicted by a ratio needs a prediction that is as much shorter.
    """
    ledger, baseline = context.ledger, context.ledger.baseline
    measures: dict[str, tuple[Measure, float]] = {
        "mac_reduction": (cost.macs, baseline.macs),
        "parameter_reduction": (cost.parameters, baseline.parameters),
        "size_bytes": (cost.size_bytes, baseline.size_bytes),
    }
    targets, name, at_most_ms = [], "", float("inf")
    for kind, reduction in context.reductions.items():
        called = f"a reduction of {reduction:.4f} ({kind})"
        if kind in LATENCY:
            assert latency is not None, "the loop was opened with a profile"
            name, at_most_ms = called, (1 - reduction) * latency.profile.whole_ms / ledger.latency_ratio
        else:
            quantity, whole = measures[kind]
            targets.append(Budget(called, quantity, (1 - reduction) * whole))
    return targets, name, at_most_ms


def _search(context: StepContext, groups: Groups, solver: BudgetSolver, orders: Mapping[str, Sequence[int]]) -> Plan:
    """Judge random allocations by their loss after the batch norms were measured again."""
    settings, chosen = context.settings, _structured(context)
    loss, metric = loss_and_metric(settings)
    train = read_split(context.workspace, "train")
    judged_on = spread(read_split(context.workspace, "validation"), _JUDGED_ON)
    batch_size = settings.training.batch_size

    def judge(plan: Plan) -> float:
        narrowed = pruning.narrow(groups.model, plan, context.example, groups=groups, verify=False)
        recalibrate(narrowed, train, num_samples=chosen.recover.num_samples, batch_size=batch_size)
        return -evaluate(narrowed, judged_on, loss=loss, metric=metric, batch_size=batch_size).loss

    with shown("search: candidates") as progress:
        return search(
            groups,
            solver,
            orders,
            judge,
            candidates=chosen.allocation.candidates,
            seed=settings.run.seed,
            progress=progress,
        )


def recover(narrowed: nn.Module, chosen: Plan, groups: Groups, statistics: Statistics, context: StepContext) -> None:
    """Recover a narrowed model in place, by the settings' method.

    Args:
        narrowed: What `chosen` leaves of the model that the groups were found on.
        chosen: Which channels are gone.
        groups: Found on the model before; read for what they join alone.
        statistics: What the criterion looked at; its solution is folded from them.
        context: Names settings and data.
    """
    settings, training = _structured(context), context.settings.training
    method, num_samples = settings.recover.method, settings.recover.num_samples
    samples = read_split(context.workspace, "train")
    if method == "recalibrate":
        recalibrate(narrowed, samples, num_samples=num_samples, batch_size=training.batch_size)
    elif method == "fold":
        fold(narrowed, chosen, groups, statistics, chosen_criterion(settings.criterion))
    elif method in ("absorb_means", "reconstruct"):
        ridge = MEAN_ALONE if method == "absorb_means" else settings.recover.ridge
        inputs = spread(samples, num_samples).inputs
        with shown("reconstruction: layers") as progress:
            reconstruct(narrowed, context.reference, chosen, groups, inputs, ridge=ridge, progress=progress)


_VERIFIED_ON, _BATCH = 64, 16  # samples, where verifying on the example shows nothing


def narrow_channels(context: StepContext) -> Step:
    """Remove channels for good, and recover what can be recovered without training.

    Raises:
        TargetError: The goal can't be met.
    """
    settings, example = context.settings, context.example
    groups = pruning.find_groups(context.model, example)
    choice, limits, statistics = choose_channels(context, groups)
    chosen = choice.plan
    if context.start is None:
        narrowed = pruning.narrow(context.model, chosen, example, groups=groups, samples=_batches(context))
    else:
        whole = context.plan.then(chosen)
        narrowed = pruning.narrow(context.start, whole, example, samples=_batches(context))
    recover(narrowed, chosen, groups, statistics, context)

    def train(model: nn.Module, recipe: Recipe, finetune: Train) -> None:
        sparsity = sparsity_training(recipe, model, example, settings.prune.ignore)
        finetune(model, after_step=sparsity, memory=sparsity)

    relaxed = None if limits == _structured(context).limits[0] else str(limits)
    return Step(narrowed, chosen, train, unrounded=choice.unrounded, relaxed=relaxed)


def _batches(context: StepContext) -> Iterator[Tensor]:
    """Training samples, read only if verifying on the example shows nothing."""
    samples = spread(read_split(context.workspace, "train"), _VERIFIED_ON)
    yield from torch.split(samples.inputs.to(context.example.device), _BATCH)


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
        samples=spread(read_split(context.workspace, "train"), chosen.criterion_samples),
        loss=loss_and_metric(settings)[0],
        seed=settings.run.seed,
    )
    model = copy.deepcopy(context.model if context.start is None else context.start)
    zero_weights(model, masks)

    def train(model: nn.Module, _recipe: Recipe, finetune: Train) -> None:
        with enforce_masks(model, masks):
            finetune(model)

    return Step(model, Plan(removed={}, sizes={}), train, sparsity_of(masks))


def gate_channels(context: StepContext) -> Step:
    """Put gates on the groups, or continue with existing gates, and train them to the goal.

    Raises:
        ModelError: No group can have a gate.
    """
    settings, chosen, gated = context.settings, context.settings.prune, context.model
    assert isinstance(chosen, Dynamic), "`take_step` goes by the kind"
    if not isinstance(gated, GatedModel):
        gated, _ = add_gates(pruning.find_groups(context.model, context.example), ignore=chosen.ignore)
    cost = Cost(pruning.find_groups(gated.model, context.example))
    macs = (1 - context.goal) * context.ledger.baseline.macs
    inputs = read_inputs(context.workspace, "validation")

    def train(model: nn.Module, _recipe: Recipe, finetune: Train) -> None:
        assert isinstance(model, GatedModel)
        training = GateTraining(model, cost, macs, weight=chosen.gates.weight, ramp=chosen.gates.ramp)
        finetune(model, penalty=training.penalty, after_step=training.after_step, memory=training)
        calibrate_gates(model, cost, inputs, macs, batch_size=settings.training.batch_size)

    return Step(gated, Plan(removed={}, sizes={}), train)


_KINDS: dict[Kind, Callable[[StepContext], Step]] = {
    "structured": narrow_channels,
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
