from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pruning import find_groups, make_plan
from pruning.allocation.budget import Budget, BudgetSolver, LatencyMs, LatencyReduction, Target
from pruning.allocation.hardware_widths import faster_counts
from pruning.allocation.knapsack import allocate, search
from pruning.allocation.selection import Scope, ScopeName, choose
from pruning.allocation.sensitivity import Curve, Point
from pruning.errors import ProfileError, TargetError
from pruning.graph.groups import Groups
from pruning.importance import Ranking
from pruning.latency.profile import (
    LatencyCost,
    LayerProfile,
    Profile,
    Profiles,
    Runtime,
    Surface,
    SurfaceTimes,
    read_profiles,
)
from pruning.plan.blocks import find_blocks
from pruning.plan.constraints import Limits, find_tied_groups
from pruning.statistics.collect import collect

BLOCK = 16
WIDTHS = (1, 15, 16, 17, 31, 32, 33, 47, 48, 49, 63, 64)
THERE = Runtime(cpu="synthetic", onnxruntime="1.0", provider="CPUExecutionProvider", num_threads=1, batch_size=1)


def steps(width: int) -> float:
    """Time in blocks of 16, half as long again where the last block isn't full."""
    return -(-width // 16) * (1.0 if width % 16 == 0 else 1.5)


def surface(inputs: tuple[int, ...], outputs: tuple[int, ...], time: Callable[[int, int], float]) -> Surface:
    return Surface(inputs=inputs, outputs=outputs, ms=tuple(tuple(time(i, o) for o in outputs) for i in inputs))


def network() -> Groups:
    model = nn.Sequential(
        nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 5, 1)
    )
    return find_groups(model.eval(), torch.zeros(1, 3, 4, 4))


def synthetic() -> Profile:
    return Profile(
        runtime=THERE,
        granule=BLOCK,
        period=BLOCK,
        surfaces={
            "first": surface((3,), WIDTHS, lambda i, o: steps(o)),
            "second": surface(WIDTHS, WIDTHS, lambda i, o: steps(i) * steps(o)),
            "third": surface(WIDTHS, (5,), lambda i, o: steps(i)),
        },
        layers=tuple(
            LayerProfile(weight=weight, surface=key, input_axis=1, positions=16)
            for weight, key in (("0.weight", "first"), ("2.weight", "second"), ("4.weight", "third"))
        ),
        whole_ms=24.0 + 0.5,
        overhead_ms=0.5,
    )


def curve(name: str) -> Curve:
    point = Point(rate=0.5, removed=32, score=0.5, loss=1.0)
    return Curve(group=name, measured_with=(name,), size=64, baseline_score=1.0, baseline_loss=0.0, points=(point,))


def test_whole_network_takes_what_was_measured_and_a_smaller_one_its_blocks() -> None:
    groups = network()
    cost = LatencyCost(groups, synthetic())
    assert cost({}) == pytest.approx(24.5)
    halved = {group.name: 32 for group in groups}
    assert cost(halved) == cost.predict(halved) == pytest.approx(2 + 2 * 2 + 2 + 0.5)
    odd = {group.name: 63 for group in groups}
    assert cost(odd) == pytest.approx(24.5)  # on the envelope no more than with 64
    assert cost.predict(odd) > 1.5 * cost({})


def test_envelope_never_rises_when_channels_go() -> None:
    groups = network()
    cost = LatencyCost(groups, synthetic())
    first, second = (group.name for group in groups)
    for other in (64, 40, 7):
        for name, constant in ((first, second), (second, first)):
            costs = [cost({name: kept, constant: other}) for kept in range(64, 0, -1)]
            assert all(narrower <= wider + 1e-9 for wider, narrower in pairwise(costs))


