"""Choose which channels go: a criterion's order within each group, and one target over all of them.

Or several such choices, tried, of which the best is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Literal, Unpack, get_args

from pydantic import BaseModel, ConfigDict
from torch import Tensor

from pruning.allocation.budget import (
    Budget,
    BudgetSolver,
    ChannelSparsity,
    LatencyMs,
    LatencyReduction,
    MacReduction,
    ParameterReduction,
    Target,
    TargetKeywords,
    the_target,
)
from pruning.allocation.hardware_widths import PORTABLE, KernelWidths, find_kernel_widths, plan_for_latency, rounded
from pruning.allocation.thresholds import (
    NORMALISATIONS,
    normalised,
    one_threshold,
    sets_of,
    steps_of,
    thresholds_by_set,
)
from pruning.batches import Batches, Samples
from pruning.containers import Inputs
from pruning.errors import ModelError, SettingsError, TargetError, unknown_name
from pruning.evaluation import Progress, interval_of_mean
from pruning.graph.groups import Groups
from pruning.importance import Criteria, Ranking, needs_of
from pruning.latency.profile import LatencyCost, Profile
from pruning.plan.constraints import Entry, Limits, TiedGroups, find_tied_groups, within_first
from pruning.plan.plan import Cost, Plan
from pruning.statistics.collect import Statistics, collect


def free_groups(bundles: Sequence[TiedGroups]) -> list[str]:
    """Return the groups that may lose channels."""
    return [name for bundle in bundles if len(bundle.counts) > 1 for name in bundle.names]


ScopeName = Literal["local", "global", "scoped"]
Normalise = Literal["mean", "max", "none", "macs", "lamp", "standard"]
Rounding = int | str | Profile
"""What kept counts are rounded to: multiples of a number, the name of a table of `kernel_widths` ("auto": the portable
one), or a profile, whose runtime's widths are taken."""


@dataclass(frozen=True)
class Scope:
    """How a target is shared among the groups.

    Attributes:
        name: "local": the same share of each group; "global": one threshold for all; "scoped": one for each of some
            sets.
        normalise: how scores of different groups are made comparable, see `thresholds.normalised`; not for "local".
        sets: for "scoped": name of a set -> names, prefixes or patterns of its modules or parameters.

    Raises:
        SettingsError: scope or normalisation is unknown, or sets are given for another scope.
    """

    name: ScopeName = "local"
    normalise: Normalise = "mean"
    sets: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.name not in get_args(ScopeName):
            raise SettingsError(unknown_name("scope", self.name, get_args(ScopeName)))
        if self.normalise not in NORMALISATIONS:
            raise SettingsError(unknown_name("normalisation", self.normalise, NORMALISATIONS))
        if self.sets and self.name != "scoped":
            raise SettingsError(f"sets of modules are given but the scope is {self.name!r}; expected 'scoped'")


class PlanKeywords(TargetKeywords, total=False):
    """What `make_plan` takes by keyword, for functions that hand it on."""

    scope: ScopeName | Scope
    ignore: Sequence[Entry]
    round_to: Rounding
    limits: Limits | Sequence[Limits]


