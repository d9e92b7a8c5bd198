from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pruning.allocation.budget import Budget, BudgetSolver
from pruning.errors import TargetError
from pruning.plan.constraints import TiedGroups


def solver(weights: list[int], sizes: list[int], at_most: float, step: int = 1) -> BudgetSolver:
    """Bundles of one group each; a channel of group i costs weights[i]."""
    bundles = [
        TiedGroups((str(index),), (size,), tuple(range(0, size, step)), "it is a test")
        for index, size in enumerate(sizes)
    ]

    def measure(kept: Mapping[str, int]) -> float:
        return sum(weight * kept[str(index)] for index, weight in enumerate(weights))

    return BudgetSolver(bundles, Budget("cost 0.5", measure, at_most))


@st.composite
def landings(draw: st.DrawFn) -> BudgetSolver:
    sizes = draw(st.lists(st.integers(2, 12), min_size=1, max_size=5))
    weights = draw(st.lists(st.integers(1, 50), min_size=len(sizes), max_size=len(sizes)))
    whole = sum(a * b for a, b in zip(weights, sizes, strict=True))
    return solver(weights, sizes, draw(st.integers(sum(weights), whole)))


@settings(deadline=None)
@given(landings())
def test_settled_levels_meet_the_target_and_no_step_can_be_given_back(under_way: BudgetSolver) -> None:
    levels = under_way.settle(under_way.lowest(), lambda index, level: level)
    assert under_way.met(levels)
    for index, level in enumerate(levels):
        if level:
            assert not under_way.met([*levels[:index], level - 1, *levels[index + 1 :]])


def test_coarse_step_is_exchanged_for_fine_ones() -> None:
    # 10 channels at 100 and 50 at 3, 1150 in all; from 1150 to at most 1100: the coarse step is dear, 17 fine ones fit
    under_way = solver([100, 3], [10, 50], 1100)
    levels = under_way.settle([1, 0], lambda index, level: index)
    assert levels == [0, 17]


def test_most_worthy_step_is_given_back_first() -> None:
    under_way = solver([10, 10], [10, 10], 160)
    assert under_way.give_back([3, 3], worth=lambda index, level: index) == [3, 1]
    assert under_way.give_back([3, 3], worth=lambda index, level: -index) == [1, 3]
    assert under_way.give_back([3, 3], among=[0]) == [1, 3]


def test_climb_takes_the_cheapest_and_stays_below_the_highest() -> None:
    under_way = solver([10, 10], [10, 10], 150)
    assert under_way.climb([0, 0], lambda index, level: level + 10 * index, [9, 9]) == [5, 0]
    assert under_way.climb([0, 0], lambda index, level: level + 10 * index, [2, 9]) == [2, 3]
    assert under_way.climb([0, 0], lambda index, level: level, [9, 9], without=0) == [0, 5]
    assert under_way.climb([0, 0], lambda index, level: level, [2, 2]) is None


def test_out_of_reach_names_the_groups_that_keep_most() -> None:
    under_way = solver([1, 1], [9, 5], 1, step=4)
    with pytest.raises(TargetError) as caught:
        under_way.lowest()
    text = str(caught.value)
    assert "cost 0.5 can't be met: from 14 now to 1 was asked, 2 (85.7% less) is the least" in text
    assert "keeps 1 of 9 (it is a test)" in text
