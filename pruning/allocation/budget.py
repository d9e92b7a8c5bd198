"""What a plan is to reach, a type for each kind of target; and counts that come as near to it as they can."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypedDict

from pruning.errors import OutOfReachError, TargetError
from pruning.graph.groups import Groups
from pruning.latency.profile import Profile
from pruning.plan.constraints import TiedGroups
from pruning.plan.plan import Plan


@dataclass(frozen=True)
class _Share:
    """A share in (0, 1).

    Raises:
        TargetError: It is outside.
    """

    share: float

    name = ""

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise TargetError(f"{self.name} is {self.share:g}; expected a share between 0 and 1, both excluded")

    def __str__(self) -> str:
        return f"{self.name} {self.share:g}"


@dataclass(frozen=True)
class ChannelSparsity(_Share):
    """Share of the channels to remove: of each group in local scope, of all groups in global scope."""

    name = "channel_sparsity"


@dataclass(frozen=True)
class MacReduction(_Share):
    """1 − MACs after / before."""

    name = "mac_reduction"


@dataclass(frozen=True)
class ParameterReduction(_Share):
    """1 − parameters after / before."""

    name = "parameter_reduction"


@dataclass(frozen=True)
class LatencyReduction(_Share):
    """1 − latency after / before, as predicted from a profile.

    Attributes:
        profile: Of the model, or of one that it was narrowed from.
    """

    profile: Profile

    name = "latency_reduction"


@dataclass(frozen=True)
class LatencyMs:
    """Latency of a batch of the profile's size, as predicted from it.

    Attributes:
        milliseconds: At most so many.
        profile: Of the model, or of one that it was narrowed from.

    Raises:
        TargetError: The milliseconds are not above 0.
    """

    milliseconds: float
    profile: Profile

    name = "latency_ms"

    def __post_init__(self) -> None:
        if not 0 < self.milliseconds < float("inf"):
            raise TargetError(f"{self.name} is {self.milliseconds:g}; expected milliseconds above 0")

    def __str__(self) -> str:
        return f"{self.name} {self.milliseconds:g}"


Target = ChannelSparsity | MacReduction | ParameterReduction | LatencyReduction | LatencyMs


class TargetKeywords(TypedDict, total=False):
    """Short for the targets that are one number: `mac_reduction=0.5` for `MacReduction(0.5)`."""

    channel_sparsity: float
    mac_reduction: float
    parameter_reduction: float


_BY_KEYWORD = {one.name: one for one in (ChannelSparsity, MacReduction, ParameterReduction)}


def the_target(target: Target | None, keywords: TargetKeywords) -> Target:
    """Return the one target that a caller gave, as a value or by a keyword.

    Raises:
        TargetError: There is none, or more than one.
        TypeError: A keyword is unknown.
    """
    for name in keywords:
        if name not in _BY_KEYWORD:
            raise TypeError(f"unexpected keyword argument {name!r}; targets by keyword are {', '.join(_BY_KEYWORD)}")
    given = [kind(keywords[name]) for name, kind in _BY_KEYWORD.items() if name in keywords]  # type: ignore[literal-required]
    asked = [*given, *([] if target is None else [target])]
    if len(asked) != 1:
        raise TargetError(
            f"give exactly one target, such as mac_reduction=0.5 or LatencyMs(3.0, profile); "
            f"found {', '.join(str(one) for one in asked) or 'none'}"
        )
    return asked[0]


Measure = Callable[[Mapping[str, int]], float]
"""Channels kept per group (a group that is missing keeps all) -> what the model then costs. It must not rise when
channels go."""

_SHOWN = 6
_BISECTIONS = 50
_TOLERANCE = 0.005


@dataclass(frozen=True)
class Budget:
    """A cost to come down to.

    Attributes:
        name: what messages call it, such as "mac_reduction 0.5".
        measure: the cost of any counts.
        at_most: the cost to reach.
        parts: the targets that it joins, where it joins several.
    """

    name: str
    measure: Measure
    at_most: float
    parts: tuple[Budget, ...] = ()

    def met(self, cost: float) -> bool:
        """Say whether a cost is low enough; rounding in the last digits is forgiven."""
        return cost <= self.at_most + 1e-9 * abs(self.at_most)


def joined(targets: Sequence[Budget]) -> Budget:
    """Return the target that is met where all of these are: the largest of their costs as shares of what is asked."""
    if len(targets) == 1:
        return targets[0]

    def measure(kept: Mapping[str, int]) -> float:
        return max(one.measure(kept) / one.at_most for one in targets)

    return Budget(" and ".join(one.name for one in targets), measure, 1.0, tuple(targets))


class BudgetSolver:
    """Counts under way to a target: one level per bundle, an index into its `counts`."""

    def __init__(self, bundles: Sequence[TiedGroups], target: Budget) -> None:
        self.bundles = bundles
        self.budget = target

    def cost(self, levels: Sequence[int]) -> float:
        """Return what the model costs at these levels."""
        kept: dict[str, int] = {}
        for bundle, level in zip(self.bundles, levels, strict=True):
            kept |= bundle.kept(bundle.counts[level])
        return self.budget.measure(kept)

    def met(self, levels: Sequence[int]) -> bool:
        """Say whether these levels meet the target."""
        return self.budget.met(self.cost(levels))

    @property
    def highest(self) -> list[int]:
        """The levels at which every bundle gives all it may."""
        return [len(bundle.counts) - 1 for bundle in self.bundles]

    def in_reach(self) -> bool:
        """Say whether the target can be met at all."""
        return self.met(self.highest)

    def lowest(self) -> list[int]:
        """Return the levels at which the model costs least.

        Raises:
            OutOfReachError: they don't meet the target; the text says how far they get and what stands in the way.
        """
        levels = self.highest
        if not self.met(levels):
            raise self._out_of_reach(levels)
        return levels

    def scale(self, levels_at: Callable[[float], list[int]], highest: float = 1.0) -> tuple[list[int], list[int]]:
        """Bisect for the smallest factor whose levels meet the target.

        Args:
            levels_at: the levels of a factor; their cost falls as it rises.
            highest: a factor whose levels meet the target.

        Returns:
            The levels just below that factor, and those at it.
        """
        below, enough = 0.0, highest
        for _ in range(_BISECTIONS):
            middle = (below + enough) / 2
            if self.met(levels_at(middle)):
                enough = middle
            else:
                below = middle
        return levels_at(below), levels_at(enough)

    def give_back(
        self, levels: Sequence[int], *, worth: Callable[[int, int], float] | None = None, among: Sequence[int] = ()
    ) -> list[int]:
        """Give single steps back while the target stays met.

        Args:
            levels: they meet the target.
            worth: (bundle, level) -> how much it matters to give that step back; the greatest goes first. None: the
                step that lands nearest to the target.
            among: only these bundles; all if empty.

        Returns:
            Levels that meet the target and none of whose single steps can be given back.
        """
        levels = list(levels)
        candidates = set(among or range(len(self.bundles)))
        while True:
            fitting = []
            for index in sorted(candidates):
                if levels[index] == 0:
                    candidates.discard(index)
                    continue
                levels[index] -= 1
                cost = self.cost(levels)
                levels[index] += 1
                if self.budget.met(cost):
                    fitting.append((worth(index, levels[index]) if worth else cost, -index))
                else:
                    candidates.discard(index)  # costs only rise from here, so it can't fit later
            if not fitting:
                return levels
            levels[-max(fitting)[1]] -= 1

    def climb(
        self, levels: Sequence[int], price: Callable[[int, int], float], highest: Sequence[int], *, without: int = -1
    ) -> list[int] | None:
        """Take single steps, the cheapest first, until the target is met.

        Args:
            levels: where to start.
            price: (bundle, level) -> price of the step to that level.
            highest: no bundle goes above its level here.
            without: a bundle that stays as it is.

        Returns:
            Levels that meet the target; None if there are none below `highest`.
        """
        levels = list(levels)
        while not self.met(levels):
            free = [index for index, level in enumerate(levels) if level < highest[index] and index != without]
            if not free:
                return None
            cheapest = min(free, key=lambda index: (price(index, levels[index] + 1), index))
            levels[cheapest] += 1
        return levels

    def settle(
        self,
        levels: Sequence[int],
        price: Callable[[int, int], float],
        *,
        worth: Callable[[int, int], float] | None = None,
    ) -> list[int]:
        """Come as near to the target as single steps allow, down to a tolerance of 0.5 % of the whole cost.

        Steps are given back while the target stays met. If that leaves it overshot by more than the tolerance, a step
        of one bundle is exchanged for cheaper ones of the others, as long as that brings it nearer.

        Args:
            levels: they meet the target.
            price: (bundle, level) -> price of the step to that level, for `climb`.
            worth: for `give_back`.
        """
        enough = self.budget.at_most - _TOLERANCE * self.cost([0] * len(self.bundles))
        best = self.give_back(levels, worth=worth)
        while (cost := self.cost(best)) < enough:
            exchanged = []
            for index in (index for index, level in enumerate(best) if level):
                start = [level - (place == index) for place, level in enumerate(best)]
                if (found := self.climb(start, price, self.highest, without=index)) is not None:
                    found = self.give_back(found, worth=worth)
                    exchanged.append((self.cost(found), -index, found))
            if not exchanged or max(exchanged)[0] <= cost:
                break
            best = max(exchanged)[2]
        return best

    def plan(self, groups: Groups, levels: Sequence[int], orders: Mapping[str, Sequence[int]]) -> Plan:
        """Turn levels into a plan: each group loses the first channels of its order."""
        removed = {
            name: list(orders[name][:count])
            for bundle, level in zip(self.bundles, levels, strict=True)
            if bundle.counts[level]
            for name, count in bundle.removed(bundle.counts[level]).items()
        }
        return Plan.of(groups, removed)

    def _out_of_reach(self, levels: Sequence[int]) -> OutOfReachError:
        whole = self.cost([0] * len(levels))
        reached = self.cost(levels)
        by_size = sorted(zip(self.bundles, levels, strict=True), key=lambda pair: pair[0].counts[-1] - pair[0].sizes[0])
        held = [
            f"{bundle.names[0]} keeps {bundle.kept(bundle.counts[level])[bundle.names[0]]} of {bundle.sizes[0]} "
            f"({bundle.obstacle})"
            for bundle, level in by_size
        ]
        more = f"; and {len(held) - _SHOWN} groups more" if len(held) > _SHOWN else ""
        standing = "; ".join(held[:_SHOWN]) + more if held else "the model has no prunable group"
        least = f"{1 - reached / max(whole, 1e-9):.1%} less"
        return OutOfReachError(
            f"{self.budget.name} can't be met: from {_shown(whole)} now to {_shown(self.budget.at_most)} was asked, "
            f"{_shown(reached)} ({least}) is the least. In the way: {standing}; "
            "and every layer in no group (see groups.report())",
            f"{least} is the least",
        )


def _shown(cost: float) -> str:
    return f"{cost:,.0f}" if cost >= 1000 else f"{cost:.4g}"
