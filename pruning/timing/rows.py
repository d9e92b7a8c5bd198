"""Small ONNX files to be timed: of one layer at many widths, and of operators that do next to nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto, helper

from pruning.structure.layers import Geometry
from pruning.timing.measuring import WEIGHTS

_LARGEST_GRAPH = 2**28  # bytes of weights that are loaded together
_OPSET, _IR_VERSION = 20, 10
_CLOCK_OPERATORS = 100


@dataclass(frozen=True)
class Shape:
    """What tells the time of a layer apart from its widths.

    Attributes:
        geometry: how it reads its input.
        extents: of its input, without the channels: of a convolution samples and spatial axes, of a linear layer all
            axes but the last.
        channels_per_group: where whole groups of a convolution go, the size of the weights' first axis that belongs to
            each; 0 where the groups stay.
    """

    geometry: Geometry
    extents: tuple[int, ...]
    channels_per_group: int = 0

    def weight_shape(self, inputs: int, outputs: int) -> tuple[int, ...]:
        """Return the weights' shape at these sizes of the axis that is summed over, and of the other one."""
        if not self.geometry.kernel:
            return (inputs, outputs)
        first = (inputs, outputs) if self.geometry.transposed else (outputs, inputs)
        return (*first, *self.geometry.kernel)

    def groups(self, inputs: int, outputs: int) -> int:
        """Return the groups of the convolution at these sizes."""
        if not self.channels_per_group:
            return self.geometry.groups
        return (inputs if self.geometry.transposed else outputs) // self.channels_per_group

    def input_shape(self, inputs: int, outputs: int) -> tuple[int, ...]:
        """Return the shape of what the layer reads at these sizes."""
        if not self.geometry.kernel:
            return (*self.extents, inputs)
        channels = inputs if self.geometry.transposed else inputs * self.groups(inputs, outputs)
        return (self.extents[0], channels, *self.extents[1:])

    def node(self, name: str, source: str, inputs: int, outputs: int) -> onnx.NodeProto:
        """Return the operator; its weights are `name` with "w" in front, its result `name`."""
        geometry, weight = self.geometry, f"w{name}"
        if not geometry.kernel:
            kind = "Gemm" if len(self.extents) == 1 else "MatMul"
            return helper.make_node(kind, [source, weight], [name], name=name)
        before, after = ([side[place] for side in geometry.padding] for place in (0, 1))
        kind = "Conv"
        if geometry.transposed:
            reach = [gap * (taps - 1) for gap, taps in zip(geometry.dilation, geometry.kernel, strict=True)]
            before, after = ([max(0, r - s) for r, s in zip(reach, sides, strict=True)] for sides in (before, after))
            kind = "ConvTranspose"
        return helper.make_node(
            kind,
            [source, weight],
            [name],
            name=name,
            strides=list(geometry.stride),
            dilations=list(geometry.dilation),
            pads=[*before, *after],
            group=self.groups(inputs, outputs),
        )


def write_clock(folder: Path, name: str) -> dict[str, Any]:
    """Write a chain of operators on a single number: what a pass of it takes less than its operators say is the clock.

    Returns:
        The file's name, and the shapes to feed.
    """
    nodes = [
        helper.make_node("Add", [f"o{place - 1}" if place else "x", "x"], [f"o{place}"], name=f"o{place}")
        for place in range(_CLOCK_OPERATORS)
    ]
    values = [helper.make_tensor_value_info(one, TensorProto.FLOAT, [1, 1, 1, 1]) for one in ("x", nodes[-1].output[0])]
    graph = helper.make_graph(nodes, "clock", values[:1], values[1:])
    _write(graph, folder / name)
    return {"file": name, "feeds": {"x": [1, 1, 1, 1]}}


def write_row(folder: Path, stem: str, shape: Shape, width: int, outputs: Sequence[int]) -> list[dict[str, Any]]:
    """Write a layer with one input width and all these output widths, side by side, so that they are timed in turns.

    Weights are not in the files: all of them read the beginning of one file of random numbers, which is made where they
    are timed.

    Returns:
        For each file written its name, its output widths, and the shapes to feed.
    """
    parts = []
    for number, part in enumerate(_parts(shape, width, outputs)):
        name = f"{stem}-{number}.onnx"
        nodes, weights, feeds = [], [], {}
        for one in part:
            wanted = shape.input_shape(width, one)
            source = f"x{wanted[1]}" if shape.geometry.kernel else "x"
            feeds[source] = list(wanted)
            weights.append(_weight(f"wo{one}", shape.weight_shape(width, one)))
            # A result of the graph would be new memory at each pass; among other layers it is memory used before.
            reduced = helper.make_node("ReduceMax", [f"o{one}"], [f"r{one}"], name=f"r{one}", keepdims=0)
            nodes += [shape.node(f"o{one}", source, width, one), reduced]
        graph = helper.make_graph(
            nodes,
            "row",
            [helper.make_tensor_value_info(source, TensorProto.FLOAT, wanted) for source, wanted in feeds.items()],
            [helper.make_tensor_value_info(f"r{one}", TensorProto.FLOAT, []) for one in part],
            weights,
        )
        _write(graph, folder / name)
        parts.append({"file": name, "outputs": part, "feeds": feeds})
    return parts


def _write(graph: onnx.GraphProto, path: Path) -> None:
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION)
    path.write_bytes(proto.SerializeToString(deterministic=True))


def _weight(name: str, shape: tuple[int, ...]) -> TensorProto:
    """Return a tensor whose values are the first of the file of weights."""
    weight = TensorProto(
        name=name, data_type=TensorProto.FLOAT, dims=shape, data_location=TensorProto.DataLocation.EXTERNAL
    )
    for key, value in (("location", WEIGHTS), ("offset", 0), ("length", 4 * prod(shape))):
        weight.external_data.add(key=key, value=str(value))
    return weight


def _parts(shape: Shape, width: int, outputs: Sequence[int]) -> Iterator[list[int]]:
    """Split a row into what is loaded together."""
    part: list[int] = []
    size = 0
    for one in outputs:
        size += 4 * prod(shape.weight_shape(width, one))
        if part and size > _LARGEST_GRAPH:
            yield part
            part, size = [], 4 * prod(shape.weight_shape(width, one))
        part.append(one)
    yield part
