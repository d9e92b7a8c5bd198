"""Which channels go, for structured pruning: scored by the criterion, shared out by the allocation, within limits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial

import pruning
from pruning.allocation.budget import Budget, BudgetSolver, Measure, joined
from pruning.allocation.hardware_widths import find_kernel_widths, plan_for_latency, rounded
from pruning.allocation.knapsack import allocate, search
from pruning.allocation.selection import Scope, choose, free_groups
from pruning.evaluation import evaluate
from pruning.graph.groups import Groups
from pruning.importance import Criterion, Ranking, needs_of
from pruning.latency.profile import LatencyCost
from pruning.plan.constraints import Freedom, Limits, find_tied_groups, within_first
from pruning.plan.plan import Cost, Plan
from pruning.recovery.batch_norm import recalibrate
from pruning.statistics.collect import Statistics, collect
from tasks.config.prune_schema import Structured
from tasks.data import read_split, spread
from tasks.loop.measurements import latency_cost, read_curves
from tasks.loop.targets import LATENCY, StepContext
from tasks.models import chosen_criterion, loss_and_metric
from tasks.terminal import shown

_JUDGED_ON = 512  # validation samples that tell one candidate of a search from another


class Offered:
    """The channels that may go, and what they are worth; statistics are gathered when they are first asked for.

    Attributes:
        groups: Of the model at hand.
    """

    def __init__(self, context: StepContext, streams: bool) -> None:
        self.groups = pruning.find_groups(context.model, context.example, allow_mixed=streams)
        self._context = context

    @cached_property
    def statistics(self) -> Statistics:
        """What the criteria look at."""
        settings, samples = self._context.settings, structured(self._context).criterion_samples
        loss, _ = loss_and_metric(settings)
        seen = spread(read_split(self._context.workspace, "train"), samples)
        with shown("statistics: batches") as progress:
            needs = needs_of(self._criteria)
            return collect(self.groups, needs, seen, loss, seed=settings.run.seed, progress=progress)

    @cached_property
    def ranking(self) -> Ranking:
        """Which channels of a group go first."""
        return Ranking(self.groups, self._criteria, self.statistics)

    @property
    def _criteria(self) -> list[str | Criterion]:
        chosen = structured(self._context)
        return [chosen_criterion(name) for name in (chosen.criterion, chosen.fallback)]


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


def choose_channels(context: StepContext) -> tuple[Choice, Offered, Freedom]:
    """Choose which channels go, by the criterion, and how many, by the allocation.

    Returned are the choice, what it was made from, and what it was free to do: the first of the settings' freedoms that
    lets the goal be met.

    Raises:
        TargetError: The goal can't be met.
    """
    allowed, offered = structured(context).freedoms, cache(partial(Offered, context))

    def freedoms() -> Iterator[Freedom]:
        for freedom in allowed:
            was_tried = freedom.streams and replace(freedom, streams=False) in allowed
            if not was_tried or any(group.mixed for group in offered(streams=True).groups):
                yield freedom  # in a model without residual streams the same groups were tried before

    def choose_within(freedom: Freedom) -> Choice:
        return _choose_within(context, offered(streams=freedom.streams), freedom.limits)

    choice, freedom = within_first(freedoms(), choose_within)
    return choice, offered(streams=freedom.streams), freedom


def _choose_within(context: StepContext, offered: Offered, limits: Limits) -> Choice:
    """Choose within some limits.

    Widths are rounded to what the runtime rewards, see `pruning.allocation.hardware_widths`. A latency is come down to
    by the widths that gain speed; the ratio of measured to predicted latency that the loop found last corrects it.

    Raises:
        TargetError: The goal can't be met.
    """
    chosen, groups = structured(context), offered.groups
    sizes = context.plan.sizes  # of the original model; a group that isn't in it has lost nothing
    round_to = chosen.round_to if isinstance(chosen.round_to, int) else 1
    bundles = find_tied_groups(groups, limits, ignore=chosen.ignore, round_to=round_to, original_sizes=sizes)
    latency = latency_cost(context.workspace, groups)
    targets, latency_name, at_most_ms = _targets(context, Cost(groups), latency)
    whole = BudgetSolver(bundles, joined(targets)) if targets else None
    met = whole is None or whole.met([0] * len(bundles))
    is_slow = latency is not None and latency.predict({}) > at_most_ms
    choose_by = partial(_choose_by, context, offered)
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


def _choose_by(context: StepContext, offered: Offered, solver: BudgetSolver) -> Plan:
    """Divide a target among the groups by the strategy of the settings."""
    solver.lowest()  # says that the target is out of reach before anything is gathered
    allocation, groups, ranking = structured(context).allocation, offered.groups, offered.ranking
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
    settings, chosen = context.settings, structured(context)
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


def structured(context: StepContext) -> Structured:
    """Return the settings of a run whose kind is structured."""
    assert isinstance(context.settings.prune, Structured), "`take_step` goes by the kind"
    return context.settings.prune
