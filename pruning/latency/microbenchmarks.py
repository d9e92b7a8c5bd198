"""What a profile is measured with: each layer of a network at few widths, as small ONNX files to be timed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper
from torch import Tensor

from pruning.containers import Inputs, named_inputs, take
from pruning.errors import ModelError, ProfileError, unknown_name
from pruning.graph.axes import Atom, Axis, count, leaves
from pruning.graph.groups import Groups
from pruning.graph.layers import Geometry, LayerCall
from pruning.io.onnx import export_onnx
from pruning.latency import runner
from pruning.latency.profile import GRANULE, PERIOD, LayerProfile
from pruning.latency.runner import WEIGHTS
from pruning.statistics.layer_hooks import Observer, observe

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


SCRIPT = "measure.py"

_SYNCHRONOUS = ("CPUExecutionProvider", "DnnlExecutionProvider", "XnnpackExecutionProvider")
_WHOLE, _CLOCK = "whole.onnx", "clock.onnx"


def check_provider(provider: str) -> None:
    """See that operators of an execution provider are done when they return.

    Raises:
        ProfileError: They may not be, or ONNX Runtime knows no such provider.
    """
    if provider not in onnxruntime.get_all_providers():
        raise ProfileError(unknown_name("execution provider", provider, onnxruntime.get_available_providers()))
    if provider not in _SYNCHRONOUS:
        raise ProfileError(
            f"{provider} can't be profiled: its operators may return before they are done; expected one of "
            f"{', '.join(_SYNCHRONOUS)}"
        )


def ask(
    groups: Groups,
    folder: str | Path,
    *,
    provider: str = "CPUExecutionProvider",
    threads: Sequence[int] = (1,),
    batch_sizes: Sequence[int] = (1,),
    shortest_ms: float = 1.0,
) -> None:
    """Write a folder of questions about a network, with the script that answers them anywhere.

    Each convolution and linear layer is to be run by itself on inputs of its real shape, at those of the widths that
    its groups can take where the curve bends, see `made_widths` and `summed_widths`. The same network and settings
    write the same bytes.

    Args:
        groups: of the network; where channels may go decides which widths are asked for.
        folder: where the files go; it is made.
        provider: execution provider of ONNX Runtime; its operators must be done when they return.
        threads: numbers of threads within an operator; 0 is as many as the machine has cores.
        batch_sizes: samples per pass. Every number of threads is measured with every batch size.
        shortest_ms: how long each layer is measured at each pair of widths, within 4 and 200 passes.

    Raises:
        ProfileError: the provider can't be measured, the network has no layer, or an input is no tensor, or of
            floats that aren't of 32 bits.
        ExportError: the network can't be exported.
    """
    folder = Path(folder)
    first = groups.example_inputs
    check_provider(provider)
    try:
        named = named_inputs(first, groups.model)
    except ModelError as fault:
        raise ProfileError(f"a network is profiled on tensors, but {fault}") from fault
    for name, one in named.items():
        if one.is_floating_point() and one.dtype != torch.float32:
            raise ProfileError(f"a network is profiled with 32-bit floats; its {name} is {one.dtype}")
    folder.mkdir(parents=True, exist_ok=True)
    cases = [_case(groups, first, batch_size, folder) for batch_size in batch_sizes]
    export_onnx(groups.model, first, folder / _WHOLE)
    shutil.copyfile(runner.__file__, folder / SCRIPT)
    manifest = {
        "script": sha256((folder / SCRIPT).read_bytes()).hexdigest(),
        "provider": provider,
        "threads": list(threads),
        "granule": GRANULE,
        "period": PERIOD,
        "shortest_ms": shortest_ms,
        "clock": write_clock(folder, _CLOCK),
        "largest_weight": max(case.pop("largest_weight") for case in cases),
        "cases": cases,
    }
    (folder / runner.MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


def made_widths(reachable: Sequence[int]) -> tuple[int, ...]:
    """Choose among the sizes of an axis that a layer makes: one pattern of the runtime at either end, and few beside.

    A kernel makes a granule of channels at a time and holds up to four granules, so that times follow a pattern that
    repeats. Between two sizes that hold the same place in it they lie on a line.
    """
    members = [one for one in sorted(set(reachable)) if one % GRANULE == 0]
    ends = [one for one in members if one <= PERIOD or one > members[-1] - PERIOD]
    return _with_neighbours(reachable, ends)


def summed_widths(reachable: Sequence[int]) -> tuple[int, ...]:
    """Choose among the sizes of an axis that a layer sums over, where times lie on a line: least, middle, largest."""
    members = [one for one in sorted(set(reachable)) if one % GRANULE == 0]
    return _with_neighbours(reachable, _least_middle_largest(members))


def _with_neighbours(reachable: Sequence[int], members: Sequence[int]) -> tuple[int, ...]:
    """Add the extremes, and some of the sizes between the granules."""
    ordered = sorted(set(reachable))
    others = [one for one in ordered if one % GRANULE]
    chosen = {ordered[0], ordered[-1], *members, *others[:1], *others[-1:]}
    for width in _least_middle_largest(members):
        chosen |= {*[one for one in others if one < width][-1:], *[one for one in others if one > width][:1]}
    return tuple(sorted(chosen))


def _least_middle_largest(members: Sequence[int]) -> list[int]:
    return sorted({members[0], members[len(members) // 2], members[-1]}) if members else []


@dataclass(frozen=True)
class _Layer:
    """A call of a layer, and the widths at which it is measured."""

    shape: Shape
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    weight: str
    positions: int

    @property
    def key(self) -> str:
        """What layers share that take equal times."""
        geometry = self.shape.geometry
        kind = "linear" if not geometry.kernel else "transposed" if geometry.transposed else "convolution"
        reading = f" {geometry.kernel} by {geometry.stride}, dilated {geometry.dilation}, padded {geometry.padding}"
        groups = f" in {geometry.groups} groups of {self.shape.channels_per_group}" if geometry.groups > 1 else ""
        return (
            f"{kind}{reading if geometry.kernel else ''}{groups}, {self.inputs[-1]} to {self.outputs[-1]} channels "
            f"of {self.inputs[0]} to {self.outputs[0]} at least, on {self.shape.extents}"
        )

    @property
    def entry(self) -> LayerProfile:
        """What the profile holds of it."""
        return LayerProfile(
            weight=self.weight,
            surface=self.key,
            input_axis=0 if self.shape.geometry.input_axis == 0 else 1,
            positions=self.positions,
        )


def _case(groups: Groups, first: Inputs, batch_size: int, folder: Path) -> dict[str, Any]:
    """Write the files of one batch size, and return what the manifest says of them."""
    batch = take(first, torch.zeros(batch_size, dtype=torch.int64))
    noted = _Noted(groups)
    observe(groups.model, batch, [noted])
    if not noted.layers:
        raise ProfileError(f"{type(groups.model).__name__} calls no convolution and no linear layer")
    surfaces: dict[str, Any] = {}
    for layer in noted.layers:
        if layer.key not in surfaces:
            stem = f"batch-{batch_size}-layer-{len(surfaces)}"
            rows = [write_row(folder, f"{stem}-{one}", layer.shape, one, layer.outputs) for one in layer.inputs]
            surfaces[layer.key] = {"inputs": layer.inputs, "outputs": layer.outputs, "rows": rows}
    return {
        "batch_size": batch_size,
        "whole": {"file": _WHOLE, **_feeds(named_inputs(batch, groups.model), folder, f"batch-{batch_size}.npz")},
        "surfaces": surfaces,
        "layers": [layer.entry.model_dump() for layer in noted.layers],
        "largest_weight": max(prod(one.shape.weight_shape(one.inputs[-1], one.outputs[-1])) for one in noted.layers),
    }


def _feeds(batch: Mapping[str, Tensor], folder: Path, name: str) -> dict[str, Any]:
    """Say what the whole network is fed: random numbers in place of one tensor of floats, else the example's values."""
    shapes = {key: list(tensor.shape) for key, tensor in batch.items()}
    if len(batch) == 1 and all(tensor.dtype == torch.float32 for tensor in batch.values()):
        return {"feeds": shapes}
    values: dict[str, Any] = {f"{place}": tensor.detach().cpu().numpy() for place, tensor in enumerate(batch.values())}
    np.savez(folder / name, **values)
    return {"feeds": shapes, "values": name, "values_sha256": sha256((folder / name).read_bytes()).hexdigest()}


