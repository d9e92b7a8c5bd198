"""The mean error that quantisation adds to each output channel of a layer, taken out of its bias."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from pruning.errors import ExportError, describe, pass_on
from pruning.quantization.calibration import Feeds
from pruning.quantization.network import Layer, Network

_MOST_PROBES = 64  # in one pass, since the outputs of all layers lie in memory


@dataclass(frozen=True)
class _Probe:
    """What measures a layer: nodes and constants to add to the float network.

    Attributes:
        layer: The layer.
        nodes: They compute it from quantised inputs and weights, and average the difference.
        constants: Their scales, zero points and weights.
        output: Name of the mean error, [channels].
    """

    layer: Layer
    nodes: list[onnx.NodeProto]
    constants: list[onnx.TensorProto]
    output: str


def correct_biases(
    network: Network, quantized: onnx.ModelProto, layers: Sequence[Layer], batches: Iterable[Feeds]
) -> Network:
    """Take the mean error of each quantised layer out of its bias: b − E[layer of quantised input and weight − layer].

    Each layer is given the float network's inputs, so that one pass over the samples does for all of them: the layers
    before it are corrected themselves. A bias is added where a convolution has none; a matrix product without a bias to
    follow stays as it is.

    Source: M. Nagel et al., "Data-free quantization through weight equalization and bias correction", 2019,
    arXiv 1906.04721, section 4.2; there the expected error of the weights follows from the batch norms, here that of
    weights and inputs is measured.

    Args:
        network: In float; untouched.
        quantized: The same, quantised.
        layers: Those that are.
        batches: Of training samples.

    Returns:
        The float network with other biases.
    """
    probes = [probe for layer in layers if (probe := _probe(network, quantized, layer)) is not None]
    given = list(batches)
    errors = dict[str, NDArray[np.float64]]()
    for start in range(0, len(probes), _MOST_PROBES):
        errors |= _mean_errors(network, probes[start : start + _MOST_PROBES], given)
    found = copy.deepcopy(network.model)
    for probe in probes:
        if np.isfinite(errors[probe.layer.node]).all():
            _shift(found, network, probe.layer, errors[probe.layer.node])
    return network.with_model(found)


def _probe(network: Network, quantized: onnx.ModelProto, layer: Layer) -> _Probe | None:
    """Copy a quantised layer with what leads to it from the float network; None where it isn't followed by a bias."""
    if layer.operator not in ("Conv", "Gemm", "MatMul") or (
        layer.operator == "MatMul" and _following_bias(network, layer) is None
    ):
        return None
    producers = {name: node for node in quantized.graph.node for name in node.output}
    constants = {one.name: one for one in quantized.graph.initializer}
    made, nodes, kept = f"probe/{layer.node}", list[onnx.NodeProto](), dict[str, onnx.TensorProto]()
    target = next((node for node in quantized.graph.node if node.name == layer.node), None)
    if target is None:
        return None

    def copied(name: str) -> str:
        """Copy what makes a tensor: dequantised and quantised values, down to constants and the network's own."""
        if name in constants:
            kept[name] = constants[name]
            return f"{made}/{name}"
        maker = producers.get(name)
        if maker is None or maker.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            return name
        clone = copy.deepcopy(maker)
        clone.input[:] = [copied(one) for one in maker.input]
        clone.output[:] = [f"{made}/{one}" for one in maker.output]
        clone.name = clone.output[0]
        if clone.name not in {node.name for node in nodes}:
            nodes.append(clone)
        return str(clone.output[0])

    last = copy.deepcopy(target)
    last.input[:] = [copied(one) for one in target.input]
    last.output[:], last.name = [f"{made}/output"], f"{made}/layer"
    axes, difference, mean = f"{made}/axes", f"{made}/difference", f"{made}/mean"
    flat, shape = f"{made}/flat", f"{made}/shape"
    nodes += [last, helper.make_node("Sub", [last.output[0], network.nodes[layer.node].output[0]], [difference])]
    if layer.operator == "Conv":
        rank = len(network.constants[layer.weight].dims)
        over = [0, *range(2, rank)]
    else:
        channels = _channels(network, layer)
        nodes.append(helper.make_node("Reshape", [difference, shape], [flat]))
        kept[shape] = numpy_helper.from_array(np.array([-1, channels], dtype=np.int64), shape)
        difference, over = flat, [0]
    kept[axes] = numpy_helper.from_array(np.array(over, dtype=np.int64), axes)
    nodes.append(helper.make_node("ReduceMean", [difference, axes], [mean], keepdims=0))
    owned = []
    for name, constant in kept.items():
        one = copy.deepcopy(constant)
        one.name = name if name in (axes, shape) else f"{made}/{name}"
        owned.append(one)
    return _Probe(layer, nodes, owned, mean)


