from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from pruning import find_groups, narrow
from pruning.allocation.sensitivity import Curve, Sensitivity, next_to_measure
from pruning.errors import SettingsError
from pruning.evaluation import evaluate
from pruning.importance import find_criterion, order_channels
from pruning.plan.masks import apply_masks, masked_copy, parameter_masks
from pruning.plan.plan import Plan
from pruning.statistics.collect import collect
from zoo.datasets.splits import Samples


class Net(nn.Module):
    """A residual group, a group inside the block, and two groups tied by a chunk."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner, self.outer = nn.Linear(4, 10), nn.Linear(10, 6), nn.Linear(6, 10)
        self.split, self.left, self.right = nn.Linear(10, 8), nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        x = x + self.outer(self.inner(x).relu())
        a, b = self.split(x).chunk(2, dim=1)
        out: Tensor = self.left(a.relu()) + self.right(b.relu())
        return out


@pytest.fixture
def model() -> Net:
    torch.manual_seed(0)
    return Net()


@pytest.fixture
def samples() -> Samples:
    generator = torch.Generator().manual_seed(0)
    return Samples(torch.randn(60, 4, generator=generator), torch.randint(3, (60,), generator=generator))


def sensitivity(model: nn.Module, samples: Samples, rates: Sequence[float], **options: Any) -> Sensitivity:
    """Channels go by the norm of the rows and columns of their weights."""
    groups = find_groups(model, samples.inputs[:1])
    statistics = collect(groups, find_criterion("l2_norm").needs, samples)
    orders = {group.name: order_channels("l2_norm", group, statistics) for group in groups}
    return Sensitivity(model, groups, orders, rates, samples, **{"sweep": "full", **options})


def test_points_are_those_of_the_masked_coupled_group(model: Net, samples: Samples) -> None:
    groups = find_groups(model, samples.inputs[:1])
    group = next(group for group in groups if len({piece.parameter for piece in group.slices}) > 4)
    curve = sensitivity(model, samples, [0.5, 0.2]).curve(group.name)
    whole = evaluate(model, samples, each=True)
    assert (curve.baseline_score, curve.baseline_loss) == (whole.score, whole.loss)
    assert [(point.rate, point.removed) for point in curve.points] == [(0.2, 2), (0.5, 5)]
    norms = model.stem.weight.detach().norm(dim=1) + model.outer.weight.detach().norm(dim=1)
    order = norms.argsort().tolist()
    masked = evaluate(apply_masks(model, Plan.of(groups, {group.name: order[:5]}), groups=groups), samples, each=True)
    assert curve.points[1].loss == masked.loss
    assert curve.points[1].loss != whole.loss
    assert curve.measured_with == (group.name,)
    assert masked.losses is not None
    assert whole.losses is not None
    differences = masked.losses - whole.losses
    assert differences.mean().item() == pytest.approx(masked.loss - whole.loss, abs=1e-6)
    assert curve.points[1].margin == pytest.approx(1.96 * differences.std(correction=0).item() / 60**0.5)


def test_rates_that_remove_nothing_give_no_point(model: Net, samples: Samples) -> None:
    groups = find_groups(model, samples.inputs[:1])
    inner = next(group for group in groups if group.size == 6).name
    curve = sensitivity(model, samples, [0.01, 0.05, 0.16, 0.17, 0.99]).curve(inner)
    assert [(point.rate, point.removed) for point in curve.points] == [(0.16, 1), (0.99, 5)]
    for sweep in ("full", "knee"):
        assert sensitivity(model, samples, [0.01], sweep=sweep).curve(inner).points == ()


def test_tied_groups_are_masked_together(model: Net, samples: Samples) -> None:
    groups = find_groups(model, samples.inputs[:1])
    first, second = (group for group in groups if group.ties)
    measuring = sensitivity(model, samples, [0.5])
    curve = measuring.curve(second.name)
    assert curve.measured_with == (first.name, second.name)
    assert curve.points == measuring.curve(first.name).points
    assert second.name not in measuring.in_order()


def test_model_is_untouched_and_the_curve_survives_json(model: Net, samples: Samples) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    measuring = sensitivity(model, samples, [0.2, 0.4])
    curve = measuring.curve(measuring.in_order()[0])
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert Curve.model_validate_json(curve.model_dump_json()) == curve


def test_unknown_group_and_rates_out_of_bounds_are_refused(model: Net, samples: Samples) -> None:
    with pytest.raises(SettingsError, match=r"unknown group 'stem\.weight'; did you mean"):
        sensitivity(model, samples, [0.5]).curve("stem.weight")
    with pytest.raises(SettingsError, match=r"\[0.0, 1.0\]"):
        sensitivity(model, samples, [0.0, 0.5, 1.0])


NINE = [rate / 10 for rate in range(1, 10)]


def test_a_third_of_the_rates_is_measured_and_gives_what_the_full_sweep_gives(model: Net, samples: Samples) -> None:
    full, knee = (sensitivity(model, samples, NINE, sweep=sweep) for sweep in ("full", "knee"))
    for name in full.in_order():
        few, all_ = knee.curve(name).points, full.curve(name).points
        assert set(few) <= set(all_)
        assert 1 <= len(few) <= 3
    assert knee.num_evaluations <= full.num_evaluations / 2  # groups of few channels have fewer than nine counts


def test_group_that_loses_nothing_is_measured_once(model: Net, samples: Samples) -> None:
    with torch.no_grad():
        model.outer.weight.zero_()
    groups = find_groups(model, samples.inputs[:1])
    inner = next(group for group in groups if group.size == 6)
    curve = sensitivity(model, samples, NINE, sweep="knee").curve(inner.name)
    assert [point.rate for point in curve.points] == [0.8]
    assert (curve.points[0].loss, curve.points[0].margin) == (curve.baseline_loss, 0.0)


@given(st.lists(st.floats(0, 50), min_size=1, max_size=40), st.floats(0, 2))
def test_every_count_is_measured_once_if_there_is_time(rises: list[float], scale: float) -> None:
    measured: dict[int, float] = {}
    while (index := next_to_measure(measured, len(rises), scale)) is not None:
        assert 0 <= index < len(rises)
        assert index not in measured
        measured[index] = rises[index]
    assert len(measured) == len(rises)


@pytest.mark.parametrize("knee", range(3, 9))
def test_knee_is_bracketed(knee: int) -> None:
    """A curve that rises steeply from one rate on: the rates just below and at it are soon among those measured."""
    rises = [0.01 * max(0, 9 ** (index - knee + 1) - 1) for index in range(9)]
    measured: dict[int, float] = {}
    for _ in range(5):
        index = next_to_measure(measured, 9, scale=0.1)
        assert index is not None
        measured[index] = rises[index]
    assert min(abs(index - knee) for index in measured) <= 1


class Stream(nn.Module):
    """A residual stream behind a layer norm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.inner, self.outer = (
            nn.Linear(4, 10),
            nn.LayerNorm(10),
            nn.Linear(10, 6),
            nn.Linear(6, 10),
        )
        self.last, self.head = nn.LayerNorm(10), nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.outer(self.inner(self.norm(x)).relu())
        out: Tensor = self.head(self.last(x))
        return out


def test_the_norms_behind_a_residual_stream_see_what_is_kept(samples: Samples) -> None:
    torch.manual_seed(0)
    model = Stream().eval()
    groups = find_groups(model, samples.inputs[:1], allow_mixed=True)
    orders = {group.name: range(group.size) for group in groups}
    measured = Sensitivity(model, groups, orders, [0.4], samples, sweep="full")
    (point,) = measured.curve("stem.weight:0").points
    plan = Plan.of(groups, {"stem.weight:0": range(4)})
    expected = evaluate(narrow(model, plan, samples.inputs[:1], groups=groups), samples)
    assert point.removed == 4
    assert point.loss == pytest.approx(expected.loss, abs=1e-5)
    zeroed = evaluate(masked_copy(model, parameter_masks(groups, plan)), samples)
    assert abs(zeroed.loss - expected.loss) > 1e-2, "zeros that count in the norms give another loss"
