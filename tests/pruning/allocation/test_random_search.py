"""One-step search keeps the best of many plans that meet the same target."""

from __future__ import annotations

import pytest
import torch

import pruning
from pruning.allocation.budget import Budget, BudgetSolver
from pruning.allocation.knapsack import search
from pruning.errors import SettingsError, TargetError
from pruning.plan.constraints import Limits, find_tied_groups
from pruning.plan.plan import Cost, Plan
from tests.pruning.networks import IMAGE, make

X = torch.randn(IMAGE)


def _landing(groups: pruning.Groups, share: float) -> BudgetSolver:
    cost = Cost(groups)
    return BudgetSolver(find_tied_groups(groups, Limits()), Budget("MACs", cost.macs, share * cost.macs({})))


def _orders(groups: pruning.Groups) -> dict[str, list[int]]:
    return {group.name: list(range(group.size)) for group in groups}


def test_every_candidate_meets_the_target_and_the_best_is_returned() -> None:
    groups = pruning.find_groups(make("Residual"), X[:1])
    solver, seen = _landing(groups, 0.5), list[Plan]()

    def judge(plan: Plan) -> float:
        seen.append(plan)
        return -len(plan.removed.get(next(iter(groups)).name, ()))  # the first group matters most

    best = search(groups, solver, _orders(groups), judge, candidates=12, seed=3)
    whole = pruning.count_macs(groups)
    assert len(seen) > 4
    for plan in seen:
        assert 0.44 * whole < pruning.count_macs(groups, plan) <= 0.5 * whole
    assert judge(best) == max(judge(plan) for plan in list(seen))
    assert search(groups, solver, _orders(groups), judge, candidates=12, seed=3).removed == best.removed


def test_the_first_candidate_gives_the_same_share_of_every_group() -> None:
    groups = pruning.find_groups(make("Residual"), X[:1])
    plan = search(groups, _landing(groups, 0.5), _orders(groups), lambda _: 0.0, candidates=1)
    rates = [len(plan.removed.get(group.name, ())) / group.size for group in groups]
    assert max(rates) - min(rates) < 0.35


def test_no_candidates_and_targets_out_of_reach_are_refused() -> None:
    groups = pruning.find_groups(make("Residual"), X[:1])
    with pytest.raises(SettingsError, match="candidates is 0"):
        search(groups, _landing(groups, 0.5), _orders(groups), lambda _: 0.0, candidates=0)
    with pytest.raises(TargetError, match="can't be met"):
        search(groups, _landing(groups, 1e-6), _orders(groups), lambda _: 0.0, candidates=2)
