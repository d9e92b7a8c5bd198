"""Decide how much each group gives: least predicted damage for the cost that has to go.

Each bundle b that loses c channels does damage D_b(c), read off its sensitivity curve, and saves S_b(c) of the cost.
For a price λ it gives the c that minimises D_b(c) − λ · S_b(c); λ rises, by bisection, until the exact cost of all that
is given meets the target. Savings are taken with the other groups as they are; the cost that is compared with the
target is the exact one.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pruning.choosing.landing import Landing, Measure, Target
from pruning.choosing.sensitivity import Curve
from pruning.errors import TargetError
from pruning.structure.bundles import Bundle, Limits, find_bundles
from pruning.structure.groups import Groups
from pruning.structure.plan import Plan

_BISECTIONS = 100
_PRIOR = 0.01  # share of the typical damage, see _offers
_COSTS_PER_GROUP = 17  # between these the saving is taken as linear; it is a polynomial of low degree

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Offer:
    """What a bundle can give, by level: the damage it does and the share of the cost it saves."""

    damage: NDArray[np.float64]
    saving: NDArray[np.float64]

    def level_at(self, price: float) -> int:
        """Return the level of the least damage at a price; of equals, the one that gives more."""
        value = self.damage - price * self.saving
        return int(np.flatnonzero(value == value.min())[-1])


def allocate(
    groups: Groups,
    curves: Sequence[Curve],
    orders: Mapping[str, Sequence[int]],
    *,
    measure: Measure,
    at_most: float,
    name: str = "the target",
    max_group_rate: float = 0.9,
    keep_at_least: int = 1,
    round_to: int = 1,
    ignore: Sequence[str] = (),
) -> Plan:
    """Make the plan that meets a cost with the least predicted loss.

    The curves may have been measured on a wider ancestor of the model at hand (same group names, more channels): damage
    is then counted from where the group stands on its curve. A group without points on a curve stays whole.

    Args:
        groups: of the model at hand.
        curves: sensitivity of its groups; a bundle of tied groups needs one for one of them.
        orders: for each group its channels, the first to go first (`criteria.order_channels`).
        measure: the cost of any counts, such as `Cost(groups).macs`.
        at_most: the cost to come down to, in the measure's own unit.
        name: what messages call the target.
        max_group_rate: largest share of its channels, as its curve knows it, that a group may lose in all.
        keep_at_least: channels that each group keeps.
        round_to: kept counts are multiples of this.
        ignore: names, prefixes or patterns of modules or parameters; groups produced there stay whole.

    Returns:
        A plan whose cost is at most `at_most`, by no more than 0.5 % of the whole where single channels allow it; empty
        if the model at hand meets the target already.

    Raises:
        TargetError: the target can't be met (the text says how far it got and what stands in the way), or a curve was
            measured on a narrower model.
        SettingsError: an entry of `ignore` matches nothing, or a limit is out of bounds.
    """
    by_group = {member: curve for curve in curves if curve.points for member in curve.measured_with}
    by_group |= {curve.group: curve for curve in curves if curve.points}
    sizes = {one.name: by_group[one.name].size for one in groups if one.name in by_group}
    _check_sizes(groups, sizes)
    limits = Limits(ignore, round_to, keep_at_least, max_group_rate)
    bundles = [_held_without_curve(bundle, by_group) for bundle in find_bundles(groups, limits, original_sizes=sizes)]
    landing = Landing(bundles, Target(name, measure, at_most))
    nothing = [0] * len(bundles)
    if landing.met(nothing):
        return landing.plan(groups, nothing, orders)
    landing.lowest()
    offers = _offers(landing, by_group)
    below, enough = _bisect(landing, offers)

    def price(index: int, level: int) -> float:
        return _ratio(offers[index], level)

    reached = landing.climb(below, price, enough) or enough
    levels = landing.settle(reached, price, worth=price)
    return landing.plan(groups, levels, orders)


def predicted_damage(curve: Curve, removed: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the loss that a curve predicts for numbers of removed channels, above the whole model's.

    The monotone envelope (a group doesn't heal by losing more; what a sample measured below the whole model counts as
    nothing), linear between the points in channel counts, and beyond the last as steep as it ever was.
    """
    counts = np.array([0.0, *(point.removed for point in curve.points)])
    losses = np.array([0.0, *(point.loss - curve.baseline_loss for point in curve.points)])
    envelope = np.maximum.accumulate(np.maximum(losses, 0.0))
    steepest = float(np.max(np.diff(envelope) / np.diff(counts)))
    beyond = np.maximum(removed - counts[-1], 0.0) * steepest
    inside: NDArray[np.float64] = np.interp(removed, counts, envelope)
    damage: NDArray[np.float64] = inside + beyond
    return damage


