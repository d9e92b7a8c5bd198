"""Write a network with integer weights and activations, or with floats of 16 bits."""

from __future__ import annotations

import copy
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QDQQuantizer, QuantType, TensorsData, quantize_dynamic
from onnxruntime.quantization.onnx_model import ONNXModel
from onnxruntime.transformers.float16 import convert_float_to_float16

from pruning.errors import ExportError, describe, pass_on
from pruning.graph.contexts import quiet
from pruning.quantization.network import Layer, Network
from pruning.quantization.profiles import QuantizationProfile

_TYPES = {"uint8": QuantType.QUInt8, "int8": QuantType.QInt8}
_PRODUCTS = ["Gemm", "MatMul"]


def layers_for(network: Network, profile: QuantizationProfile) -> tuple[Layer, ...]:
    """Return the layers that a profile quantises, heads among them."""
    return tuple(layer for layer in network.layers if layer.operator in profile.operators)


def quantize(
    network: Network, profile: QuantizationProfile, layers: Sequence[Layer], ranges: TensorsData | None = None
) -> onnx.ModelProto:
    """Quantise some layers of a network.

    What a matrix product gives stays in float, also under the static profiles: what follows it (biases, activations,
    sums, norms) needs the precision, and the kernels give floats at no cost.

    Args:
        network: In float; untouched.
        profile: Which types.
        layers: Those to quantise; of a half-precision profile they are ignored, as it treats all alike.
        ranges: Of its tensors, for a static profile.

    Raises:
        ExportError: ONNX Runtime can't.
    """
    with quiet("root"), quiet("onnxruntime.transformers.float16"):
        try:
            found = _quantize(network, profile, [layer.node for layer in layers], ranges)
            onnx.checker.check_model(found)
        except Exception as fault:
            pass_on(fault)
            raise ExportError(
                f"ONNX Runtime {onnxruntime.__version__} can't quantise the network by profile {profile.name}: "
                f"{describe(fault)}. Choose another quantize.profile, or null to do without"
            ) from fault
    del found.metadata_props[:]
    return found


def _quantize(
    network: Network, profile: QuantizationProfile, nodes: list[str], ranges: TensorsData | None
) -> onnx.ModelProto:
    model = copy.deepcopy(network.model)
    if profile.kind == "half":
        return _half(model, profile)
    if not nodes:
        return model
    if profile.kind == "dynamic":
        return _dynamic(model, profile, nodes)
    assert ranges is not None, "a static profile goes by ranges"
    chosen = [*nodes, *network.between(nodes)]
    used = {network.nodes[name].op_type for name in chosen}
    quantizer = QDQQuantizer(
        model,
        profile.per_channel,
        profile.reduce_range,
        _TYPES[profile.weights],
        _TYPES[profile.activations],
        ranges,
        chosen,
        [],
        sorted(used),
        {
            "ActivationSymmetric": profile.symmetric,
            "WeightSymmetric": True,
            "OpTypesToExcludeOutputQuantization": ["Conv", *_PRODUCTS] if profile.symmetric else _PRODUCTS,
            "QuantizeBias": not profile.symmetric,
            "DedicatedQDQPair": profile.symmetric,
            "AddQDQPairToWeight": profile.symmetric,
        },
    )
    quantizer.quantize_model()
    _give_outputs_in_float(quantizer.model.model.graph)
    return _with_short_names(_sorted(quantizer.model))


def _give_outputs_in_float(graph: onnx.GraphProto) -> None:
    """Let an output that a quantised layer reads too be given as it was computed: the quantiser gives it rounded."""
    outputs = {one.name for one in graph.output}
    made = {name for node in graph.node for name in node.output}
    renamed = {f"{name}_QuantizeLinear_Input": name for name in outputs}
    rounded = {name: f"{name}_DequantizeLinear_Output" for inner, name in renamed.items() if inner in made}
    for node in graph.node:
        node.input[:] = [renamed.get(name, rounded.get(name, name)) for name in node.input]
        node.output[:] = [renamed.get(name, rounded.get(name, name)) for name in node.output]


