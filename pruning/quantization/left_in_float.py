"""Which layers stay in float: how much noise each makes by itself, and how few have to go until a gate is passed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import onnx
import onnxruntime
from numpy.typing import NDArray
from onnxruntime.quantization import TensorsData

from pruning.errors import ExportError, describe, pass_on
from pruning.evaluation import Progress
from pruning.quantization.calibration import Feeds
from pruning.quantization.comparison import Differences
from pruning.quantization.network import Layer, Network
from pruning.quantization.profiles import QuantizationProfile
from pruning.quantization.quantize import quantize, save


@dataclass(frozen=True)
class LayerNoise:
    """A layer quantised alone.

    Attributes:
        layer: The layer.
        snr_db: Signal to noise of the network's outputs, the worst one, in decibels: the lower, the more harm it does.
    """

    layer: Layer
    snr_db: float


def rank_layers(
    network: Network,
    profile: QuantizationProfile,
    layers: Sequence[Layer],
    ranges: TensorsData | None,
    batches: Sequence[Feeds],
    progress: Progress | None = None,
) -> list[LayerNoise]:
    """Quantise each layer alone, and compare the network's outputs with those in float; the worst comes first.

    The outputs count and not the layer's own, because what follows may drown its noise or amplify it.

    Args:
        network: In float.
        profile: Which types.
        layers: Those that may be quantised.
        ranges: Of the tensors, for a static profile.
        batches: Of training samples: few are enough.
        progress: Told after each layer.

    Raises:
        ExportError: ONNX Runtime can't quantise or run the network.
    """
    expected = _answers(network.model, network.outputs, batches)
    found = []
    for place, layer in enumerate(layers):
        alone = quantize(network, profile, [layer], ranges)
        differences = Differences()
        for one, other in zip(_answers(alone, network.outputs, batches), expected, strict=True):
            differences.add(one, other)
        found.append(LayerNoise(layer, differences.worst_db))
        if progress is not None:
            progress(place + 1, len(layers))
    return sorted(found, key=lambda one: one.snr_db)


def _answers(model: onnx.ModelProto, names: Sequence[str], batches: Sequence[Feeds]) -> list[dict[str, NDArray[Any]]]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    try:
        session = onnxruntime.InferenceSession(save(model), options, providers=["CPUExecutionProvider"])
        return [dict(zip(names, session.run(list(names), dict(feeds)), strict=True)) for feeds in batches]
    except Exception as fault:
        pass_on(fault)
        raise ExportError(
            f"ONNX Runtime {onnxruntime.__version__} can't run the quantised network: {describe(fault)}"
        ) from fault


def fewest_left(count: int, passes: Callable[[int], bool]) -> int | None:
    """Find how few of the worst layers have to stay in float: 1, 2, 4, … are tried, then the gap is bisected.

    It is taken that what passes goes on passing with more layers in float, so that 2 log₂ `count` tries are enough.

    Args:
        count: Number of layers.
        passes: (number of the worst layers in float) -> whether the gate is passed.

    Returns:
        The number; None if the gate isn't passed with all of them.
    """
    failed, tried = 0, 1
    while not passes(min(tried, count)):
        if tried >= count:
            return None
        failed, tried = tried, 2 * tried
    passed = min(tried, count)
    while passed - failed > 1:
        middle = (passed + failed) // 2
        if passes(middle):
            passed = middle
        else:
            failed = middle
    return passed