def _offers(landing: Landing, curves: Mapping[str, Curve]) -> list[_Offer]:
    """Tabulate damage and saving of every bundle at every level.

    A share of the typical damage, growing with the square of the rate, is added to every curve: where the curves are
    silent, all groups give alike, and nothing is given for nothing.
    """
    ends = [predicted_damage(curve, np.array([float(curve.size)]))[0] for curve in curves.values()]
    prior = _PRIOR * float(np.median([end for end in ends if end > 0])) if any(ends) else 1.0
    whole = landing.cost([0] * len(landing.bundles))
    offers = []
    for index, bundle in enumerate(landing.bundles):
        sampled = np.unique(np.linspace(0, len(bundle.counts) - 1, _COSTS_PER_GROUP).round().astype(int))
        costs = []
        for level in sampled.tolist():
            levels = [0] * len(landing.bundles)
            levels[index] = level
            costs.append(landing.cost(levels))
        saving = (whole - np.interp(np.arange(len(bundle.counts)), sampled, costs)) / whole
        damage = np.zeros(len(bundle.counts))
        if len(bundle.counts) > 1:
            member, size = next(
                (name, size) for name, size in zip(bundle.names, bundle.sizes, strict=True) if name in curves
            )
            curve = curves[member]
            gone = curve.size - size + np.array(bundle.counts, dtype=np.float64)
            total = predicted_damage(curve, gone) + prior * (gone / curve.size) ** 2
            damage = total - total[0]
        offers.append(_Offer(damage, saving))
    return offers


def _bisect(landing: Landing, offers: Sequence[_Offer]) -> tuple[list[int], list[int]]:
    """Return the levels at two neighbouring prices, of which the second meets the target and the first doesn't."""

    def levels_at(price: float) -> list[int]:
        return [offer.level_at(price) for offer in offers]

    low, high = 0.0, 1e-6
    below = [0] * len(offers)
    for _ in range(_BISECTIONS):
        if landing.met(enough := levels_at(high)):
            break
        low, high, below = high, high * 4, enough
    else:
        return below, landing.lowest()
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        levels = levels_at(middle)
        if landing.met(levels):
            high, enough = middle, levels
        else:
            low, below = middle, levels
    return below, enough


def _ratio(offer: _Offer, level: int) -> float:
    """Return the damage per saving of one step."""
    saving = float(offer.saving[level] - offer.saving[level - 1])
    damage = float(offer.damage[level] - offer.damage[level - 1])
    return damage / saving if saving > 0 else float("inf")


def _held_without_curve(bundle: Bundle, curves: Mapping[str, Curve]) -> Bundle:
    if len(bundle.counts) == 1 or any(name in curves for name in bundle.names):
        return bundle
    _log.warning("group %s stays whole: it has no sensitivity curve", bundle.names[0])
    return replace(bundle, counts=(0,), obstacle="no sensitivity curve")


def _check_sizes(groups: Groups, sizes: Mapping[str, int]) -> None:
    for group in groups:
        if sizes.get(group.name, group.size) < group.size:
            raise TargetError(
                f"group {group.name!r} has {group.size} channels but its sensitivity was measured with "
                f"{sizes[group.name]}: the curves belong to another model; measure them again"
            )
