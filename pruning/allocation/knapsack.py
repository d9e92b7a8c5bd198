"""How much each group gives: least predicted damage for the cost that has to go, or the best of many random shares.

A knapsack: each bundle b that loses c channels does damage D_b(c), read off its sensitivity curve, and saves S_b(c) of
the cost. Solved in three steps, each of them deterministic:

    1. for a price λ every bundle gives the c that minimises D_b(c) − λ · S_b(c); λ rises, by bisection, until the exact
       cost of all that is given meets the target
    2. between the two last prices single steps are taken, the one of least damage per saving first
    3. as long as it lowers the damage, a step of one bundle is given back and cheaper ones of others are taken for it

Savings are taken with the other groups at where they ended before, at first whole, and all is done again while that
lowers the damage. The cost that is compared with the target is the exact one.

Source: the price is Lagrange's multiplier for discrete choices, Everett 1963, Operations Research 11(3). Latency as the
knapsack's weight, in groups of as many channels as the hardware takes at a time, is after Shen et al. 2022 (HALP),
arXiv 2210.06659; ours takes curves of the loss for the worth and exact costs, which multiply between layers.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from pruning.allocation.budget import BudgetSolver
from pruning.allocation.sensitivity import Curve, predicted_damage
from pruning.errors import SettingsError, TargetError
from pruning.evaluation import Progress
from pruning.graph.groups import Groups
from pruning.plan.constraints import TiedGroups
from pruning.plan.plan import Plan

_BISECTIONS = 100
_PRIOR = 0.01  # share of the typical damage, see _offers
_COSTS_PER_GROUP = 17  # between these the saving is taken as linear; it is a polynomial of low degree
_ROUNDS = 4  # of savings taken anew

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
    groups: Groups, solver: BudgetSolver, curves: Sequence[Curve], orders: Mapping[str, Sequence[int]]
) -> Plan:
    """Make the plan that meets a target with the least predicted loss.

    The curves may have been measured on a wider ancestor of the model at hand (same group names, more channels): damage
    is then counted from where the group stands on its curve. A group without points on a curve stays whole; none goes
    beyond the last point of its curve, unless the target can't be met otherwise.

    Args:
        groups: of the model at hand.
        solver: bundles and target.
        curves: sensitivity of the groups; a bundle of tied groups needs one for one of them.
        orders: for each group its channels, the first to go first (`criteria.order_channels`).

    Returns:
        A plan that meets the target, by no more than 0.5 % of the whole where single channels allow it; empty if the
        model at hand meets it already.

    Raises:
        TargetError: the target can't be met (the text says how far it got and what stands in the way), or a curve was
            measured on a narrower model.
    """
    by_group = {member: curve for curve in curves if curve.points for member in curve.measured_with}
    by_group |= {curve.group: curve for curve in curves if curve.points}
    _check_sizes(groups, {one.name: by_group[one.name].size for one in groups if one.name in by_group})
    solver = BudgetSolver([_held_without_curve(bundle, by_group) for bundle in solver.bundles], solver.budget)
    nothing = [0] * len(solver.bundles)
    if solver.met(nothing):
        return solver.plan(groups, nothing, orders)
    solver.lowest()
    solver = _as_measured(solver, by_group)
    damages = _damages(solver, by_group)
    best, around, least = nothing, nothing, float("inf")
    for _ in range(_ROUNDS):
        found = _solve(solver, damages, around)
        damage = _total(damages, found)
        if damage >= least:
            break
        best, around, least = found, found, damage
    return solver.plan(groups, best, orders)


def _solve(solver: BudgetSolver, damages: Sequence[NDArray[np.float64]], around: Sequence[int]) -> list[int]:
    """Return levels that meet the target, with savings taken around some levels."""
    offers = [_Offer(damage, saving) for damage, saving in zip(damages, _savings(solver, around), strict=True)]
    below, enough = _bisect(solver, offers)

    def price(index: int, level: int) -> float:
        return _ratio(offers[index], level)

    levels = solver.settle(solver.climb(below, price, enough) or enough, price, worth=price)
    while True:
        exchanged = []
        for index in (index for index, level in enumerate(levels) if level):
            start = [level - (place == index) for place, level in enumerate(levels)]
            found = solver.climb(start, price, solver.highest, without=index)
            if found is not None:
                found = solver.give_back(found, worth=price)
                exchanged.append((_total(damages, found), index, found))
        if not exchanged or min(exchanged)[0] >= _total(damages, levels) * (1 - 1e-9):
            return levels
        levels = min(exchanged)[2]


def _total(damages: Sequence[NDArray[np.float64]], levels: Sequence[int]) -> float:
    return float(sum(damage[level] for damage, level in zip(damages, levels, strict=True)))


def _damages(solver: BudgetSolver, curves: Mapping[str, Curve]) -> list[NDArray[np.float64]]:
    """Tabulate the damage of every bundle at every level.

    A share of the typical damage, growing with the square of the rate, is added to every curve: where the curves are
    silent, all groups give alike, and nothing is given for nothing.
    """
    ends = [predicted_damage(curve, np.array([float(curve.size)]))[0] for curve in curves.values()]
    prior = _PRIOR * float(np.median([end for end in ends if end > 0])) if any(ends) else 1.0
    found = []
    for bundle in solver.bundles:
        damage = np.zeros(len(bundle.counts))
        if len(bundle.counts) > 1:
            member, size = next(
                (name, size) for name, size in zip(bundle.names, bundle.sizes, strict=True) if name in curves
            )
            curve = curves[member]
            gone = curve.size - size + np.array([bundle.removed(count)[member] for count in bundle.counts], np.float64)
            total = predicted_damage(curve, gone) + prior * (gone / curve.size) ** 2
            damage = total - total[0]
        found.append(damage)
    return found


def _savings(solver: BudgetSolver, around: Sequence[int]) -> list[NDArray[np.float64]]:
    """Tabulate the share of the cost that every bundle saves at every level, the others being at some levels.

    Of several targets, those that are not met yet count alike.
    """
    target, nothing = solver.budget, [0] * len(solver.bundles)
    parts = [BudgetSolver(solver.bundles, part) for part in target.parts or (target,)]
    wholes = {part: part.cost(nothing) for part in parts if not part.met(nothing)}
    savings = []
    for index, bundle in enumerate(solver.bundles):
        sampled = np.unique(np.linspace(0, len(bundle.counts) - 1, _COSTS_PER_GROUP).round().astype(int))
        saving = np.zeros(len(bundle.counts))
        for part, whole in wholes.items():
            costs = [part.cost([*around[:index], level, *around[index + 1 :]]) for level in sampled.tolist()]
            saving += (costs[0] - np.interp(np.arange(len(bundle.counts)), sampled, costs)) / whole
        savings.append(saving)
    return savings


def _bisect(solver: BudgetSolver, offers: Sequence[_Offer]) -> tuple[list[int], list[int]]:
    """Return the levels at two neighbouring prices, of which the second meets the target and the first doesn't."""

    def levels_at(price: float) -> list[int]:
        return [offer.level_at(price) for offer in offers]

    low, high = 0.0, 1e-6
    below = [0] * len(offers)
    for _ in range(_BISECTIONS):
        if solver.met(enough := levels_at(high)):
            break
        low, high, below = high, high * 4, enough
    else:
        return below, solver.lowest()
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        levels = levels_at(middle)
        if solver.met(levels):
            high, enough = middle, levels
        else:
            low, below = middle, levels
    return below, enough


