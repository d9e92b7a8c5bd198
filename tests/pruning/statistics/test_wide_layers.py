"""Layers that read very many columns: the rows are kept, and all that is worked out from them is the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from pruning import Plan, find_groups, make_plan, narrow, reconstruct
from pruning.graph.rules.call import tensors_in
from pruning.importance import order_channels, score_channels
from pruning.recovery.fold import fold
from pruning.statistics import moments
from pruning.statistics.collect import Statistics, collect
from pruning.statistics.moments import Moments, RowMoments, Sample, max_rows

NUMBERS = [24, pytest.param(400, marks=pytest.mark.thorough)]  # fewer and more rows than columns


class Flattened(nn.Module):
    """Two maps, flattened and joined, read by one layer; one of them by a grouped convolution too."""

    def __init__(self, *, bias: bool) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 12, 3), nn.Conv2d(3, 6, 3)
        self.c = nn.Conv2d(12, 8, 3, groups=2, bias=bias)
        self.out, self.end = nn.Linear(18 * 16, 7, bias=bias), nn.Linear(15, 3)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.a(x).relu(), self.b(x).relu()
        read = self.out(torch.cat([b, a], dim=1).flatten(1))
        out: Tensor = self.end(torch.cat([read, self.c(a).mean((2, 3))], dim=1))
        return out


def rooms(bias: bool, number: int) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    # float64, so that nothing but the form differs: of float32 the whole moment's products are rounded
    return Flattened(bias=bias).eval().double(), torch.randn(number, 3, 6, 6, dtype=torch.float64)


@pytest.fixture
def wide(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Call it, and layers that read more than 40 columns are wide."""
    return lambda: monkeypatch.setattr(moments, "WIDE", 40)


def statistics_of(model: nn.Module, images: Tensor) -> Statistics:
    return collect(find_groups(model, images[:1]), {"weights", "moments"}, images, batch_size=16)


