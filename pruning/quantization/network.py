"""The network of an ONNX file as quantisation sees it: its layers by name, its heads, what lies between layers."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper
from onnxruntime.quantization.shape_inference import quant_pre_process

from pruning.errors import ExportError, describe, pass_on
from pruning.graph.contexts import quiet

_WEIGHT_INPUT = {"Conv": 1, "ConvTranspose": 1, "Gemm": 1, "MatMul": 1, "Gather": 0}
_NO_KERNEL = {
    "ConvTranspose": "ONNX Runtime has no integer kernel for transposed convolutions",
    "LSTM": "its weights are quantised by no static profile",
    "GRU": "ONNX Runtime has no integer kernel for it",
    "RNN": "ONNX Runtime has no integer kernel for it",
}
_MIXING = ("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization", "GroupNormalization")
_ATTENDING = ("Attention", "MultiHeadAttention", "GroupQueryAttention")
_PASSING_ON = (
    *("Relu", "Clip", "MaxPool", "AveragePool", "GlobalAveragePool", "Reshape", "Flatten", "Transpose", "Squeeze"),
    *("Unsqueeze", "Pad", "Slice", "Split", "Resize"),
)
_JOINING = ("Add", "Concat")


@dataclass(frozen=True)
class Layer:
    """An operator with a weight.

    Attributes:
        name: Of the torch module, where the file tells; else the node's.
        node: Name of its node.
        operator: ONNX's.
        weight: Name of its weight.
        size: Number of its weights.
    """

    name: str
    node: str
    operator: str
    weight: str
    size: int


class Network:
    """A float network whose batch norms are folded and whose shapes are known, as `prepare` reads it."""

    def __init__(self, model: onnx.ModelProto, weights: Mapping[str, np.ndarray] | None = None) -> None:
        """Take the model, which isn't changed, and the torch model's weights, by which layers are named."""
        self.model, self._named_weights = model, weights or {}
        self.constants = {one.name: one for one in model.graph.initializer}
        self.nodes = {node.name: node for node in model.graph.node}
        self.producers = {name: node for node in model.graph.node for name in node.output if name}
        self.outputs = [one.name for one in model.graph.output]
        self.inputs = [one.name for one in model.graph.input if one.name not in self.constants]

    def with_model(self, model: onnx.ModelProto) -> Network:
        """Return another network of the same torch model."""
        return Network(model, self._named_weights)

    @cached_property
    def consumers(self) -> dict[str, list[onnx.NodeProto]]:
        """The nodes that read each tensor."""
        found: dict[str, list[onnx.NodeProto]] = {}
        for node in self.model.graph.node:
            for name in dict.fromkeys(node.input):
                found.setdefault(name, []).append(node)
        return found

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        """The layers with a constant float weight, in order."""
        by_content = {array.tobytes(): name for name, array in self._named_weights.items() if array.ndim == 2}
        found = []
        for node in self.model.graph.node:
            place = _WEIGHT_INPUT.get(node.op_type)
            weight = self.constants.get(node.input[place]) if place is not None and len(node.input) > place else None
            if weight is None or weight.data_type != onnx.TensorProto.FLOAT or len(weight.dims) < 2:
                continue
            name = self._name_of(node, weight, by_content)
            found.append(Layer(name, node.name, node.op_type, weight.name, int(np.prod(weight.dims))))
        return tuple(found)

    def _name_of(self, node: onnx.NodeProto, weight: onnx.TensorProto, by_content: Mapping[bytes, str]) -> str:
        """Name a layer after its torch module: by the weight's name, or by its values where it was transposed."""
        if not weight.name.endswith(".weight") and node.op_type in ("MatMul", "Gemm"):
            array = numpy_helper.to_array(weight)
            for content in (array.T.tobytes(), array.tobytes()):
                if content in by_content:
                    return by_content[content].removesuffix(".weight")
        if not weight.name.endswith(".weight"):
            return node.name
        name = weight.name
        if name not in self._named_weights and name.removeprefix("model.") in self._named_weights:
            name = name.removeprefix("model.")  # the exporter's wrapper around models of several inputs or outputs
        return name.removesuffix(".weight")

    @cached_property
    def without_kernel(self) -> dict[str, str]:
        """Nodes with weights that no profile quantises -> why."""
        return {node.name: _NO_KERNEL[node.op_type] for node in self.model.graph.node if node.op_type in _NO_KERNEL}

    @cached_property
    def is_convolutional(self) -> bool:
        """Whether it is a network of convolutions without attention and without norms over channels.

        Only of such networks the outliers of activations may be cut off, and sums be quantised.
        """
        kinds = {node.op_type for node in self.model.graph.node}
        attends = any(
            node.op_type == "MatMul" and not any(name in self.constants for name in node.input)
            for node in self.model.graph.node
        )
        return "Conv" in kinds and not attends and not kinds & {*_MIXING, *_ATTENDING}

    @cached_property
    def tail(self) -> frozenset[str]:
        """The nodes from which an output is reached without another layer in between; the heads are among them."""
        layers, found = {layer.node for layer in self.layers}, set[str]()
        waiting = [self.producers[name] for name in self.outputs if name in self.producers]
        while waiting:
            node = waiting.pop()
            if node.name in found:
                continue
            found.add(node.name)
            if node.name not in layers:
                waiting += [self.producers[name] for name in node.input if name in self.producers]
        return frozenset(found)

    @cached_property
    def heads(self) -> tuple[Layer, ...]:
        """The layers nearest to the outputs, which stay in float.

        Not so the one matrix product that gives the only output: it is quantised, and what it gives stays in float.
        """
        nearest = tuple(layer for layer in self.layers if layer.node in self.tail)
        if len(self.outputs) == 1 and len(nearest) == 1 and nearest[0].operator in ("Gemm", "MatMul"):
            return ()
        return nearest

    def between(self, quantized: Iterable[str]) -> Iterator[str]:
        """Yield the nodes between quantised layers that can go on with their integers, where it is convolutional.

        Args:
            quantized: Nodes of the layers that are.
        """
        if not self.is_convolutional:
            return
        layers = set(quantized)
        integers: set[str] = set()  # tensors
        for node in self.model.graph.node:
            given = [name for name in node.input if name and name not in self.constants]
            if node.name in layers:
                if node.op_type == "Conv":
                    integers.add(node.output[0])
            elif node.op_type in (*_PASSING_ON, *_JOINING) and node.name not in self.tail:
                joined = given if node.op_type in _JOINING else given[:1]
                whole = node.op_type not in _JOINING or len(given) == len(node.input)
                if joined and whole and all(name in integers for name in joined):
                    integers.update(node.output)
                    yield node.name