def make_plan(
    groups: Groups,
    criterion: Criteria = "l2_norm",
    target: Target | None = None,
    *,
    scope: ScopeName | Scope = "local",
    ignore: Sequence[Entry] = (),
    round_to: Rounding = 1,
    limits: Limits | Sequence[Limits] = Limits(),  # noqa: B008 - it is frozen
    samples: Samples | Batches | Inputs | Statistics | None = None,
    **target_keywords: Unpack[TargetKeywords],
) -> Plan:
    """Make a plan that meets one target.

    local: every group gives the same share of its channels. With a channel sparsity that is round(share · size) of
    each, as near as `round_to` and `limits` let it come; with a reduction the smallest share that meets it, and then
    single channels go or stay so that it is met closely.

    global: one threshold over the channels of all groups, their scores made comparable by `normalise`; equal ones go by
    the group's place in the model, then by channel. A channel sparsity is then the share of the channels of all groups
    not ignored, removed to the exact number where groups are neither tied nor rounded.

    scoped: the same with a threshold for each set of modules, and one for all others; each set gives the same share of
    its channels.

    With a latency for the target, groups keep the numbers of channels that the profile rewards: those at which the
    model is predicted to be faster than at every larger one. The same profile gives the same plan.

    In all, no group is emptied (`limits` guard layers from collapse further), and groups tied to each other lose equal
    counts.

    Args:
        groups: found on the model to be pruned.
        criterion: a name (see `criteria.criterion_names()`) or a function (group, statistics) -> scores.
            Of groups for which by its definition it has no scores, the next one where this is a sequence, else l2_norm;
            the log says which they are, and why (see `Ranking`).
        target: what to reach: `MacReduction(0.5)`, `LatencyMs(3.0, profile)`, … (`pruning.allocation.budget`).
        scope: how the target is shared; a name is short for a `Scope` with its defaults.
        ignore: names, prefixes or patterns ("fc", "layer1.*") of modules or parameters, or modules themselves; groups
            produced there stay whole.
        round_to: kept counts are multiples of this; a group not above it stays whole, with a warning in the log.
            "auto": the counts that most runtimes reward; another table's name, or a profile, whose runtime's counts are
            taken, see `rounding.rounded`. A latency is met by the counts that its own profile rewards.
        limits: what every group keeps: one channel and a quarter of them, if not given. Of several, the later ones are
            for a target that is out of reach within those before them; the log says so.
        samples: for criteria that look at data; inputs alone where they don't look at the loss, a tuple or
            dict of them where the model takes several. For another loss than cross entropy, or another seed:
            statistics, gathered by `collect`.
        target_keywords: the target by its name instead: `channel_sparsity`, `mac_reduction` or `parameter_reduction`.

    Raises:
        TargetError: not exactly one target, or one that can't be met (`OutOfReachError`: within these limits) or that
            removes nothing.
        ProfileError: the profile is of another network.
        CriterionError: a criterion is unknown, or breaks its contract.
        SettingsError: the scope, normalisation or table is unknown, there are no limits, or an entry of `ignore` or of
            a set matches nothing.
    """
    asked = the_target(target, target_keywords)
    shared = scope if isinstance(scope, Scope) else Scope(scope)
    offered = [limits] if isinstance(limits, Limits) else limits
    if not offered:
        raise SettingsError("limits is empty; expected at least one")
    multiple = round_to if isinstance(round_to, int) else 1
    bundles_within = cache(partial(find_tied_groups, groups, ignore=ignore, round_to=multiple))  # it warns each time
    if not any(free_groups(bundles_within(one)) for one in offered):
        bundles = bundles_within(offered[0])
        held = "; ".join(f"{bundle.names[0]}: {bundle.obstacle}" for bundle in bundles[:6]) or "the model has none"
        raise TargetError(f"{asked} can't be met: no group can lose a channel ({held})")
    statistics = samples if isinstance(samples, Statistics) else collect(groups, needs_of(criterion), samples)
    ranking = Ranking(groups, criterion, statistics)

    def plan_within(one: Limits) -> Plan:
        return _plan(ranking, bundles_within(one), asked, shared, round_to)

    plan, taken = within_first(offered, plan_within)
    if not plan.removed:
        largest = max(groups[name].size for name in free_groups(bundles_within(taken)))
        raise TargetError(
            f"{asked} comes to no channel in any group; the largest that may lose some has {largest}: ask for "
            "more, or lower round_to"
        )
    return plan


def _plan(ranking: Ranking, bundles: Sequence[TiedGroups], asked: Target, scope: Scope, round_to: Rounding) -> Plan:
    groups = ranking.groups
    if isinstance(asked, LatencyMs | LatencyReduction):
        cost = LatencyCost(groups, asked.profile)
        now = cost.predict({})
        at_most = asked.milliseconds if isinstance(asked, LatencyMs) else (1 - asked.share) * now
        if now <= at_most:
            raise TargetError(f"{asked.name} is met already: the model is predicted to take {now:.4g} ms; ask for less")
        return plan_for_latency(bundles, cost, at_most, str(asked), lambda one: choose(ranking, one, scope))
    budget = _budget(groups, bundles, asked)
    if isinstance(round_to, int):
        solver = BudgetSolver(bundles, budget)
    else:
        solver = rounded(bundles, budget, _rewarded(groups, round_to), {})
    return choose(ranking, solver, scope, asked.share if isinstance(asked, ChannelSparsity) else None)


def choose(ranking: Ranking, solver: BudgetSolver, scope: Scope, share: float | None = None) -> Plan:
    """Make a plan that meets a landing's budget, by one criterion.

    Args:
        ranking: which channels go.
        solver: bundles and budget.
        scope: how many channels each group gives.
        share: of the channels that each group (or each set) gives, where that itself is the target.

    Raises:
        TargetError: the target can't be met.
        CriterionError: a criterion breaks its contract.
        SettingsError: an entry of the sets matches nothing.
    """
    groups, bundles = ranking.groups, solver.bundles
    orders = ranking.orders(free_groups(bundles))
    if scope.name != "local":
        steps = steps_of(bundles, orders, normalised(ranking.scores(free_groups(bundles)), groups, scope.normalise))
        if scope.name == "global":
            levels = one_threshold(solver, steps)
        else:
            levels = thresholds_by_set(solver, steps, sets_of(groups, bundles, scope.sets), share)
    elif share is not None:
        levels = [bundle.nearest_level(round(share * bundle.num_steps)) for bundle in bundles]
    else:
        levels = _common_share(solver)
    return solver.plan(groups, levels, orders)


def _rewarded(groups: Groups, rounding: str | Profile) -> KernelWidths | LatencyCost:
    if isinstance(rounding, Profile):
        return LatencyCost(groups, rounding)
    return find_kernel_widths(PORTABLE if rounding == "auto" else rounding)


