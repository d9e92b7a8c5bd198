"""A trial takes the first allocation that can't be told from the best, and says what came of each."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pruning.allocation.selection import JudgeEach, choose_by_trial
from pruning.errors import ModelError, SettingsError, TargetError
from pruning.plan.plan import Plan

PLANS = {name: Plan(removed={"g": (index,)}, sizes={"g": 8}) for index, name in enumerate(("a", "b", "c"))}
NOISE = torch.linspace(-1, 1, 100, dtype=torch.float64)


def judge(losses: dict[str, Tensor | ModelError], calls: list[str]) -> JudgeEach:
    names = {plan: name for name, plan in PLANS.items()}

    def losses_of(plan: Plan) -> Tensor:
        calls.append(names[plan])
        loss = losses[names[plan]]
        if isinstance(loss, ModelError):
            raise loss
        return loss

    return losses_of


def test_the_first_of_those_that_cant_be_told_from_the_best_is_taken() -> None:
    losses: dict[str, Tensor | ModelError] = {
        "a": 1 + NOISE + 0.5,
        "b": 1 + NOISE + 0.1 * NOISE.flip(0) + 1e-3,
        "c": 1 + NOISE,
    }
    found = choose_by_trial(PLANS, [judge(losses, [])])
    assert [one.name for one in found if one.chosen] == ["b"]
    a, b, c = found
    assert c.worse_by is None
    assert c.loss == pytest.approx(1)
    assert a.worse_by == pytest.approx((0.5, 0.5))  # noise that both share doesn't count: samples are compared in pairs
    half = 1.96 * float((0.1 * NOISE).std(correction=0)) / 10
    assert b.worse_by == pytest.approx((1e-3 - half, 1e-3 + half))


def test_a_round_drops_what_is_worse_and_the_next_judge_sees_the_others_alone() -> None:
    calls: list[str] = []
    first = judge({"a": NOISE + 3, "b": NOISE, "c": -NOISE}, [])
    second = judge({"a": NOISE - 9, "b": NOISE + 1, "c": NOISE}, calls)
    found = choose_by_trial(PLANS, [first, second])
    assert calls == ["b", "c"]
    assert [(one.name, one.chosen) for one in found] == [("a", False), ("b", False), ("c", True)]
    assert found[0].loss == pytest.approx(3)
    assert found[1].worse_by == pytest.approx((1, 1))
    assert [one.rounds for one in found] == [1, 2, 2]


def test_no_more_is_asked_once_one_is_left() -> None:
    calls: list[str] = []
    first = judge({"a": NOISE + 3, "b": NOISE, "c": NOISE + 2}, [])
    choose_by_trial(PLANS, [first, judge({}, calls)])
    assert calls == []


def test_equal_plans_are_judged_once_and_say_so() -> None:
    calls: list[str] = []
    plans = {"a": PLANS["a"], "again": PLANS["a"].model_copy(), "c": PLANS["c"]}
    found = choose_by_trial(plans, [judge({"a": NOISE, "c": NOISE + 1}, calls)])
    assert calls == ["a", "c"]
    assert [one.same_as for one in found] == [None, "a", None]
    assert found[1].loss == found[0].loss
    assert [one.chosen for one in found] == [True, False, False]


def test_where_all_plans_are_equal_nothing_is_judged() -> None:
    found = choose_by_trial({"a": PLANS["a"], "again": PLANS["a"]}, [judge({}, [])])
    assert [(one.chosen, one.loss, one.same_as) for one in found] == [(True, None, None), (False, None, "a")]


def test_a_plan_whose_model_has_no_loss_is_dropped_and_if_none_has_it_is_an_error() -> None:
    fault = ModelError("not finite")
    found = choose_by_trial(PLANS, [judge({"a": fault, "b": NOISE, "c": NOISE + 1}, [])])
    assert found[0].fault == "not finite"
    assert found[1].chosen
    with pytest.raises(TargetError, match="a: not finite; b: not finite; c: not finite"):
        choose_by_trial(PLANS, [judge(dict.fromkeys(PLANS, fault), [])])


def test_nothing_to_try_is_refused() -> None:
    with pytest.raises(SettingsError, match="nothing to try"):
        choose_by_trial({}, [judge({}, [])])
    with pytest.raises(SettingsError, match="nothing to try"):
        choose_by_trial(PLANS, [])
