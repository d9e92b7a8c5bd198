from __future__ import annotations

from dataclasses import replace
from itertools import product
from math import log
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pruning import find_groups
from pruning.allocation import knapsack
from pruning.allocation.budget import Budget, BudgetSolver, Measure
from pruning.allocation.sensitivity import Curve, Point, predicted_damage
from pruning.errors import TargetError
from pruning.graph.groups import Groups
from pruning.plan.constraints import Limits, find_tied_groups
from pruning.plan.narrow import narrow
from pruning.plan.plan import Cost, Plan
from zoo.models import resnet20

EXAMPLE = torch.zeros(1, 1, 8, 8)


def curve(name: str, size: int, damage: list[float], *, baseline: float = 0.1) -> Curve:
    """A curve over evenly spaced counts, the last at all but one channel."""
    counts = np.linspace(0, size - 1, len(damage) + 1).round().astype(int)[1:]
    points = tuple(
        Point(rate=int(count) / size, removed=int(count), score=0.9, loss=baseline + extra)
        for count, extra in zip(counts, damage, strict=True)
    )
    return Curve(
        group=name, measured_with=(name,), size=size, baseline_score=0.9, baseline_loss=baseline, points=points
    )


def allocate(
    groups: Groups,
    curves: list[Curve],
    orders: dict[str, list[int]],
    *,
    measure: Measure,
    at_most: float,
    name: str = "the target",
    limits: Limits = Limits(max_group_rate=0.9),  # noqa: B008 - it is frozen
    **more: Any,
) -> Plan:
    sizes = {one.group: one.size for one in curves}
    bundles = find_tied_groups(groups, limits, **more, original_sizes=sizes)
    return knapsack.allocate(groups, BudgetSolver(bundles, Budget(name, measure, at_most)), curves, orders)


@pytest.fixture(scope="module")
def residual() -> Groups:
    torch.manual_seed(0)
    return find_groups(resnet20(input_shape=(1, 8, 8), num_classes=10).eval(), EXAMPLE)


def orders(groups: Groups) -> dict[str, list[int]]:
    return {group.name: list(range(group.size)) for group in groups}


def shares(groups: Groups, plan: Plan) -> dict[str, float]:
    return {group.name: len(plan.removed.get(group.name, ())) / group.size for group in groups}


def mixed_curves(groups: Groups) -> list[Curve]:
    generator = np.random.default_rng(0)
    return [
        curve(group.name, group.size, list(np.cumsum(generator.random(6)) * 3 ** (i % 4)))
        for i, group in enumerate(groups)
    ]


@pytest.mark.parametrize("measure", ["macs", "parameters", "size_bytes"])
@pytest.mark.parametrize("reduction", [0.05, 0.3, 0.7, 0.9])
def test_target_is_met_within_one_percent(residual: Groups, measure: str, reduction: float) -> None:
    count = getattr(Cost(residual), measure)
    plan = allocate(
        residual, mixed_curves(residual), orders(residual), measure=count, at_most=(1 - reduction) * count({})
    )
    reached = 1 - count(plan.kept_sizes(residual)) / count({})
    assert reduction <= reached <= reduction + 0.01


def test_sensitive_groups_give_less(residual: Groups) -> None:
    names = [group.name for group in residual]
    gentle = names[1::2]
    curves = [
        curve(group.name, group.size, [0.01 * i if group.name in gentle else 5.0 * i for i in range(1, 6)])
        for group in residual
    ]
    cost = Cost(residual)
    plan = allocate(residual, curves, orders(residual), measure=cost.macs, at_most=0.75 * cost.macs({}))
    found = shares(residual, plan)
    assert max(found[name] for name in gentle) > 0.3
    assert sum(found[name] for name in found if name not in gentle) == 0