def _budget(
    groups: Groups, bundles: Sequence[TiedGroups], target: ChannelSparsity | MacReduction | ParameterReduction
) -> Budget:
    if isinstance(target, ChannelSparsity):
        counted = [one for bundle in bundles if not bundle.ignored for one in bundle.names]
        total = sum(groups[one].size for one in counted)
        at_most = total - round(target.share * total)
        return Budget(str(target), lambda kept: sum(kept[one] for one in counted), at_most)
    cost = Cost(groups)
    measure = cost.macs if isinstance(target, MacReduction) else cost.parameters
    return Budget(str(target), measure, (1 - target.share) * measure({}))


def _common_share(solver: BudgetSolver) -> list[int]:
    """Return the levels of the smallest common share that meets the target, then give single steps back."""

    def levels_at(share: float) -> list[int]:
        return [bundle.nearest_level(share * bundle.num_steps) for bundle in solver.bundles]

    def share_after(index: int, level: int) -> float:
        return solver.bundles[index].counts[level] / solver.bundles[index].num_steps

    solver.lowest()
    below, enough = solver.scale(levels_at)
    on_the_border = [index for index, level in enumerate(enough) if level > below[index]]
    return solver.settle(solver.give_back(enough, among=on_the_border), share_after)


class Tried(BaseModel):
    """What came of one allocation that was tried. JSON by `model_dump`.

    Attributes:
        name: Of the allocation.
        loss: The mean over the samples that it was last judged on; None where it could not be judged.
        measure: What is called loss: that of the task, or how far outputs are from the baseline's.
        num_samples: How many these are.
        rounds: How many rounds it was judged in.
        worse_by: The 95 % interval of its loss minus that of the best of its round, from the samples' differences; None
            for the best itself.
        same_as: An allocation before it that gives the same plan, and so was judged for it.
        fault: Why it could not be judged.
        chosen: Whether it was taken.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    loss: float | None = None
    measure: Literal["loss", "divergence"] = "loss"
    num_samples: int = 0
    rounds: int = 0
    worse_by: tuple[float, float] | None = None
    same_as: str | None = None
    fault: str | None = None
    chosen: bool = False


JudgeEach = Callable[[Plan], Tensor]
"""plan -> the loss of each sample in the model that it leaves, [N] float64; the samples are the same for every plan."""


def choose_by_trial(
    plans: Mapping[str, Plan],
    judges: Sequence[JudgeEach],
    *,
    ahead: Callable[[JudgeEach, Sequence[Plan]], object] | None = None,
    progress: Progress | None = None,
) -> tuple[Tried, ...]:
    """Try several plans for the same target, and take the first that can't be told from the best.

    Each judge has a round. A plan whose loss is above the lowest of the round by more than chance explains (sample by
    sample, 95 %) drops out; the others go on to the next judge, which should look at more, and so costs more. Of those
    that are left after the last round the first is taken, so put the one that you would take unseen in front. As soon
    as a single one is left, no more is asked.

    Args:
        plans: Name of an allocation -> its plan. Equal plans are judged once.
        judges: One at least; none is asked where all plans are equal. A `ModelError` of theirs (no finite loss, say)
            drops the plan.
        ahead: Told before a round which judge will be asked about which plans: it may judge them side by side.
        progress: Told after each plan of a round.

    Returns:
        What came of each allocation, in order; exactly one is chosen.

    Raises:
        TargetError: No plan could be judged.
        SettingsError: There are no plans or no judges.
    """
    if not plans or not judges:
        raise SettingsError("there is nothing to try; expected one plan and one judge at least")
    first: dict[Plan, str] = {}  # a plan -> the allocation that gave it first
    found = {}
    for name, plan in plans.items():
        same = first.setdefault(plan, name)
        found[name] = Tried(name=name, same_as=same if same != name else None)
    left = list(first.values())
    for number_of_round, judge in enumerate(judges, 1):
        if len(left) == 1:
            break
        losses: dict[str, Tensor] = {}
        if ahead is not None:
            ahead(judge, [plans[name] for name in left])
        for number, name in enumerate(left):
            try:
                losses[name] = judge(plans[name])
            except ModelError as error:
                found[name] = Tried(name=name, fault=str(error))
            if progress is not None:
                progress(number + 1, len(left))
        if not losses:
            faults = "; ".join(f"{name}: {found[name].fault}" for name in left)
            raise TargetError(f"none of the allocations that were tried leaves a model that can be judged: {faults}")
        best = min(losses, key=lambda name: float(losses[name].mean()))
        for name, each in losses.items():
            worse = None if name == best else interval_of_mean(each - losses[best])
            found[name] = Tried(
                name=name, loss=float(each.mean()), num_samples=len(each), rounds=number_of_round, worse_by=worse
            )
        left = [name for name in losses if (interval := found[name].worse_by) is None or interval[0] <= 0]
    chosen = left[0]
    for name, one in found.items():
        if one.same_as is not None:
            twin = found[one.same_as]
            found[name] = twin.model_copy(update={"name": name, "same_as": one.same_as})
    found[chosen] = found[chosen].model_copy(update={"chosen": True})
    return tuple(found.values())
