"""Which channels go, and how many of each group: the settings' criterion and way of sharing the goal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pruning
from pruning.choosing.allocation import allocate
from pruning.choosing.landing import Landing, Measure, Target
from pruning.choosing.search import search
from pruning.choosing.selection import Choice, choose
from pruning.criteria import find_criterion, order_channels
from pruning.evaluation import evaluate
from pruning.gathering.statistics import Statistics, collect
from pruning.recovery.recalibration import recalibrate
from pruning.structure.bundles import Limits, find_bundles
from pruning.structure.cost import Cost
from pruning.structure.groups import Groups
from pruning.structure.plan import Plan
from tasks.analyze import read_curves
from tasks.data import read_split, spread
from tasks.kinds.step import Situation
from tasks.models import chosen_criterion, loss_and_metric
from tasks.progress import shown

_JUDGED_ON = 512  # validation samples that tell one candidate of a search from another


def choose_channels(situation: Situation, groups: Groups) -> tuple[Plan, Statistics]:
    """Let the criterion decide which channels go, and the allocation how many; return what was looked at too.

    Raises:
        TargetError: The goal can't be met.
    """
    settings = situation.settings
    chosen, allocation = settings.prune, settings.prune.allocation
    criterion = chosen_criterion(chosen.criterion)
    loss, _ = loss_and_metric(settings)
    seen = spread(read_split(situation.workspace, "train"), chosen.criterion_samples)
    with shown("statistics: batches") as progress:
        needs = find_criterion(criterion).needs
        statistics = collect(groups, needs, seen, loss, seed=settings.run.seed, progress=progress)
    curves = read_curves(situation.workspace)
    quantity, at_most = _goal(situation, Cost(groups))
    name = f"a reduction of {situation.goal:.4f} ({chosen.target.kind})"
    limits = Limits(chosen.ignore, chosen.round_to, chosen.keep_at_least, chosen.max_group_rate)
    sizes = {member: curve.size for curve in curves for member in curve.measured_with if member in groups}
    landing = Landing(find_bundles(groups, limits, original_sizes=sizes), Target(name, quantity, at_most))
    if landing.met([0] * len(landing.bundles)):
        return Plan.of(groups, {}), statistics
    free = [one for bundle in landing.bundles if len(bundle.counts) > 1 for one in bundle.names]
    if allocation.by in ("local", "global", "scoped"):
        choice = Choice(allocation.by, allocation.normalise, allocation.scopes)
        return choose(groups, criterion, statistics, landing, choice), statistics
    orders: Mapping[str, Sequence[int]] = {one: order_channels(criterion, groups[one], statistics) for one in free}
    if allocation.by == "search":
        return _search(situation, groups, landing, orders), statistics
    plan = allocate(
        groups,
        curves,
        orders,
        measure=quantity,
        at_most=at_most,
        name=name,
        max_group_rate=chosen.max_group_rate,
        keep_at_least=chosen.keep_at_least,
        round_to=chosen.round_to,
        ignore=chosen.ignore,
    )
    return plan, statistics


def _goal(situation: Situation, cost: Cost) -> tuple[Measure, float]:
    """Return what is measured, and what it is to come down to."""
    baseline = situation.ledger.baseline
    measures: dict[str, tuple[Measure, float]] = {
        "mac_reduction": (cost.macs, baseline.macs),
        "parameter_reduction": (cost.parameters, baseline.parameters),
        "size_bytes": (cost.size_bytes, baseline.size_bytes),
    }
    quantity, whole = measures[situation.settings.prune.target.kind]
    return quantity, (1 - situation.goal) * whole


def _search(situation: Situation, groups: Groups, landing: Landing, orders: Mapping[str, Sequence[int]]) -> Plan:
    """Judge random ways to share the goal by their loss once the batch norms are measured anew."""
    settings = situation.settings
    loss, metric = loss_and_metric(settings)
    train = read_split(situation.workspace, "train")
    judged_on = spread(read_split(situation.workspace, "validation"), _JUDGED_ON)
    batch_size = settings.training.batch_size

    def judge(plan: Plan) -> float:
        narrowed = pruning.narrow(groups.model, plan, situation.example, groups=groups, verify=False)
        recalibrate(narrowed, train, num_samples=settings.prune.recover.num_samples, batch_size=batch_size)
        return -evaluate(narrowed, judged_on, loss=loss, metric=metric, batch_size=batch_size).loss

    with shown("search: candidates") as progress:
        return search(
            groups,
            landing,
            orders,
            judge,
            candidates=settings.prune.allocation.candidates,
            seed=settings.run.seed,
            progress=progress,
        )