def test_no_group_goes_beyond_what_was_measured_unless_it_has_to(
    residual: Groups, caplog: pytest.LogCaptureFixture
) -> None:
    """The gentlest groups were looked at up to half of their channels: beyond that their curves are a guess."""
    gentle = [group.name for group in residual][1::2]
    curves = []
    for group in residual:
        harmless, half = group.name in gentle, group.size // 2
        ends = (half,) if harmless else (half, group.size - 1)
        points = tuple(
            Point(rate=gone / group.size, removed=gone, score=0.9, loss=0.1 + gone / group.size * (not harmless))
            for gone in ends
        )
        names = (group.name,)
        curves.append(
            Curve(
                group=group.name,
                measured_with=names,
                size=group.size,
                baseline_score=0.9,
                baseline_loss=0.1,
                points=points,
            )
        )
    cost = Cost(residual)
    plan = allocate(residual, curves, orders(residual), measure=cost.macs, at_most=0.6 * cost.macs({}))
    assert max(shares(residual, plan)[name] for name in gentle) == 0.5
    assert "extrapolated" not in caplog.text
    plan = allocate(residual, curves, orders(residual), measure=cost.macs, at_most=0.03 * cost.macs({}))
    assert max(shares(residual, plan)[name] for name in gentle) > 0.5
    assert "the target is out of reach of what the sensitivity curves measured" in caplog.text


def test_silent_curves_spread_the_loss_over_all_groups(residual: Groups) -> None:
    curves = [curve(group.name, group.size, [0.0, -0.01, 0.0]) for group in residual]
    cost = Cost(residual)
    plan = allocate(residual, curves, orders(residual), measure=cost.macs, at_most=0.5 * cost.macs({}))
    assert all(0 < share < 0.9 for share in shares(residual, plan).values())


def test_steps_in_the_curves_do_not_stall_the_bisection(residual: Groups) -> None:
    # all groups jump at the same price: between two neighbouring prices lies nothing
    curves = [curve(group.name, group.size, [1.0, 1.0, 1.0, 1.0]) for group in residual]
    cost = Cost(residual)
    for reduction in (0.1, 0.5, 0.8):
        plan = allocate(residual, curves, orders(residual), measure=cost.macs, at_most=(1 - reduction) * cost.macs({}))
        assert reduction <= 1 - cost.macs(plan.kept_sizes(residual)) / cost.macs({}) <= reduction + 0.01


def test_limits_hold_and_the_result_is_the_same_each_time(residual: Groups) -> None:
    cost = Cost(residual)

    def plan() -> Plan:
        return allocate(
            residual,
            mixed_curves(residual),
            orders(residual),
            measure=cost.macs,
            at_most=0.6 * cost.macs({}),
            limits=Limits(8, 0.6),
            round_to=4,
            ignore=["stage2.*"],
        )

    found = plan()
    for group in residual:
        kept = group.size - len(found.removed.get(group.name, ()))
        assert kept % 4 == 0
        assert kept >= max(8, 0.4 * group.size)
    assert found.model_dump_json() == plan().model_dump_json()
    assert cost.macs(found.kept_sizes(residual)) <= 0.6 * cost.macs({})


def test_channels_go_in_their_order(residual: Groups) -> None:
    cost = Cost(residual)
    backwards = {group.name: list(range(group.size))[::-1] for group in residual}
    plan = allocate(residual, mixed_curves(residual), backwards, measure=cost.macs, at_most=0.5 * cost.macs({}))
    for group in residual:
        removed = plan.removed.get(group.name, ())
        assert list(removed) == list(range(group.size - len(removed), group.size))


def test_narrowed_model_goes_on_along_the_curves_of_the_original(residual: Groups) -> None:
    curves, cost = mixed_curves(residual), Cost(residual)
    first = allocate(
        residual,
        curves,
        orders(residual),
        measure=cost.macs,
        at_most=0.6 * cost.macs({}),
        limits=Limits(max_group_rate=0.8),
    )
    dense = narrow(residual.model, first, EXAMPLE)
    groups = find_groups(dense, EXAMPLE)
    assert [group.name for group in groups] == [group.name for group in residual]
    second = allocate(
        groups,
        curves,
        orders(groups),
        measure=Cost(groups).macs,
        at_most=0.3 * cost.macs({}),
        limits=Limits(max_group_rate=0.8),
    )
    both = first.then(second)
    kept = both.kept_sizes(residual)
    assert 0.29 <= cost.macs(kept) / cost.macs({}) <= 0.3
    assert all(kept.get(group.name, group.size) >= 0.2 * group.size for group in residual)


