from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from pruning.quantization.bias_correction import correct_biases
from pruning.quantization.calibration import Feeds, measure_ranges
from pruning.quantization.network import Network
from pruning.quantization.profiles import find_profile
from pruning.quantization.quantize import layers_for, quantize
from tests.pruning.quantization.test_quantize import answers, exported


class Tokens(nn.Module):
    """A linear layer over tokens [N, T, C], which becomes a product and a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.last = nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.inner(x).relu())  # type: ignore[no-any-return]


NETWORKS = {
    "convolution without a bias": (
        nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4)),
        (3, 8, 8),
    ),
    "convolution with a bias": (nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 36, 4)), (3, 8, 8)),
    "matrix products": (Tokens(), (5, 8)),
}


def mean_errors(network: Network, quantized: onnx.ModelProto, batches: list[Feeds]) -> np.ndarray:
    found, expected = (
        np.concatenate([one[network.outputs[0]] for one in answers(model, batches)])
        for model in (quantized, network.model)
    )
    errors: np.ndarray = (found.astype(np.float64) - expected).reshape(-1, found.shape[-1]).mean(0)
    return errors


@pytest.mark.parametrize("name", NETWORKS)
def test_the_mean_error_of_the_outputs_goes(name: str, tmp_path: Path) -> None:
    """Inputs have a mean, so that errors of weights don't cancel out; the same samples measure and correct."""
    model, shape = NETWORKS[name]
    network = exported(model.eval(), torch.randn(2, *shape), tmp_path)
    generator = np.random.default_rng(0)
    batches: list[Feeds] = [
        {network.inputs[0]: (2 + generator.standard_normal((16, *shape))).astype(np.float32)} for _ in range(4)
    ]
    profile, ranges = find_profile("cpu"), measure_ranges(network, batches, "minmax")
    layers = layers_for(network, profile)
    whole = quantize(network, profile, layers, ranges)
    corrected = correct_biases(network, whole, layers, batches)
    after = mean_errors(network, quantize(corrected, profile, layers, ranges), batches)
    before = mean_errors(network, whole, batches)
    assert np.linalg.norm(after) < 0.7 * np.linalg.norm(before)
    assert corrected.model.SerializeToString() != network.model.SerializeToString(), "biases of the float network move"


def test_the_correction_is_the_mean_error_of_the_layer(tmp_path: Path) -> None:
    """One layer by hand: weights of 1 on inputs that the scale rounds up by a known step."""
    layer = nn.Linear(2, 1)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 0.505]]))
        layer.bias.zero_()
    network = exported(nn.Sequential(layer), torch.randn(2, 2), tmp_path)
    batches: list[Feeds] = [{network.inputs[0]: np.array([[0.0, 2.55], [2.55, 2.55]], dtype=np.float32)}]
    profile, ranges = find_profile("cpu"), measure_ranges(network, batches, "minmax")
    layers = layers_for(network, profile)
    whole = quantize(network, profile, layers, ranges)
    corrected = correct_biases(network, whole, layers, batches)
    added = [one for one in corrected.model.graph.initializer if one.name.endswith("/bias")]
    # 7 bits of a largest weight of 1: steps of 1/64, so that 0.505 becomes 32/64 and 2.55 × 0.005 is missing
    assert float(onnx.numpy_helper.to_array(added[0])[0]) == pytest.approx(2.55 * 0.005, rel=0.02)


def test_the_network_itself_is_untouched(tmp_path: Path) -> None:
    network = exported(NETWORKS["matrix products"][0].eval(), torch.randn(2, 5, 8), tmp_path)
    before = network.model.SerializeToString(deterministic=True)
    feeds: list[Feeds] = [{network.inputs[0]: np.ones((4, 5, 8), dtype=np.float32)}]
    profile, ranges = find_profile("cpu"), measure_ranges(network, feeds, "minmax")
    layers = layers_for(network, profile)
    correct_biases(network, quantize(network, profile, layers, ranges), layers, feeds)
    assert network.model.SerializeToString(deterministic=True) == before