def _channels(network: Network, layer: Layer) -> int:
    """Count the outputs of a matrix product."""
    dims = network.constants[layer.weight].dims
    node = network.nodes[layer.node]
    transposed = any(one.name == "transB" and one.i for one in node.attribute)
    return int(dims[0] if transposed else dims[-1])


def _mean_errors(
    network: Network, probes: Sequence[_Probe], batches: Sequence[Feeds]
) -> dict[str, NDArray[np.float64]]:
    """Return the mean error of each channel: node -> [channels]."""
    model = copy.deepcopy(network.model)
    for probe in probes:
        model.graph.node.extend(probe.nodes)
        model.graph.initializer.extend(probe.constants)
        model.graph.output.append(helper.make_tensor_value_info(probe.output, TensorProto.FLOAT, None))
    names = [probe.output for probe in probes]
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        sums: list[NDArray[np.float64]] | None = None
        count = 0
        for feeds in batches:
            size = len(next(iter(feeds.values())))
            found = [one.astype(np.float64) * size for one in session.run(names, dict(feeds))]
            sums = found if sums is None else [old + new for old, new in zip(sums, found, strict=True)]
            count += size
    except Exception as fault:
        pass_on(fault)
        raise ExportError(
            f"ONNX Runtime {onnxruntime.__version__} can't measure the errors of quantised layers: {describe(fault)}"
        ) from fault
    assert sums is not None, "there is a batch"
    return {probe.layer.node: one / count for probe, one in zip(probes, sums, strict=True)}


def _following_bias(network: Network, layer: Layer) -> tuple[onnx.NodeProto, str] | None:
    """Return the sum that adds a constant to what a matrix product gives, and the constant's name."""
    readers = network.consumers.get(network.nodes[layer.node].output[0], [])
    if len(readers) != 1 or readers[0].op_type != "Add":
        return None
    names = [name for name in readers[0].input if name in network.constants]
    if len(names) != 1 or list(network.constants[names[0]].dims) != [_channels(network, layer)]:
        return None
    return readers[0], names[0]


def _shift(model: onnx.ModelProto, network: Network, layer: Layer, error: NDArray[np.float64]) -> None:
    """Subtract the mean error from a layer's bias, in a constant of its own."""
    nodes, constants = {node.name: node for node in model.graph.node}, network.constants
    node, name = nodes[layer.node], f"{layer.node}/bias"
    if layer.operator == "MatMul":
        found = _following_bias(network, layer)
        assert found is not None, "probes are made of these alone"
        node, old = nodes[found[0].name], found[1]
        node.input[list(node.input).index(old)] = name
        before = numpy_helper.to_array(constants[old])
    elif len(node.input) > 2 and node.input[2]:
        scaled = any(one.name == "beta" and one.f != 1 for one in node.attribute)
        if scaled or node.input[2] not in constants:
            return
        before = numpy_helper.to_array(constants[node.input[2]])
        node.input[2] = name
    else:
        before = np.zeros(len(error), dtype=np.float32)
        del node.input[2:]
        node.input.append(name)
    after = (np.broadcast_to(before, error.shape) - error).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(after, name))
