"""Several processes gather statistics, reconstruct and recalibrate: the bytes of one process with as many shards."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pruning import narrow
from pruning.plan.plan import Plan
from pruning.recovery.calibrate import recalibrate
from pruning.statistics import moments
from pruning.statistics.activations import Histogram
from pruning.statistics.collect import Statistics
from pruning.statistics.moments import Moments, Sample
from pruning.training.launch import launch
from pruning.world import World, joined, shares
from tests.pruning.recovery import shared


@pytest.mark.slow
def test_ranks_gather_and_recover_to_the_bytes_of_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moments, "WIDE", moments.WIDE)  # restored: `work` sets them
    monkeypatch.setattr(moments, "MAX_ROWS", moments.MAX_ROWS)
    alone = shared.work(World(4))
    assert len(set(alone.values())) == len(alone)
    for ranks in (2, 4):
        assert launch(shared.work, ranks=ranks, shards=4) == alone


@pytest.fixture(scope="module")
def whole() -> Statistics:
    return shared.gathered(World(1))


@pytest.mark.parametrize("batch_size", [16, 100])
def test_shards_gather_what_is_gathered_at_once(batch_size: int, whole: Statistics) -> None:
    """With batches of 100 there are two, so that two shards have none."""
    once = whole if batch_size == 16 else shared.gathered(World(1), batch_size)
    found = shared.gathered(World(4), batch_size)
    drawn = {"inversions", "hessian_diagonal", "hessian_trace"}  # each shard draws its own random numbers
    for need, by_group in once.gathered.items():
        for name, values in by_group.items():
            other = found.gathered[need][name]
            if not isinstance(values, torch.Tensor) or not isinstance(other, torch.Tensor):
                assert other == values
            elif need in ("activity", "entropy", "knockoffs"):
                assert torch.equal(values, other)
            elif need not in drawn:
                torch.testing.assert_close(other, values, rtol=1e-9, atol=1e-12)
            elif need == "inversions":
                assert float((other - values).abs().max()) < 0.05
    assert found.moments.keys() == once.moments.keys()
    for weight, one in once.moments.items():
        again = found.moments[weight]
        assert isinstance(one, Moments)
        assert isinstance(again, Moments)
        assert again.num_rows == one.num_rows
        torch.testing.assert_close(again.gram, one.gram, rtol=1e-9, atol=1e-9)
    assert found.gains == once.gains


def test_histograms_of_parts_make_that_of_the_whole() -> None:
    values = torch.randn(3, 60, generator=torch.Generator().manual_seed(0)).double()
    parts = [values[:, :20] * 100, values[:, 20:40] / 100, values[:, 40:] + 7]
    whole = Histogram(3)
    for part in parts:
        whole.add(part)
    found = [Histogram(3) for _ in parts]
    for one, part in zip(found, parts, strict=True):
        one.add(part)
    both = Histogram(3).joined(found[0]).joined(found[1].joined(found[2]))
    assert torch.equal(both.counts, whole.counts)
    assert (both.low, both.high, both.exponent) == (whole.low, whole.high, whole.exponent)


def test_samples_of_shards_make_a_sample_of_all_whatever_the_order_of_joining() -> None:
    rows = torch.arange(400.0).chunk(4)
    parts = [Sample(60, shard=shard).plus(part) for shard, part in enumerate(rows)]
    one = parts[0].joined(parts[1]).joined(parts[2].joined(parts[3]))
    other = parts[0].joined(parts[1].joined(parts[2])).joined(parts[3])
    assert torch.equal(one.tensors[0], other.tensors[0])
    assert len(set(one.tensors[0].tolist())) == len(one.keys) == 60
    assert one.seen == 400
    taken = [int(((one.tensors[0] >= 100 * part) & (one.tensors[0] < 100 * part + 100)).sum()) for part in range(4)]
    assert min(taken) > 4, "each shard draws keys of its own, so that 15 are expected of each"
    assert len({tuple((part.tensors[0] % 100).tolist()) for part in parts}) == 4


def test_sums_are_joined_part_by_part_and_the_first_reason_stays() -> None:
    left: dict[str, Any] = {"a": (1, torch.ones(2)), "b": None, "c": {1}, "d": "first", "e": 2.0}
    right: dict[str, Any] = {"a": (2, torch.ones(2)), "b": "why", "c": {2}, "d": "second", "f": 3}
    found = joined(left, right)
    assert found["a"][0] == 3
    assert found["a"][1].tolist() == [2, 2]
    assert {name: found[name] for name in "bcdef"} == {"b": "why", "c": {1, 2}, "d": "first", "e": 2.0, "f": 3}


def test_shares_hold_each_number_once() -> None:
    assert [list(one) for one in shares(5, 4)] == [[0], [1], [2], [3, 4]]
    assert [len(one) for one in shares(2, 4)] == [0, 1, 0, 1]


def test_batch_norms_of_shards_have_the_mean_over_all_batches() -> None:
    one, other = shared.network(), shared.network()
    used = recalibrate(one, shared.samples(), batch_size=20)
    assert recalibrate(other, shared.samples(), batch_size=20, world=World(4)) == used == 2
    for name, tensor in one.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], tensor, rtol=1e-5, atol=1e-6)
    assert other.norm.num_batches_tracked == one.norm.num_batches_tracked == 10


def test_groups_that_were_sent_narrow_as_before() -> None:
    model = shared.network()
    groups, inputs = shared.groups_of(model), shared.samples().inputs[:2]
    name = next(iter(groups)).name
    plan = Plan.of(groups, {name: [0]})
    sent = narrow(groups.model, plan, inputs, groups=groups)
    assert torch.equal(sent(inputs), narrow(model, plan, inputs)(inputs))
