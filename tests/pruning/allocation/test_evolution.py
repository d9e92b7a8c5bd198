"""An evolutionary search meets its target, ends no worse than it began, and goes on from any generation."""

from __future__ import annotations

from math import inf

import pytest
import torch

import pruning
from pruning.allocation.budget import Budget, BudgetSolver
from pruning.allocation.evolution import Evolution, Generation, Levels, evolve, levels_of
from pruning.errors import TargetError
from pruning.plan.constraints import Limits, find_tied_groups
from pruning.plan.plan import Cost
from tests.pruning.networks import IMAGE, make

X = torch.randn(IMAGE)
SETTINGS = Evolution(generations=25, offspring=8, survivors=2, num_samples=64)


@pytest.fixture(scope="module")
def solver() -> BudgetSolver:
    groups = pruning.find_groups(make("Residual"), X[:1])
    cost = Cost(groups)
    return BudgetSolver(find_tied_groups(groups, Limits()), Budget("MACs", cost.macs, 0.5 * cost.macs({})))


def _start(solver: BudgetSolver) -> Levels:
    return tuple(solver.settle(solver.lowest(), lambda _index, level: level))


def _damage(levels: Levels) -> float:
    """Bundles differ in what they can bear: the first hardly anything, the last much."""
    return sum((len(levels) - index) ** 2 * level**2 for index, level in enumerate(levels))


def test_the_result_meets_the_target_and_is_better_than_a_bad_start(solver: BudgetSolver) -> None:
    asked: list[Levels] = []

    def judge(levels: Levels) -> float:
        asked.append(levels)
        return _damage(levels)

    end = evolve(solver, [_start(solver)], lambda levels, _: _damage(levels), judge, SETTINGS)
    assert all(solver.met(levels) for levels in asked)
    assert len(asked) == len(set(asked)) > SETTINGS.generations  # none is judged twice
    assert end.start == _damage(_start(solver))
    assert end.fitness == _damage(end.levels) == min(map(_damage, asked))
    assert end.fitness < 0.9 * end.start


def test_the_best_start_is_the_first_parent_and_nothing_worse_takes_its_place(solver: BudgetSolver) -> None:
    start, other = _start(solver), tuple(solver.lowest())
    constant = {start: 1.0, other: 2.0}
    end = evolve(solver, [other, start], None, lambda levels: constant.get(levels, 3.0), SETTINGS)
    assert (end.levels, end.fitness, end.start) == (start, 1.0, 2.0)


def test_a_search_goes_on_from_any_generation_to_the_same_end(solver: BudgetSolver) -> None:
    kept: list[Generation] = []

    def search(last: Generation | None = None, seed: int = 5) -> Generation:
        sift = lambda levels, _: _damage(levels)  # noqa: E731
        settings = SETTINGS.model_copy(update={"seed": seed})
        return evolve(solver, [_start(solver)], sift, _damage, settings, last=last, keep=kept.append)

    whole = search()
    for generation in kept[: SETTINGS.generations + 1]:
        again = Generation.model_validate_json(generation.model_dump_json(), strict=True)
        assert search(last=again) == whole
    first_drawn = kept[1].levels, kept[2].levels, kept[3].levels
    kept.clear()
    search(seed=6)
    assert (kept[1].levels, kept[2].levels, kept[3].levels) != first_drawn


def test_offspring_are_sifted_on_few_samples_and_the_survivors_alone_are_judged(solver: BudgetSolver) -> None:
    sifted: list[int] = []
    judged: list[Levels] = []

    def sift(levels: Levels, num_samples: int) -> float:
        sifted.append(num_samples)
        return _damage(levels)

    def judge(levels: Levels) -> float:
        judged.append(levels)
        return _damage(levels)

    settings = Evolution(generations=1, offspring=8, survivors=2, num_samples=512)
    evolve(solver, [_start(solver)], sift, judge, settings)
    assert sifted == [64] * 8 + [256] * 4
    assert len(judged) == 1 + 2


def test_without_a_finite_start_it_is_refused(solver: BudgetSolver) -> None:
    with pytest.raises(TargetError, match="no allocation that the search could start from"):
        evolve(solver, [_start(solver)], None, lambda _levels: inf)


def test_levels_of_a_plan_are_those_that_it_was_made_of() -> None:
    groups = pruning.find_groups(make("Residual"), X[:1])
    bundles = find_tied_groups(groups, Limits(), round_to=2)
    solver = BudgetSolver(bundles, Budget("none", lambda _kept: 0.0, 1.0))
    levels = tuple(min(index, len(one.counts) - 1) for index, one in enumerate(bundles))
    plan = solver.plan(groups, levels, {one.name: list(range(one.size)) for one in groups})
    assert levels_of(plan, bundles) == levels
