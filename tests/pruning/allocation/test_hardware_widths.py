from __future__ import annotations

import logging

import pytest
import torch
from torch import nn

from pruning import find_groups
from pruning.allocation.budget import Budget, joined
from pruning.allocation.hardware_widths import PORTABLE, find_kernel_widths, kernel_widths_names, rounded
from pruning.errors import SettingsError
from pruning.graph.groups import Groups
from pruning.latency.profile import LatencyCost, LayerProfile, Profile, Runtime, Surface
from pruning.plan.constraints import Limits, find_tied_groups
from pruning.plan.plan import Cost

WIDTHS = tuple(range(8, 65, 8))
REST = {0: 0, 8: 19, 16: 22, 24: 26}


def network(width: int = 64) -> Groups:
    model = nn.Sequential(
        nn.Conv2d(3, width, 1), nn.ReLU(), nn.Conv2d(width, width, 1), nn.ReLU(), nn.Conv2d(width, 5, 1)
    )
    return find_groups(model.eval(), torch.zeros(1, 3, 4, 4))


def made(width: int) -> float:
    """A kernel that holds four granules of 8."""
    return float(width // 32 * 32 + REST[width % 32])


def patterned() -> Profile:
    surfaces = {
        "first": Surface(inputs=(3,), outputs=WIDTHS, ms=(tuple(made(one) for one in WIDTHS),)),
        "second": Surface(inputs=WIDTHS, outputs=WIDTHS, ms=tuple(tuple(i * made(o) for o in WIDTHS) for i in WIDTHS)),
        "third": Surface(inputs=WIDTHS, outputs=(5,), ms=tuple((float(i),) for i in WIDTHS)),
    }
    return Profile(
        runtime=Runtime(cpu="synthetic", onnxruntime="1", provider="any", num_threads=1, batch_size=1),
        granule=8,
        period=64,
        surfaces=surfaces,
        layers=tuple(
            LayerProfile(weight=weight, surface=key, input_axis=1, positions=16)
            for weight, key in (("0.weight", "first"), ("2.weight", "second"), ("4.weight", "third"))
        ),
        whole_ms=64 + 64 * 64 + 64,
        overhead_ms=0,
    )


def kept(groups: Groups, reduction: float, by: Profile | str = PORTABLE) -> list[list[int]]:
    cost = Cost(groups)
    target = Budget("MACs", cost.macs, (1 - reduction) * cost.macs({}))
    rule = find_kernel_widths(by) if isinstance(by, str) else LatencyCost(groups, by)
    solver = rounded(find_tied_groups(groups, Limits()), target, rule, {})
    return [[bundle.sizes[0] - one for one in bundle.counts] for bundle in solver.bundles]


def test_profile_leaves_the_widths_whose_time_is_near_their_share_of_the_macs() -> None:
    assert kept(network(), 0.5, patterned()) == [[64, 56, 48, 40, 32, 24, 16], [64, 56, 32, 24]]


def test_portable_widths_are_blocks_of_16_and_of_8_in_narrow_groups() -> None:
    assert kept(network(), 0.5) == [[64, 48, 32, 16]] * 2
    assert kept(network(32), 0.5) == [[32, 24, 16, 8]] * 2
    narrowed = network(48)
    target = Budget("MACs", Cost(narrowed).macs, 0.9 * Cost(narrowed).macs({}))
    sizes = {group.name: 64 for group in narrowed}
    rule = find_kernel_widths(PORTABLE)
    solver = rounded(find_tied_groups(narrowed, Limits(), original_sizes=sizes), target, rule, sizes)
    assert [bundle.counts for bundle in solver.bundles] == [(0, 16, 32)] * 2


def test_widths_that_avx2_kernels_reward_are_those_whose_measured_time_per_channel_is_low() -> None:
    avx2 = "onnxruntime_x86_avx2"
    assert kept(network(), 0.4, avx2) == [[64, 56, 48, 32, 24]] * 2
    assert kept(network(), 0.88, avx2)[1] == [64, 56, 48, 40, 32, 24, 16], "16 and 40 where the others don't reach it"
    admits = find_kernel_widths(avx2).steps[0]
    assert [kept for kept in range(65, 145) if admits(kept, 256)] == [80, 88, 96, 104, 112, 120, 128, 136, 144]


def test_every_table_says_where_it_is_from_and_an_unknown_one_names_the_nearest() -> None:
    assert kernel_widths_names()[0] == PORTABLE
    assert all(len(find_kernel_widths(name).source) > 80 for name in kernel_widths_names())
    with pytest.raises(SettingsError, match="did you mean 'portable'"):
        find_kernel_widths("portabel")


def test_target_beyond_rewarded_widths_takes_others(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert kept(network(), 0.91, patterned())[1] == [64, 56, 48, 40, 32, 24, 16]
        assert "others are allowed" in caplog.text
        assert kept(network(12), 0.8)[0] == list(range(12, 2, -1))
        assert "out of reach of rounded widths" in caplog.text


def test_joined_target_is_met_where_all_are() -> None:
    def measure(kept: object) -> float:
        return 4.0

    both = joined([Budget("one", measure, 8), Budget("two", measure, 4)])
    assert both.name == "one and two"
    assert both.met(both.measure({}))
    assert not joined([Budget("one", measure, 8), Budget("two", measure, 3)]).met(4 / 3)
    assert joined([Budget("one", measure, 8)]).parts == ()