@settings(deadline=None, max_examples=10)
@given(st.lists(st.floats(0.01, 9), min_size=144, max_size=144), st.integers(40, 63), st.integers(30, 63))
def test_envelope_of_any_surface_is_its_least_time_at_wider_widths(times: list[float], i: int, o: int) -> None:
    grid = iter(times)
    table = SurfaceTimes(surface(WIDTHS, WIDTHS, lambda *_: next(grid)), BLOCK, BLOCK)
    least = min(table.at(wider, more) for wider in range(i, 65) for more in range(o, 65))
    assert table.lowest(i, o) == pytest.approx(least)


@pytest.mark.parametrize("way", ["allocate", "local", "search"])
def test_plan_keeps_multiples_of_the_profiles_block_without_rounding(way: str) -> None:
    groups = network()
    cost = LatencyCost(groups, synthetic())
    orders = {group.name: list(range(group.size)) for group in groups}
    target = Budget("latency", cost, 0.5 * cost({}))

    def make() -> dict[str, int]:
        solver = BudgetSolver(find_tied_groups(groups, Limits()), target)
        if way == "allocate":
            plan = allocate(groups, solver, [curve(one) for one in orders], orders)
        elif way == "local":
            plan = choose(Ranking(groups, "l2_norm", collect(groups, ["weights"])), solver, Scope())
        else:
            plan = search(groups, solver, orders, lambda plan: -len(str(plan.removed)), candidates=3)
        return plan.kept_sizes(groups)

    kept = make()
    assert kept
    assert all(number % 16 == 0 for number in kept.values()), kept
    assert cost.predict(kept) == cost(kept) <= target.at_most
    assert make() == kept


def test_profiles_come_back_from_their_file_and_are_found_by_threads_and_batch_size(tmp_path: Path) -> None:
    other = synthetic().model_copy(update={"runtime": THERE.model_copy(update={"batch_size": 32})})
    Profiles(questions="0", profiles=(synthetic(), other)).write(tmp_path / "profile.json")
    found = read_profiles(tmp_path / "profile.json")
    assert found.profiles == (synthetic(), other)
    assert found.find(num_threads=1, batch_size=32) == other
    assert found.find(num_threads=2, batch_size=32) is None


def test_other_hardware_is_told_apart_point_by_point() -> None:
    here = THERE.model_copy(update={"cpu": "this one", "num_threads": 4})
    assert THERE.differences(here) == ["cpu 'synthetic' and 'this one'", "num_threads 1 and 4"]
    assert THERE.differences(THERE) == []


def test_missing_and_damaged_profiles_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    with pytest.raises(ProfileError, match="no profile at"):
        read_profiles(path)
    whole = Profiles(questions="0", profiles=(synthetic(),)).model_dump_json()
    for damage in ("{", whole.replace('"period":16', '"period":17')):
        path.write_text(damage, encoding="utf-8")
        with pytest.raises(ProfileError, match=r"is no profile|is damaged"):
            read_profiles(path)


def test_times_of_a_pattern_that_repeats_are_met_between_the_periods() -> None:
    """A kernel that holds four granules of 8: the last three cost more than their share."""
    rest = {0: 0, 8: 19, 16: 22, 24: 26}

    def time(_: int, made: int) -> float:
        return float(made // 32 * 32 + rest[made % 32])

    knots = (8, 16, 24, 32, 40, 48, 56, 64, 200, 208, 216, 224, 232, 240, 248, 256)
    table = SurfaceTimes(surface((64,), knots, time), 8, 64)
    for width in range(8, 257, 8):
        assert table.at(64, width) == pytest.approx(time(64, width)), width


def test_surcharge_is_the_time_above_the_share_of_the_macs() -> None:
    groups = network()
    cost = LatencyCost(groups, synthetic())
    first, _ = (group.name for group in groups)
    assert cost.surcharge({}) == 1.0
    assert cost.surcharge({first: 32}) == pytest.approx(1.0)
    assert cost.surcharge({first: 63}) == pytest.approx((6 + 6 * 4) / ((4 + 16) * 63 / 64))


def test_profile_of_another_network_is_refused() -> None:
    other = find_groups(nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)), torch.zeros(1, 3))
    with pytest.raises(ProfileError, match=r"has no layer 4\.weight|at most"):
        LatencyCost(other, synthetic())
    wider = nn.Sequential(nn.Conv2d(3, 80, 3), nn.ReLU(), nn.Conv2d(80, 80, 3), nn.ReLU(), nn.Conv2d(80, 5, 1))
    with pytest.raises(ProfileError, match=r"its 0\.weight has at most 3 input and 64 output"):
        LatencyCost(find_groups(wider, torch.zeros(1, 3, 8, 8)), synthetic())


