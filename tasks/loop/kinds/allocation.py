"""Which channels go, and how many of each group: the settings' criterion and way of sharing the goal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import pruning
from pruning.choosing.allocation import allocate
from pruning.choosing.kernel_widths import find_kernel_widths
from pruning.choosing.landing import Budget, Landing, Measure, joined
from pruning.choosing.latency_target import plan_for_latency
from pruning.choosing.ranking import Ranking
from pruning.choosing.rounding import rounded
from pruning.choosing.search import search
from pruning.choosing.selection import Scope, choose
from pruning.criteria import find_criterion
from pruning.evaluation import evaluate
from pruning.gathering.statistics import Statistics, collect
from pruning.recovery.recalibration import recalibrate
from pruning.structure.bundles import Limits, find_bundles
from pruning.structure.cost import Cost
from pruning.structure.groups import Groups
from pruning.structure.plan import Plan
from pruning.timing.latency_cost import LatencyCost
from tasks.data import read_split, spread
from tasks.loop.goals import LATENCY, goals_of
from tasks.loop.kinds.step import Situation
from tasks.measurements import latency_cost, read_curves
from tasks.models import chosen_criterion, loss_and_metric
from tasks.progress import shown

_JUDGED_ON = 512  # validation samples that tell one candidate of a search from another


def choose_channels(situation: Situation, groups: Groups) -> tuple[Plan, Mapping[str, int] | None, Statistics]:
    """Let the criterion decide which channels go, and the allocation how many; return what was looked at too.

    Between the two stands what each group would keep if counts were not rounded: None where none was, or where to know
    it would mean another search.

    Widths are rounded to what the runtime rewards, see `pruning.choosing.rounding`. A latency is come down to by the
    widths that gain speed; the ratio of measured to predicted latency that the loop found last corrects it.

    Raises:
        TargetError: The goal can't be met.
    """
    settings = situation.settings
    chosen = settings.prune
    criterion = chosen_criterion(chosen.criterion)
    loss, _ = loss_and_metric(settings)
    seen = spread(read_split(situation.workspace, "train"), chosen.criterion_samples)
    with shown("statistics: batches") as progress:
        needs = find_criterion(criterion).needs
        statistics = collect(groups, needs, seen, loss, seed=settings.run.seed, progress=progress)
    ranking = Ranking(groups, criterion, statistics)
    sizes = situation.plan.sizes  # of the original model; a group that isn't in it has lost nothing
    round_to = chosen.round_to if isinstance(chosen.round_to, int) else 1
    limits = Limits(chosen.keep_at_least, chosen.max_group_rate)
    bundles = find_bundles(groups, limits, ignore=chosen.ignore, round_to=round_to, original_sizes=sizes)
    latency = latency_cost(situation.workspace, groups)
    targets, latency_name, at_most_ms = _targets(situation, Cost(groups), latency)
    whole = Landing(bundles, joined(targets)) if targets else None
    met = whole is None or whole.met([0] * len(bundles))
    is_slow = latency is not None and latency.predict({}) > at_most_ms
    unrounded: dict[str, int] | None = None
    choose_by = partial(_choose_by, situation, ranking)
    if latency is not None and is_slow:
        plan = plan_for_latency(bundles, latency, at_most_ms, latency_name, choose_by, targets)
    elif whole is None or met:
        plan = Plan.of(groups, {})
    elif chosen.round_to == "auto":
        plan = choose_by(rounded(bundles, whole.budget, find_kernel_widths(chosen.round_for), sizes))
        if chosen.allocation.by != "search":
            kept = choose_by(whole).kept_sizes(groups)
            unrounded = {group.name: kept.get(group.name, group.size) for group in groups}
    else:
        plan = choose_by(whole)
    return plan, unrounded, statistics


def _choose_by(situation: Situation, ranking: Ranking, landing: Landing) -> Plan:
    """Share a landing's target among the groups by the settings' way."""
    allocation, groups = situation.settings.prune.allocation, ranking.groups
    if allocation.by in ("local", "global", "scoped"):
        return choose(ranking, landing, Scope(allocation.by, allocation.normalise, allocation.scopes))
    orders = ranking.orders(landing.bundles)
    if allocation.by == "search":
        return _search(situation, groups, landing, orders)
    return allocate(groups, landing, read_curves(situation.workspace), orders)


def _targets(situation: Situation, cost: Cost, latency: LatencyCost | None) -> tuple[list[Budget], str, float]:
    """Return what is to come down how far, but for the latency; its name, and its milliseconds (infinite if not asked).

    A latency longer than predicted by a ratio needs a prediction that is as much shorter.
    """
    ledger, target = situation.ledger, situation.settings.prune.target
    baseline, whole_ms = ledger.baseline, latency.profile.whole_ms if latency and target.names_latency else None
    measures: dict[str, tuple[Measure, float]] = {
        "mac_reduction": (cost.macs, baseline.macs),
        "parameter_reduction": (cost.parameters, baseline.parameters),
        "size_bytes": (cost.size_bytes, baseline.size_bytes),
    }
    targets, name, at_most_ms = [], "", float("inf")
    for kind, reduction in goals_of(target, baseline, whole_ms).at(situation.goal).items():
        called = f"a reduction of {reduction:.4f} ({kind})"
        if kind in LATENCY and whole_ms is not None:
            name, at_most_ms = called, (1 - reduction) * whole_ms / ledger.latency_ratio
        else:
            quantity, whole = measures[kind]
            targets.append(Budget(called, quantity, (1 - reduction) * whole))
    return targets, name, at_most_ms


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