class _Noted(Observer):
    """Notes every call of a layer."""

    def __init__(self, groups: Groups) -> None:
        self.layers: list[_Layer] = []
        self._groups = groups
        self._prunable = {groups.atom(group.name) for group in groups}

    def on_layer(self, call: LayerCall) -> None:
        axes, geometry = self._groups.trace.parameters[call.weight], call.geometry
        inputs, outputs = axes[geometry.input_axis], axes[1 - geometry.input_axis]
        extents = tuple(call.inputs.shape[:-1])
        if geometry.kernel:
            batched = call.inputs.shape if call.inputs.ndim == len(geometry.kernel) + 2 else (1, *call.inputs.shape)
            extents = (batched[0], *batched[2:])
        per_group = self._per_group(call, axes[0])
        divisors = (per_group or geometry.groups, 1)  # of the weights' axes
        self.layers.append(
            _Layer(
                Shape(geometry, extents, per_group),
                summed_widths(self._reachable(inputs, divisors[geometry.input_axis])),
                made_widths(self._reachable(outputs, divisors[1 - geometry.input_axis])),
                call.weight,
                call.outputs.numel() // outputs.size,
            )
        )

    def _per_group(self, call: LayerCall, axis: Axis) -> int:
        """Return the size of the first axis that belongs to each group of a convolution where only whole groups go.

        0 otherwise: where both groups and channels within them can go, times are taken with all groups there.
        """
        module = call.weight.rpartition(".")[0]
        counts = [one for one in self._groups.trace.facts.counts if one.place == (module, "groups")]
        groups = {atom for one in counts for atom in leaves(one.axis) if atom in self._prunable}
        only = groups == {atom for atom in leaves(axis) if atom in self._prunable}
        return axis.size // call.geometry.groups if groups and only else 0

    def _reachable(self, axis: Axis, divisor: int) -> list[int]:
        """Return the sizes that an axis can take; where several groups meet on it, all between the extremes."""
        atoms = list(dict.fromkeys(atom for atom in leaves(axis) if atom in self._prunable))
        if len(atoms) == 1:
            sizes = [count(axis, {atoms[0]: kept}) for kept in range(1, atoms[0].size + 1)]
        else:
            least: Mapping[Atom, int] = dict.fromkeys(atoms, 1)
            sizes = list(range(count(axis, least), axis.size + 1))
        return [one for one in sizes if one % divisor == 0]