def test_target_that_is_met_already_gives_an_empty_plan(residual: Groups) -> None:
    cost = Cost(residual)
    plan = allocate(residual, mixed_curves(residual), orders(residual), measure=cost.macs, at_most=cost.macs({}))
    assert plan.removed == {}


def test_target_out_of_reach_says_how_far_it_got_and_what_stood_in_the_way(residual: Groups) -> None:
    cost = Cost(residual)
    with pytest.raises(TargetError) as caught:
        allocate(
            residual,
            mixed_curves(residual)[1:],
            orders(residual),
            measure=cost.macs,
            at_most=0.2 * cost.macs({}),
            name="mac_reduction 0.8",
            limits=Limits(max_group_rate=0.5),
        )
    text = str(caught.value)
    assert "mac_reduction 0.8 can't be met" in text
    assert "no sensitivity curve" in text
    assert "at most 50% of a group" in text


def test_curves_of_a_narrower_model_are_refused() -> None:
    groups = find_groups(nn.Sequential(nn.Linear(2, 8), nn.Linear(8, 2)), torch.zeros(1, 2))
    wrong = curve("0.weight:0", 6, [1.0, 2.0])
    with pytest.raises(TargetError, match="has 8 channels but its sensitivity was measured with 6"):
        allocate(groups, [wrong], orders(groups), measure=Cost(groups).macs, at_most=20)


def test_predicted_damage_is_monotone_a_square_then_powers_and_goes_on_as_steeply() -> None:
    points = curve("a", 9, [0.4, 0.2, 1.0, 1.0])  # at 2, 4, 6, 8 channels
    found = predicted_damage(points, np.array([0.0, 1, 2, 4, 5, 6, 8, 9]))
    assert found.tolist() == pytest.approx([0, 0.4 / 4, 0.4, 0.4, 0.4 * 1.25 ** (log(2.5) / log(1.5)), 1.0, 1.0, 1.3])
    better = curve("a", 9, [-0.4, -0.2, 0.0, 0.1])
    assert predicted_damage(better, np.array([2.0, 6, 8])).tolist() == pytest.approx([0, 0, 0.1])


def test_exchanges_come_to_the_best_of_all_plans(residual: Groups) -> None:
    """Four groups in steps of a quarter of their channels, the others held whole: 256 plans, each tried."""
    names = [group.name for group in residual][1:9:2]
    others = [group.name.rpartition(":")[0] for group in residual if group.name not in names]
    cost, generator = Cost(residual), np.random.default_rng(1)
    steps = {name: residual[name].size // 4 for name in names}
    bundles = tuple(
        replace(one, counts=tuple(gone for gone in one.counts if gone % steps.get(one.names[0], 1) == 0))
        for one in find_tied_groups(residual, Limits(), ignore=others, round_to=min(steps.values()))
    )
    for _ in range(6):
        curves = [curve(one, residual[one].size, list(np.cumsum(generator.random(6)))) for one in names]
        solver = BudgetSolver(bundles, Budget("the target", cost.macs, 0.85 * cost.macs({})))
        gone = {name: np.arange(4, dtype=np.float64) * step for name, step in steps.items()}
        damages = {one.group: predicted_damage(one, gone[one.group]) + _prior(curves) for one in curves}

        def damage(removed: dict[str, int], damages: dict[str, Any] = damages) -> float:
            return float(sum(damages[name][removed.get(name, 0) // steps[name]] for name in names))

        plan = knapsack.allocate(residual, solver, curves, orders(residual))
        found = damage({name: len(lost) for name, lost in plan.removed.items()})
        best = min(
            damage(removed)
            for levels in product(range(4), repeat=4)
            for removed in [{name: level * step for (name, step), level in zip(steps.items(), levels, strict=True)}]
            if solver.budget.met(cost.macs({name: residual[name].size - lost for name, lost in removed.items()}))
        )
        assert found <= 1.02 * best


def _prior(curves: list[Curve]) -> Any:
    ends = [float(predicted_damage(other, np.array([float(other.size)]))[0]) for other in curves]
    return 0.01 * np.median(ends) * (np.arange(4) / 4) ** 2
