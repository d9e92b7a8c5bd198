"""How many channels of each group go within some limits, by one allocation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import pruning
from pruning.allocation.budget import Budget, BudgetSolver, Measure, joined
from pruning.allocation.hardware_widths import find_kernel_widths, plan_for_latency, rounded
from pruning.allocation.knapsack import allocate, search
from pruning.allocation.selection import Scope, Tried, choose, free_groups
from pruning.evaluation import evaluate
from pruning.graph.groups import Groups
from pruning.latency.profile import LatencyCost
from pruning.plan.constraints import Limits, find_tied_groups
from pruning.plan.plan import Cost, Plan
from pruning.recovery.calibrate import recalibrate
from tasks.config.target_schema import Allocation
from tasks.data import read_split
from tasks.loop.channels import JUDGED_ON, Offered, structured
from tasks.loop.evolution import EvolvedAllocation
from tasks.loop.measurements import latency_cost, read_curves
from tasks.loop.step_context import StepContext
from tasks.loop.targets import LATENCY
from tasks.models import loss_and_metric
from tasks.terminal import shown


@dataclass(frozen=True)
class Choice:
    """Which channels go.

    Attributes:
        plan: Says it.
        unrounded: What each group would keep without rounding; None if nothing was rounded, or if finding it would need
            another search.
        tried: What came of each allocation, where several were tried.
    """

    plan: Plan
    unrounded: Mapping[str, int] | None = None
    tried: tuple[Tried, ...] = ()


def choose_within_limits(context: StepContext, offered: Offered, limits: Limits, allocation: Allocation) -> Choice:
    """Choose within some limits, by one allocation.

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
    evolution = EvolvedAllocation(offered) if allocation.strategy == "evolve" else None
    choose_by = evolution or partial(_choose_by, context, offered, allocation)
    if latency is not None and is_slow:
        plan = plan_for_latency(bundles, latency, at_most_ms, latency_name, choose_by, targets)
        return Choice(plan, tried=evolution.tried if evolution else ())
    if whole is None or met:
        return Choice(Plan.of(groups, {}))
    solver = whole
    if chosen.round_to == "auto":
        solver = rounded(bundles, whole.budget, find_kernel_widths(chosen.round_for), sizes)
    plan = choose_by(solver)
    if evolution is not None or allocation.strategy == "search" or chosen.round_to != "auto":
        return Choice(plan, tried=evolution.tried if evolution else ())
    kept = choose_by(whole).kept_sizes(groups)
    return Choice(plan, {group.name: kept.get(group.name, group.size) for group in groups})


def _choose_by(context: StepContext, offered: Offered, allocation: Allocation, solver: BudgetSolver) -> Plan:
    """Divide a target among the groups by an allocation's strategy."""
    solver.lowest()  # says that the target is out of reach before anything is gathered
    groups, ranking = offered.groups, offered.ranking
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
    train = read_split(context.settings, context.workspace, "train")
    judged_on = read_split(context.settings, context.workspace, "validation").spread(JUDGED_ON)
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
