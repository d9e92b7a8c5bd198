from __future__ import annotations

from math import ceil, log2
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from pruning.quantization.calibration import Feeds, measure_ranges
from pruning.quantization.left_in_float import fewest_left, rank_layers
from pruning.quantization.profiles import find_profile
from pruning.quantization.quantize import layers_for
from tests.pruning.quantization.test_quantize import exported


@pytest.mark.parametrize("count", [1, 2, 3, 7, 20, 64])
def test_as_few_layers_as_pass_are_left_in_few_tries(count: int) -> None:
    for needed in range(1, count + 1):
        tried: list[int] = []

        def passes(number: int, needed: int = needed, tried: list[int] = tried) -> bool:
            tried.append(number)
            return number >= needed

        assert fewest_left(count, passes) == needed
        assert len(tried) == len(set(tried)) <= 2 * ceil(log2(max(2, needed))) + 2


def test_a_gate_that_no_number_passes() -> None:
    assert fewest_left(5, lambda _: False) is None


def test_the_layer_that_the_scale_suits_least_comes_first(tmp_path: Path) -> None:
    """One input of a layer is a thousand times the others: 8 bits leave nothing of these."""
    first, second = nn.Linear(8, 8), nn.Linear(8, 8)
    model = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), nn.Linear(8, 4))
    with torch.no_grad():
        first.weight[0] *= 1000
        second.weight[:, 0] /= 1000
    network = exported(model.eval(), torch.randn(2, 8), tmp_path)
    batches: list[Feeds] = [
        {network.inputs[0]: np.random.default_rng(0).standard_normal((64, 8), dtype=np.float32)} for _ in range(2)
    ]
    profile = find_profile("cpu_vnni")
    seen: list[tuple[int, int]] = []
    ranges = measure_ranges(network, batches, "minmax")
    found = rank_layers(
        network, profile, layers_for(network, profile), ranges, batches, lambda done, total: seen.append((done, total))
    )
    assert found[0].layer.name == "2"
    assert found[0].snr_db < found[1].snr_db - 10
    assert [one.snr_db for one in found] == sorted(one.snr_db for one in found)
    assert seen == [(1, 3), (2, 3), (3, 3)]