@pytest.mark.parametrize("scope", ["local", "global"])
@pytest.mark.parametrize("target", [LatencyReduction(0.6, synthetic()), LatencyMs(9.8, synthetic())])
def test_latency_is_a_target_of_a_plan(scope: ScopeName, target: Target) -> None:
    groups = network()
    plans = [make_plan(groups, "l2_norm", target, scope=scope) for _ in range(2)]
    kept = plans[0].kept_sizes(groups)
    assert plans[0] == plans[1]
    assert all(number % 16 == 0 for number in kept.values()), kept
    assert 8.0 <= LatencyCost(groups, synthetic()).predict(kept) <= 9.8


def test_bundles_keep_the_widths_that_gain_speed() -> None:
    groups = network()
    first, _ = faster_counts(find_tied_groups(groups, Limits()), LatencyCost(groups, synthetic()))
    assert first.counts == (0, 16, 32, 48)


def test_latency_that_is_met_already_out_of_reach_or_below_zero_is_refused() -> None:
    groups = network()
    with pytest.raises(TargetError, match=r"met already: the model is predicted to take 24.5 ms"):
        make_plan(groups, target=LatencyMs(30, synthetic()))
    with pytest.raises(TargetError, match=r"latency_ms 0.5 can't be met: from 24.5 now to 0.5 was asked"):
        make_plan(groups, target=LatencyMs(0.5, synthetic()))
    with pytest.raises(TargetError, match="latency_ms is -1; expected milliseconds above 0"):
        LatencyMs(-1, synthetic())


def test_counts_are_rounded_by_a_profile_where_the_target_is_no_latency() -> None:
    groups = network()
    rounded = make_plan(groups, mac_reduction=0.5, round_to=synthetic()).kept_sizes(groups)
    assert all(number % 16 == 0 for number in rounded.values()), rounded


class _Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layer(x)  # type: ignore[no-any-return]


def test_block_that_is_gone_takes_no_time_and_another_network_is_still_refused() -> None:
    model, example = nn.Sequential(nn.Linear(16, 16), _Residual(), _Residual()), torch.zeros(1, 16)
    profile = Profile(
        runtime=THERE,
        granule=BLOCK,
        period=BLOCK,
        surfaces={"layer": surface((16,), (16,), lambda _i, _o: 2.0)},
        layers=tuple(
            LayerProfile(weight=weight, surface="layer", input_axis=1, positions=1)
            for weight in ("0.weight", "1.layer.weight", "2.layer.weight")
        ),
        whole_ms=3 * 2.0 + 3 * 1.0 + 0.5,
        overhead_ms=0.5,
    )
    blocks = find_blocks(model, example)
    whole, shallow = (LatencyCost(find_groups(one, example), profile) for one in (model, blocks.without(["1.layer"])))
    assert whole.predict({}) == pytest.approx(9.5)
    assert whole.of_layers(blocks["1.layer"].parameters) == pytest.approx(3.0)
    assert shallow.predict({}) == pytest.approx(6.5)
    assert shallow({}) == pytest.approx(6.5)
    with pytest.raises(ProfileError, match=r"no layer 1\.layer\.weight"):
        LatencyCost(find_groups(nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16)), example), profile)
