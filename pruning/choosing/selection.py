"""Choose which channels go: a criterion's order within each group, and one target over all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from pruning.choosing.kernel_widths import PORTABLE, find_kernel_widths
from pruning.choosing.landing import Landing, Target
from pruning.choosing.latency_target import plan_for_latency
from pruning.choosing.ranking import Ranking
from pruning.choosing.rounding import rounded
from pruning.choosing.thresholds import NORMALISATIONS, normalised, one_threshold, sets_of, steps_of, thresholds_by_set
from pruning.criteria import Criterion, find_criterion
from pruning.errors import SettingsError, TargetError, unknown_name
from pruning.evaluation import Loss, Samples, cross_entropy
from pruning.gathering.statistics import Statistics, collect
from pruning.structure.bundles import Bundle, Entry, Limits, find_bundles
from pruning.structure.cost import Cost
from pruning.structure.groups import Groups
from pruning.structure.plan import Plan
from pruning.timing.latency_cost import LatencyCost
from pruning.timing.profiles import Profile
from pruning.tracing.watch import Inputs

Scope = Literal["local", "global", "scoped"]
Normalise = Literal["mean", "max", "none", "macs"]


@dataclass(frozen=True)
class Choice:
    """How a target is shared among the groups.

    Attributes:
        scope: the same share of each group, one threshold for all, or one for each of some sets.
        normalise: how scores of different groups are made comparable, see `thresholds.normalised`; not for "local".
        scopes: for "scoped": name of a set -> names, prefixes or patterns of its modules or parameters.

    Raises:
        SettingsError: scope or normalisation is unknown, or scopes are given for another scope.
    """

    scope: Scope = "local"
    normalise: Normalise = "mean"
    scopes: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.scope not in get_args(Scope):
            raise SettingsError(unknown_name("scope", self.scope, get_args(Scope)))
        if self.normalise not in NORMALISATIONS:
            raise SettingsError(unknown_name("normalisation", self.normalise, NORMALISATIONS))
        if self.scopes and self.scope != "scoped":
            raise SettingsError(f"scopes are given but the scope is {self.scope!r}; expected 'scoped'")


def make_plan(
    groups: Groups,
    criterion: str | Criterion = "l2_norm",
    *,
    channel_sparsity: float | None = None,
    mac_reduction: float | None = None,
    parameter_reduction: float | None = None,
    latency_reduction: float | None = None,
    latency_ms: float | None = None,
    profile: Profile | None = None,
    scope: Scope = "local",
    normalise: Normalise = "mean",
    scopes: Mapping[str, Sequence[str]] | None = None,
    ignore: Sequence[Entry] = (),
    round_to: int | Literal["auto"] = 1,
    round_for: str = PORTABLE,
    keep_at_least: int = 1,
    max_sparsity: float = 0.75,
    statistics: Statistics | None = None,
    samples: Samples | Inputs | None = None,
    loss: Loss = cross_entropy,
    seed: int = 0,
) -> Plan:
    """Make a plan that meets one target.

    local: every group gives the same share of its channels. With `channel_sparsity` that is round(share · size) of
    each, as near as `round_to`, `keep_at_least` and `max_sparsity` let it come; with a reduction the smallest share
    that meets it, and then single channels go or stay so that it is met closely.

    global: one threshold over the channels of all groups, their scores made comparable by `normalise`; equal ones go by
    the group's place in the model, then by channel. `channel_sparsity` is then the share of the channels of all groups
    not ignored, removed to the exact number where groups are neither tied nor rounded.

    scoped: the same with a threshold for each set of modules in `scopes`, and one for all others; each set gives the
    same share of its channels.

    With a latency for the target, groups keep the numbers of channels that the profile rewards: those at which the
    model is predicted to be faster than at every larger one. The same profile gives the same plan.

    In all, no group is emptied (`keep_at_least`, `max_sparsity` guard layers from collapse further), and groups tied to
    each other lose equal counts.

    Args:
        groups: found on the model to be pruned.
        criterion: a name (see `criteria.criterion_names()`) or a function (group, statistics) -> scores.
        channel_sparsity: share of channels to remove; exactly one of the five targets is given.
        mac_reduction: 1 − MACs after / before, over the whole model.
        parameter_reduction: 1 − parameters after / before, over the whole model.
        latency_reduction: 1 − latency after / before, as predicted from the profile.
        latency_ms: milliseconds per batch of the profile's size, as predicted from it.
        profile: of the model, or of one that it was narrowed from; where the target is a latency, or counts are rounded
            by it.
        scope: "local", "global" or "scoped".
        normalise: how scores of different groups are made comparable, see `thresholds.normalised`; not for "local".
        scopes: for "scoped": name of a set -> names, prefixes or patterns of its modules or parameters.
        ignore: names, prefixes or patterns ("fc", "layer1.*") of modules or parameters, or modules themselves; groups
            produced there stay whole.
        round_to: kept counts are multiples of this; a group not above it stays whole, with a warning in the log.
            "auto": the counts that the runtime rewards, see `rounding.rounded`; by the profile, if one is given.
        round_for: what "auto" means without a profile: a name from `kernel_widths`.
        keep_at_least: channels that each group keeps.
        max_sparsity: largest share that a group may lose, so that no layer collapses; 1 leaves only `keep_at_least`.
        statistics: what the criterion needs, where it was gathered already.
        samples: for criteria that look at data; inputs alone where they don't look at the loss, a tuple or
            dict of them where the model takes several.
        loss: for criteria that look at gradients.
        seed: for criteria that draw random numbers.

    Raises:
        TargetError: not exactly one target, a share outside (0, 1), one that can't be met or that removes nothing, a
            latency without a profile, or a profile without a latency.
        ProfileError: the profile is of another network.
        CriterionError: the criterion is unknown or doesn't apply to a group.
        SettingsError: the scope or normalisation is unknown, or an entry of `ignore` or `scopes` matches nothing.
    """
    asked = {
        "channel_sparsity": channel_sparsity,
        "mac_reduction": mac_reduction,
        "parameter_reduction": parameter_reduction,
        "latency_reduction": latency_reduction,
        "latency_ms": latency_ms,
    }
    name, share = _only_target(asked)
    in_time, auto = name.startswith("latency"), round_to == "auto"
    if (profile is None and in_time) or (profile is not None and not in_time and not auto):
        raise TargetError(
            f"the target is {name} and a profile is {'missing' if profile is None else 'given'}; expected one, made by "
            "pruning.timing.profiling.profile, where the target is a latency or round_to is 'auto', and only there"
        )
    limits = Limits(ignore, round_to if isinstance(round_to, int) else 1, keep_at_least, max_sparsity)
    bundles = find_bundles(groups, limits)
    choice = Choice(scope=scope, normalise=normalise, scopes=scopes or {})
    if not any(len(bundle.counts) > 1 for bundle in bundles):
        held = "; ".join(f"{bundle.names[0]}: {bundle.obstacle}" for bundle in bundles[:6]) or "the model has none"
        raise TargetError(f"{name} {share:g} can't be met: no group can lose a channel ({held}). See groups.report()")
    if statistics is None:
        statistics = collect(groups, find_criterion(criterion).needs, samples, loss, seed=seed)
    ranking = Ranking(groups, criterion, statistics)
    cost = LatencyCost(groups, profile) if profile is not None else None
    if cost is not None and in_time:
        now = cost.predict({})
        at_most = share if name == "latency_ms" else (1 - share) * now
        if now <= at_most:
            raise TargetError(f"{name} is met already: the model is predicted to take {now:.4g} ms; ask for less")
        label = f"{name} {share:g}"
        plan = plan_for_latency(bundles, cost, at_most, label, lambda one: choose(ranking, one, choice))
    else:
        target = _target(groups, bundles, name, share)
        landing = (
            rounded(bundles, target, cost or find_kernel_widths(round_for), {}) if auto else Landing(bundles, target)
        )
        plan = choose(ranking, landing, choice, share if name == "channel_sparsity" else None)
    if not plan.removed:
        largest = max(max(bundle.sizes) for bundle in bundles if len(bundle.counts) > 1)
        raise TargetError(
            f"{name} {share:g} comes to no channel in any group; the largest that may lose some has {largest}: ask for "
            "more, or lower round_to"
        )
    return plan


def choose(ranking: Ranking, landing: Landing, choice: Choice, share: float | None = None) -> Plan:
    """Make a plan that meets a landing's target, by one criterion.

    Args:
        ranking: which channels go.
        landing: bundles and target.
        choice: how many channels each group gives.
        share: of the channels that each group (or each set) gives, where that itself is the target.

    Raises:
        TargetError: the target can't be met.
        CriterionError: the criterion doesn't apply to a group.
        SettingsError: an entry of the scopes matches nothing.
    """
    groups, bundles = ranking.groups, landing.bundles
    orders = ranking.orders(bundles)
    if choice.scope != "local":
        steps = steps_of(bundles, orders, normalised(ranking.scores(bundles), groups, choice.normalise))
        if choice.scope == "global":
            levels = one_threshold(landing, steps)
        else:
            levels = thresholds_by_set(landing, steps, sets_of(groups, bundles, choice.scopes), share)
    elif share is not None:
        levels = [bundle.nearest_level(round(share * min(bundle.sizes))) for bundle in bundles]
    else:
        levels = _common_share(landing)
    return landing.plan(groups, levels, orders)


def _only_target(asked: Mapping[str, float | None]) -> tuple[str, float]:
    given = {name: share for name, share in asked.items() if share is not None}
    if len(given) != 1:
        raise TargetError(f"give exactly one of {', '.join(asked)}; found {', '.join(given) or 'none'}")
    ((name, share),) = given.items()
    if name == "latency_ms":
        if not 0 < share < float("inf"):
            raise TargetError(f"{name} is {share:g}; expected milliseconds above 0")
    elif not 0 < share < 1:
        raise TargetError(f"{name} is {share:g}; expected a share between 0 and 1, both excluded")
    return name, share


def _target(groups: Groups, bundles: Sequence[Bundle], name: str, share: float) -> Target:
    label = f"{name} {share:g}"
    if name == "channel_sparsity":
        counted = [one for bundle in bundles if not bundle.ignored for one in bundle.names]
        total = sum(groups[one].size for one in counted)
        return Target(label, lambda kept: sum(kept[one] for one in counted), total - round(share * total))
    cost = Cost(groups)
    measure = cost.macs if name == "mac_reduction" else cost.parameters
    return Target(label, measure, (1 - share) * measure({}))


def _common_share(landing: Landing) -> list[int]:
    """Return the levels of the smallest common share that meets the target, then give single steps back."""

    def levels_at(share: float) -> list[int]:
        return [bundle.nearest_level(share * min(bundle.sizes)) for bundle in landing.bundles]

    def share_after(index: int, level: int) -> float:
        return landing.bundles[index].counts[level] / min(landing.bundles[index].sizes)

    landing.lowest()
    below, enough = landing.scale(levels_at)
    on_the_border = [index for index, level in enumerate(enough) if level > below[index]]
    return landing.settle(landing.give_back(enough, among=on_the_border), share_after)