def prepare(path: str | Path, weights: Mapping[str, np.ndarray] | None = None) -> Network:
    """Read a float ONNX file for quantisation: fold what is constant and batch norms, work out shapes, name nodes.

    Args:
        path: The file.
        weights: Of the torch model by name, [outputs, inputs] where they have two axes; layers are named by them.

    Raises:
        ExportError: ONNX Runtime can't.
    """
    with tempfile.TemporaryDirectory() as folder, quiet("onnxruntime.quantization.shape_inference"):
        made = Path(folder, "prepared.onnx")
        try:
            _pre_process(Path(path), made)
            model = onnx.load(made)
        except Exception as fault:
            pass_on(fault)
            raise ExportError(
                f"ONNX Runtime {onnxruntime.__version__} can't prepare {path} for quantisation: {describe(fault)}. Set "
                "quantize.profile to null to do without"
            ) from fault
    for number, node in enumerate(model.graph.node):
        node.name = node.name or f"{node.op_type}_{number}"
    return Network(model, weights)


def _pre_process(path: Path, made: Path) -> None:
    """Prepare a file; where the symbolic inference of shapes gives up, ONNX's own has to do."""
    try:
        quant_pre_process(path, made, auto_merge=True)
    except Exception as fault:  # noqa: BLE001 - it asserts, and raises whatever its rules do
        pass_on(fault)
        quant_pre_process(path, made, skip_symbolic_shape=True)