def _ratio(offer: _Offer, level: int) -> float:
    """Return the damage per saving of one step."""
    saving = float(offer.saving[level] - offer.saving[level - 1])
    damage = float(offer.damage[level] - offer.damage[level - 1])
    return damage / saving if saving > 0 else float("inf")


def _held_without_curve(bundle: TiedGroups, curves: Mapping[str, Curve]) -> TiedGroups:
    if len(bundle.counts) == 1 or any(name in curves for name in bundle.names):
        return bundle
    _log.warning("group %s stays whole: it has no sensitivity curve", bundle.names[0])
    return replace(bundle, counts=(0,), obstacle="no sensitivity curve")


def _as_measured(solver: BudgetSolver, curves: Mapping[str, Curve]) -> BudgetSolver:
    """Leave to each bundle the counts up to where its curve ends: beyond lies a guess, and there networks collapse.

    Where the target is out of their reach, all counts stay.
    """
    measured = []
    for bundle in solver.bundles:
        ends = [
            (curves[name].points[-1].removed - (curves[name].size - size)) // unit
            for name, size, unit in zip(bundle.names, bundle.sizes, bundle.removed(1).values(), strict=True)
            if name in curves
        ]
        counts = tuple(count for count in bundle.counts if not count or count <= min(ends, default=0))
        measured.append(replace(bundle, counts=counts, obstacle=f"{bundle.obstacle}, as far as its curve goes"))
    found = BudgetSolver(measured, solver.budget)
    if found.in_reach():
        return found
    _log.warning(
        "%s is out of reach of what the sensitivity curves measured; they are extrapolated", solver.budget.name
    )
    return solver