@pytest.mark.parametrize("values", [8, pytest.param(1 << 24, marks=pytest.mark.thorough)])  # worked out at a time
@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "criterion",
    [
        "structured_obs",
        "reduce_and_reuse",
        *(pytest.param(one, marks=pytest.mark.thorough) for one in ("lasso", "greedy_forward")),
    ],
)
def test_scores_order_and_folding_are_those_of_the_whole_moment(
    criterion: str, bias: bool, number: int, values: int, wide: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("least_squares", "obs"):
        monkeypatch.setattr(f"pruning.importance.{module}._VALUES", values)
    model, images = rooms(bias, number)
    groups = find_groups(model, images[:1])
    whole = statistics_of(model, images)
    wide()
    rows = statistics_of(model, images)
    assert {type(one) for one in whole.moments.values()} == {Moments}
    assert isinstance(rows.moments["out.weight"], RowMoments)
    assert isinstance(rows.moments["c.weight"], RowMoments)
    assert isinstance(rows.moments["end.weight"], Moments)
    plan = make_plan(groups, channel_sparsity=0.3)
    for group in groups:
        expected = score_channels(criterion, group, whole)
        torch.testing.assert_close(
            score_channels(criterion, group, rows), expected, rtol=1e-8, atol=1e-10 * float(expected.max())
        )
        if criterion == "structured_obs":
            assert order_channels(criterion, group, rows) == order_channels(criterion, group, whole)
    folded = [narrow(model, plan, images[:2]) for _ in range(2)]
    for dense, statistics in zip(folded, (whole, rows), strict=True):
        assert fold(dense, plan, groups, statistics, criterion) == 3
    for one, other in zip(*(dense.parameters() for dense in folded), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("bias", [True, False])
def test_reconstruction_is_that_of_the_whole_normal_equations(
    bias: bool, number: int, wide: Callable[[], None]
) -> None:
    model, images = rooms(bias, number)
    groups = find_groups(model, images[:1])
    plan = make_plan(groups, channel_sparsity=0.4)
    dense, other = (narrow(model, plan, images[:2]) for _ in range(2))
    refits = reconstruct(dense, model, plan, groups, images, batch_size=16)
    wide()
    others = reconstruct(other, model, plan, groups, images, batch_size=16)
    for one, two in zip(refits, others, strict=True):
        assert (one.layer, one.skipped) == (two.layer, two.skipped)
        assert (one.error_before, one.error_after) == pytest.approx((two.error_before, two.error_after), 1e-8, 1e-9)
    for mine, its in zip(dense.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-7, atol=1e-8)


def test_no_fit_is_written_where_none_helps(wide: Callable[[], None]) -> None:
    model, images = rooms(True, 32)
    groups = find_groups(model, images[:1])
    plan = Plan.of(groups, {})
    wide()
    dense = narrow(model, plan, images[:2])
    reconstruct(dense, model, plan, groups, images)
    for mine, its in zip(dense.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(mine, its, rtol=0, atol=1e-6)


class _Largest(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The most values that any result of an operator holds that is no view."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tensors_in(result):
            self.most = max(self.most, tensor.untyped_storage().nbytes() // tensor.element_size())
        return result


@pytest.mark.parametrize(
    "criterion", ["structured_obs", "reduce_and_reuse", pytest.param("lasso", marks=pytest.mark.thorough)]
)
def test_nothing_of_the_square_of_the_columns_is_made(criterion: str, wide: Callable[[], None]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 24, 3), nn.ReLU(), nn.Flatten(), nn.Linear(24 * 64, 5)).eval()
    images = torch.randn(20, 1, 10, 10)
    wide()
    groups = find_groups(model, images[:1])
    with _Largest() as largest:
        statistics = collect(groups, {"weights", "moments"}, images)
        plan = make_plan(groups, criterion, channel_sparsity=0.5, samples=statistics)
        dense = narrow(model, plan, images[:2])
        fold(dense, plan, groups, statistics, criterion)
        reconstruct(dense, model, plan, groups, images)
    assert 20 * 24 * 64 <= largest.most < (12 * 64) ** 2


def test_rows_beyond_the_bound_are_drawn_alike_from_all_that_were_seen() -> None:
    rows, kept = torch.arange(3000.0), Sample(200)
    for some in torch.split(rows, 128):
        kept = kept.plus(some, 2 * some)
    values, twice = kept.tensors
    assert len(values) == len(set(values.tolist())) == 200
    assert torch.equal(twice, 2 * values)
    assert values.tolist() == sorted(values.tolist())
    # 200 of 3,000 without putting back: the mean's standard error is 866 / √200 · √(1 − 1/15), four of which are
    assert abs(float(values.mean()) - 1499.5) < 4 * 59.2
    again = Sample(200)
    for some in torch.split(rows, 128):
        again = again.plus(some, some)
    assert torch.equal(again.tensors[0], values)


def test_what_is_kept_of_a_wide_layer_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    assert max_rows(25_088) * 25_088 * 4 <= 2**28
    assert max_rows(5000) == moments.MAX_ROWS
    assert max_rows(2**40) == 1
    model, images = rooms(True, 64)
    monkeypatch.setattr(moments, "WIDE", 40)
    monkeypatch.setattr(moments, "MAX_ROWS", 20)
    statistics = statistics_of(model, images)
    kept = statistics.moments["out.weight"]
    assert isinstance(kept, RowMoments)
    assert kept.num_rows == 20
    assert kept.sample.seen == 64
    groups = find_groups(model, images[:1])
    plan = make_plan(groups, "structured_obs", channel_sparsity=0.4, samples=statistics)
    dense = narrow(model, plan, images[:2])
    with torch.no_grad():
        before = float((dense(images) - model(images)).square().mean())
        reconstruct(dense, model, plan, groups, images, batch_size=16)
        assert float((dense(images) - model(images)).square().mean()) < before
