"""Choose which channels go: a criterion's order within each group, and one target over all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from pruning.bundles import Bundle, Limits, find_bundles
from pruning.cost import Cost
from pruning.criteria import Criterion, find_criterion, order_channels, score_channels
from pruning.errors import SettingsError, TargetError, unknown_name
from pruning.evaluation import Loss, Samples, cross_entropy
from pruning.groups import Groups
from pruning.landing import Landing, Target
from pruning.plan import Plan
from pruning.statistics import Statistics, collect

_BISECTIONS = 50


def make_plan(
    groups: Groups,
    criterion: str | Criterion = "l2_norm",
    *,
    channel_sparsity: float | None = None,
    mac_reduction: float | None = None,
    parameter_reduction: float | None = None,
    scope: Literal["local", "global"] = "local",
    ignore: Sequence[str] = (),
    round_to: int = 1,
    keep_at_least: int = 1,
    max_sparsity: float = 1.0,
    statistics: Statistics | None = None,
    samples: Samples | None = None,
    loss: Loss = cross_entropy,
    seed: int = 0,
) -> Plan:
    """Make a plan that meets one target.

    local: every group gives the same share of its channels. With `channel_sparsity` that is round(share · size) of
    each, as near as `round_to`, `keep_at_least` and `max_sparsity` let it come; with a reduction the smallest share
    that meets it, and then single channels go or stay so that it is met closely.

    global: one threshold over the channels of all groups, each score divided by the mean of its group (so that layers
    compare); equal scores go by the group's place in the model, then by channel. `channel_sparsity` is then the share
    of the channels of all groups not ignored, removed to the exact number where groups are neither tied nor rounded.

    In both, no group is emptied, and groups tied to each other lose equal counts.

    Args:
        groups: found on the model to be pruned.
        criterion: a name (see `criteria.criterion_names()`) or a function (group, statistics) -> scores.
        channel_sparsity: share of channels to remove; exactly one of the three targets is given.
        mac_reduction: 1 − MACs after / before, over the whole model.
        parameter_reduction: 1 − parameters after / before, over the whole model.
        scope: "local" or "global".
        ignore: names, prefixes or patterns ("fc", "layer1.*") of modules or parameters; groups produced there stay
            whole.
        round_to: kept counts are multiples of this; a group not above it stays whole, with a warning in the log.
        keep_at_least: channels that each group keeps.
        max_sparsity: largest share that a group may lose.
        statistics: what the criterion needs, where it was gathered already.
        samples: for criteria that look at data.
        loss: for criteria that look at gradients.
        seed: for criteria that draw random numbers.

    Raises:
        TargetError: not exactly one target, a target outside (0, 1), one that can't be met or that removes nothing.
        CriterionError: the criterion is unknown or doesn't apply to a group.
        SettingsError: the scope is unknown, or an entry of `ignore` matches nothing.
    """
    asked = {
        "channel_sparsity": channel_sparsity,
        "mac_reduction": mac_reduction,
        "parameter_reduction": parameter_reduction,
    }
    name, share = _only_target(asked)
    if scope not in ("local", "global"):
        raise SettingsError(unknown_name("scope", scope, ("local", "global")))
    bundles = find_bundles(groups, Limits(ignore, round_to, keep_at_least, max_sparsity))
    if not any(len(bundle.counts) > 1 for bundle in bundles):
        held = "; ".join(f"{bundle.names[0]}: {bundle.obstacle}" for bundle in bundles[:6]) or "the model has none"
        raise TargetError(f"{name} {share:g} can't be met: no group can lose a channel ({held}). See groups.report()")
    free = [name for bundle in bundles if len(bundle.counts) > 1 for name in bundle.names]
    if statistics is None:
        statistics = collect(groups, find_criterion(criterion).needs, samples, loss, seed=seed)
    orders = {name: order_channels(criterion, groups[name], statistics) for name in free}
    landing = Landing(bundles, _target(groups, bundles, name, share))
    if scope == "global":
        scores = {name: score_channels(criterion, groups[name], statistics) for name in free}
        levels = _one_threshold(landing, _steps(bundles, orders, scores))
    elif name == "channel_sparsity":
        levels = [bundle.nearest_level(round(share * min(bundle.sizes))) for bundle in bundles]
        if not any(levels):
            raise TargetError(
                f"channel_sparsity {share:g} comes to no channel in any group; the largest that may lose some has "
                f"{max(groups[name].size for name in free)}: ask for more, or lower round_to"
            )
    else:
        levels = _common_share(landing)
    return landing.plan(groups, levels, orders)


def _only_target(asked: Mapping[str, float | None]) -> tuple[str, float]:
    given = {name: share for name, share in asked.items() if share is not None}
    if len(given) != 1:
        raise TargetError(f"give exactly one of {', '.join(asked)}; found {', '.join(given) or 'none'}")
    ((name, share),) = given.items()
    if not 0 < share < 1:
        raise TargetError(f"{name} is {share:g}; expected a share between 0 and 1, both excluded")
    return name, share


def _target(groups: Groups, bundles: Sequence[Bundle], name: str, share: float) -> Target:
    label = f"{name} {share:g}"
    if name == "channel_sparsity":
        counted = [one for bundle in bundles if not bundle.obstacle.startswith("ignored") for one in bundle.names]
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
    share_below, share_enough = 0.0, 1.0
    for _ in range(_BISECTIONS):
        middle = (share_below + share_enough) / 2
        if landing.met(levels_at(middle)):
            share_enough = middle
        else:
            share_below = middle
    below, enough = levels_at(share_below), levels_at(share_enough)
    on_the_border = [index for index, level in enumerate(enough) if level > below[index]]
    return landing.settle(landing.give_back(enough, among=on_the_border), share_after)


def _steps(
    bundles: Sequence[Bundle], orders: Mapping[str, Sequence[int]], scores: Mapping[str, Tensor]
) -> list[tuple[float, int, int]]:
    """Return every step of every bundle, (score, bundle, level), the first to go first.

    A step's score is the mean of the normalised scores of the channels it removes, and never below that of the step
    before it in its bundle: where an ordering departs from the scores, the ordering counts.
    """
    normalised = {
        name: values / (values.abs().mean() + torch.finfo(torch.float64).tiny) for name, values in scores.items()
    }
    steps = []
    for index, bundle in enumerate(bundles):
        reached = -torch.inf
        for level in range(1, len(bundle.counts)):
            gone = slice(bundle.counts[level - 1], bundle.counts[level])
            values = torch.cat([normalised[name][list(orders[name][gone])] for name in bundle.names])
            reached = max(reached, float(values.mean()))
            steps.append((reached, index, level))
    return sorted(steps)


def _one_threshold(landing: Landing, steps: Sequence[tuple[float, int, int]]) -> list[int]:
    """Return the levels after the fewest steps that meet the target, then give single steps back, the best first."""
    landing.lowest()

    def levels_after(count: int) -> list[int]:
        levels = [0] * len(landing.bundles)
        for _, index, level in steps[:count]:
            levels[index] = level
        return levels

    too_few, enough = -1, len(steps)
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        if landing.met(levels_after(middle)):
            enough = middle
        else:
            too_few = middle
    scores = {(index, level): score for score, index, level in steps}

    def score(index: int, level: int) -> float:
        return scores[index, level]

    return landing.settle(levels_after(enough), score, worth=score)