_SHORTER = {
    "_QuantizeLinear_Output": "/q",
    "_DequantizeLinear_Output": "/dq",
    "_QuantizeLinear": "/q",
    "_DequantizeLinear": "/dq",
    "_quantized_zero_point": "/zero_point",
    "_quantized_scale": "/scale",
    "_zero_point": "/zero_point",
    "_quantized": "/int",
    "_scale": "/scale",
}
"""Endings of names, the longest first; of a network of 200,000 weights, long names are a tenth of the file."""


def _with_short_names(model: onnx.ModelProto) -> onnx.ModelProto:
    """Shorten the names that the quantiser made, and leave out shapes, which every runtime works out."""
    graph = model.graph
    fixed = {one.name for one in (*graph.input, *graph.output)}
    names = [one.name for one in graph.initializer] + [name for node in graph.node for name in node.output]
    short = dict[str, str]()
    taken = set(names) | fixed
    for name in names:
        ending = next((one for one in _SHORTER if name.endswith(one)), None)
        if name in fixed or ending is None:
            continue
        shorter = name.removesuffix(ending) + _SHORTER[ending]
        if shorter not in taken:
            short[name] = shorter
            taken.add(shorter)
    for constant in graph.initializer:
        constant.name = short.get(constant.name, constant.name)
    for node in graph.node:
        node.input[:] = [short.get(name, name) for name in node.input]
        node.output[:] = [short.get(name, name) for name in node.output]
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            node.name = ""  # what it gives says it already
    del graph.value_info[:]
    return model


def _sorted(model: ONNXModel) -> onnx.ModelProto:
    """Return a model whose nodes are in an order that runs, and its constants by name, so that its bytes are fixed."""
    model.topological_sort()
    found: onnx.ModelProto = model.model
    constants = sorted(found.graph.initializer, key=lambda one: one.name)
    del found.graph.initializer[:]
    found.graph.initializer.extend(constants)
    return found


def _dynamic(model: onnx.ModelProto, profile: QuantizationProfile, nodes: list[str]) -> onnx.ModelProto:
    _own_weights(model)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "dynamic.onnx")
        others = [node.name for node in model.graph.node if node.op_type in _PRODUCTS and node.name not in nodes]
        others += [f"{name}_MatMul" for name in others]  # what a Gemm becomes
        quantize_dynamic(
            model,
            path,
            op_types_to_quantize=_PRODUCTS,
            per_channel=profile.per_channel,
            reduce_range=profile.reduce_range,
            weight_type=_TYPES[profile.weights],
            nodes_to_exclude=others,
            extra_options={"MatMulConstBOnly": True},
        )
        return _sorted(ONNXModel(onnx.load(path)))


def _own_weights(model: onnx.ModelProto) -> None:
    """Give each Gemm a weight of its own: ONNX Runtime transposes it in place, under whatever else reads it."""
    constants = {one.name: one for one in model.graph.initializer}
    readers = Counter(name for node in model.graph.node for name in node.input)
    for node in model.graph.node:
        if node.op_type == "Gemm" and node.input[1] in constants and readers[node.input[1]] > 1:
            owned = copy.deepcopy(constants[node.input[1]])
            owned.name = f"{node.name}/weight"
            node.input[1] = owned.name
            model.graph.initializer.append(owned)


def _half(model: onnx.ModelProto, profile: QuantizationProfile) -> onnx.ModelProto:
    if profile.weights == "float16":
        return _sorted(ONNXModel(convert_float_to_float16(model, keep_io_types=True)))
    return _stored_as_bfloat16(model)


def _stored_as_bfloat16(model: onnx.ModelProto) -> onnx.ModelProto:
    """Store weights in bfloat16, cast to float where they are read: runtimes have kernels for little else."""
    casts = []
    for constant in model.graph.initializer:
        if constant.data_type != TensorProto.FLOAT or int(np.prod(constant.dims)) < 2:
            continue
        name, values = constant.name, numpy_helper.to_array(constant)
        halved = numpy_helper.from_array(values.astype(ml_dtypes.bfloat16), f"{name}_bfloat16")
        constant.CopyFrom(halved)
        casts.append(helper.make_node("Cast", [halved.name], [name], f"{name}_cast", to=TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


def save(model: onnx.ModelProto) -> bytes:
    """Return the bytes of a file; the same for the same model."""
    content: bytes = model.SerializeToString(deterministic=True)
    return content