def _check_sizes(groups: Groups, sizes: Mapping[str, int]) -> None:
    for group in groups:
        if sizes.get(group.name, group.size) < group.size:
            raise TargetError(
                f"group {group.name!r} has {group.size} channels but its sensitivity was measured with "
                f"{sizes[group.name]}: the curves belong to another model; measure them again"
            )


Judge = Callable[[Plan], float]
"""plan -> how good the model is that it leaves; the highest wins."""


def search(
    groups: Groups,
    solver: BudgetSolver,
    orders: Mapping[str, Sequence[int]],
    judge: Judge,
    *,
    candidates: int,
    seed: int = 0,
    progress: Progress | None = None,
) -> Plan:
    """Return the best of so many plans that meet a target.

    A candidate draws a rate for each bundle of groups, uniform over what the bundle may give, and all rates are brought
    to the target by a common factor; then single channels go or stay so that it is met closely. The first candidate
    draws nothing: it gives the same share of every group.

    Source: Li et al. 2020 (EagleEye), arXiv 2007.02491: candidates are judged after their batch norms were measured
    anew, which tells their rank after fine-tuning; that is the caller's `judge`.

    Args:
        groups: found on the model to be pruned.
        solver: bundles and target.
        orders: for each group its channels, the first to go first.
        judge: called once for each candidate.
        candidates: how many.
        seed: of the rates.
        progress: told after each candidate.

    Raises:
        TargetError: the target can't be met.
        SettingsError: there are no candidates.
    """
    if candidates < 1:
        raise SettingsError(f"candidates is {candidates}; expected 1 or more")
    solver.lowest()
    generator = torch.Generator().manual_seed(seed)
    seen: dict[tuple[int, ...], float] = {}
    for number in range(candidates):
        drawn = torch.rand(len(solver.bundles), generator=generator, dtype=torch.float64).tolist()
        levels = tuple(_to_target(solver, drawn if number else [1.0] * len(drawn)))
        if levels not in seen:
            seen[levels] = judge(solver.plan(groups, levels, orders))
        if progress is not None:
            progress(number + 1, candidates)
    best = max(seen, key=lambda levels: (seen[levels], [-level for level in levels]))
    return solver.plan(groups, best, orders)


def _to_target(solver: BudgetSolver, rates: Sequence[float]) -> list[int]:
    """Scale rates by the smallest common factor that meets the target."""

    def levels_at(factor: float) -> list[int]:
        return [
            bundle.nearest_level(min(1.0, factor * rate) * bundle.counts[-1])
            for bundle, rate in zip(solver.bundles, rates, strict=True)
        ]

    def rate_after(index: int, level: int) -> float:
        bundle = solver.bundles[index]
        return bundle.counts[level] / max(bundle.counts[-1] * rates[index], 1e-9)

    highest = 1.0 / max(min(rates), 1e-3)
    if not solver.met(levels_at(highest)):
        return solver.settle(solver.lowest(), rate_after)
    return solver.settle(solver.scale(levels_at, highest)[1], rate_after)
