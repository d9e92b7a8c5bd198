"""Time single operators in ONNX Runtime by the runtime's own clock."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from pruning.files.export import open_session
from pruning.structure.layers import Geometry

_LARGEST_GRAPH = 2**28  # bytes of weights that are loaded together
_OPSET, _IR_VERSION = 20, 10
_WARMUP, _FEWEST, _MOST = 2, 7, 200


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


def time_grid(
    shape: Shape,
    inputs: Sequence[int],
    outputs: Sequence[int],
    *,
    num_threads: int,
    provider: str,
    shortest_ms: float,
) -> tuple[tuple[float, ...], ...]:
    """Measure a layer over a grid of widths.

    All widths of a row are run in turns, so that whatever else the machine does meets them alike.

    Args:
        shape: of the layer.
        inputs: sizes of the weights' axis that is summed over.
        outputs: sizes of the other one.
        num_threads: threads within an operator.
        provider: what runs the operators.
        shortest_ms: how long each is measured, within 7 and 200 passes.

    Returns:
        [inputs][outputs], milliseconds: the mean of the faster half of the passes.

    Raises:
        ExportError: the provider is unknown.
    """
    options: dict[str, Any] = {"num_threads": num_threads, "provider": provider}
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "row.onnx"
        for width in inputs:
            row: dict[str, float] = {}
            for part in _parts(shape, width, outputs):
                feeds = _write_row(path, shape, width, part)
                times = operator_times(path, feeds, shortest_ms=shortest_ms * len(part), **options)
                for one in part:
                    row[f"o{one}"] = sum(ms for name, ms in times.items() if name.split("_")[0] == f"o{one}")
            rows.append(tuple(max(row[f"o{one}"], 1e-6) for one in outputs))
    return tuple(rows)


def operator_times(
    path: Path,
    feeds: Mapping[str, NDArray[np.float32]],
    *,
    num_threads: int,
    provider: str,
    shortest_ms: float,
) -> dict[str, float]:
    """Run a file and return the milliseconds of each of its operators by the operator's name.

    Under the empty name stands what a pass takes beside them, the clock's own reading of each operator included.

    Raises:
        ExportError: the file can't be loaded, or the provider is unknown.
    """
    session = open_session(path, num_threads=num_threads, provider=provider, trace_to=path.with_name("times"))
    start = time.perf_counter()
    for _ in range(_WARMUP):
        session.run(None, feeds)
    once_ms = (time.perf_counter() - start) / _WARMUP * 1e3
    for _ in range(min(max(round(shortest_ms / once_ms), _FEWEST), _MOST)):
        session.run(None, feeds)
    written = Path(session.end_profiling())
    events = json.loads(written.read_text(encoding="utf-8"))
    written.unlink()
    taken: dict[str, list[float]] = {}
    for event in events:
        name = event["name"].removesuffix("_kernel_time")
        if event["cat"] == "Node" and name != event["name"]:
            taken.setdefault(name, []).append(event["dur"] / 1e3)
    passes = [event["dur"] / 1e3 for event in events if event["name"] == "model_run"]
    taken[""] = [whole - sum(turn) for whole, *turn in zip(passes, *taken.values(), strict=True)]
    return {name: _typical(durations[_WARMUP:]) for name, durations in taken.items()}


def _typical(times: Sequence[float]) -> float:
    """Return the mean of the faster half: other programs only ever add, and the clock's grain is a microsecond."""
    return fmean(sorted(times)[: (len(times) + 1) // 2])


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


def _write_row(path: Path, shape: Shape, width: int, outputs: Sequence[int]) -> dict[str, NDArray[np.float32]]:
    """Write a file that holds the layer at all these widths, side by side, and return what to feed it."""
    generator = np.random.default_rng(0)
    nodes, weights, feeds = [], [], {}
    for one in outputs:
        wanted = shape.input_shape(width, one)
        source = f"x{wanted[1]}" if shape.geometry.kernel else "x"
        feeds[source] = generator.standard_normal(wanted, dtype=np.float32)
        values = generator.standard_normal(shape.weight_shape(width, one), dtype=np.float32)
        weights.append(numpy_helper.from_array(values, f"wo{one}"))
        # A result of the graph would be new memory at each pass; among other layers it is memory used before.
        reduced = helper.make_node("ReduceMax", [f"o{one}"], [f"r{one}"], name=f"r{one}", keepdims=0)
        nodes += [shape.node(f"o{one}", source, width, one), reduced]
    graph = helper.make_graph(
        nodes,
        "row",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, value.shape) for name, value in feeds.items()],
        [helper.make_tensor_value_info(f"r{one}", TensorProto.FLOAT, []) for one in outputs],
        weights,
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION)
    path.write_bytes(proto.SerializeToString())
    return feeds
