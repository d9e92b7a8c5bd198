"""Measure in ONNX Runtime how long each layer of a network takes, at few widths from which the others follow."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import Tensor

from pruning.algebra.axes import Atom, Axis, count, leaves
from pruning.errors import ProfileError
from pruning.evaluation import Progress
from pruning.files.export import export_onnx
from pruning.gathering.observation import Observer, observe
from pruning.structure.groups import Groups
from pruning.structure.layers import LayerCall
from pruning.timing.latency import measure_latency
from pruning.timing.latency_cost import alignment
from pruning.timing.operator_times import Shape, operator_times, time_grid
from pruning.timing.profiles import LayerProfile, Profile, Runtime, Surface, cpu_name

BLOCKS = (16, 8)
"""ONNX Runtime's kernels for the CPU work in blocks of 16 channels with AVX-512, of 8 with AVX2."""

_SYNCHRONOUS = ("CPUExecutionProvider", "DnnlExecutionProvider", "XnnpackExecutionProvider")
_PER_BLOCK = 3  # widths of each block that are measured: the least, the middle one, the largest
_ROUNDS = 30  # of the whole network


def runtime_here(*, provider: str = "CPUExecutionProvider", num_threads: int = 1, batch_size: int = 1) -> Runtime:
    """Describe this machine and its runtime, as profiles do that are made here."""
    return Runtime(
        cpu=cpu_name(),
        onnxruntime=onnxruntime.__version__,
        provider=provider,
        num_threads=num_threads,
        batch_size=batch_size,
    )


def profile(
    groups: Groups,
    *,
    provider: str = "CPUExecutionProvider",
    num_threads: int = 1,
    batch_size: int = 1,
    blocks: Sequence[int] = BLOCKS,
    shortest_ms: float = 1.0,
    progress: Progress | None = None,
) -> Profile:
    """Measure a network layer by layer on this machine.

    Each convolution and linear layer is run by itself on inputs of its real shape, at those of the widths that its
    groups can take where the curve bends: multiples of the blocks (the least, the middle one, the largest), those just
    beside them, and the extremes. Noted is the time of the operator alone by the runtime's own clock, without the
    conversion of its input into blocks and back, which neighbouring layers share.

    Args:
        groups: of the network; where channels may go decides which widths are measured.
        provider: execution provider of ONNX Runtime; its operators must be done when they return.
        num_threads: threads within an operator.
        batch_size: samples per pass.
        blocks: widths that the runtime may reward, falling.
        shortest_ms: how long each layer is measured at each pair of widths, within 7 and 200 passes.
        progress: told after each layer.

    Raises:
        ProfileError: the provider can't be measured, the network has no layer, or its input is no tensor of 32-bit
            floats.
        ExportError: the network can't be exported, or there is no such provider.
    """
    if provider not in _SYNCHRONOUS:
        raise ProfileError(
            f"{provider} can't be profiled: its operators may return before they are done; expected one of "
            f"{', '.join(_SYNCHRONOUS)}"
        )
    here = runtime_here(provider=provider, num_threads=num_threads, batch_size=batch_size)
    first = groups.example_inputs
    if not isinstance(first, Tensor) or first.dtype != torch.float32:
        raise ProfileError(
            "a network is profiled on one tensor of 32-bit floats; its example inputs are something else"
        )
    batch = torch.cat([first[:1]] * batch_size)
    noted = _Noted(groups, tuple(blocks))
    observe(groups.model, batch, [noted])
    if not noted.layers:
        raise ProfileError(f"{type(groups.model).__name__} calls no convolution and no linear layer")
    surfaces: dict[str, Surface] = {}
    for done, layer in enumerate(noted.layers):
        if layer.key not in surfaces:
            times = time_grid(
                layer.shape,
                layer.inputs,
                layer.outputs,
                num_threads=num_threads,
                provider=provider,
                shortest_ms=shortest_ms,
            )
            surfaces[layer.key] = Surface(inputs=layer.inputs, outputs=layer.outputs, ms=times)
        if progress is not None:
            progress(done + 1, len(noted.layers))
    whole_ms, overhead_ms = _whole(groups, first, batch, here)
    return Profile(
        runtime=here,
        blocks=tuple(blocks),
        surfaces=surfaces,
        layers=tuple(layer.entry for layer in noted.layers),
        whole_ms=whole_ms,
        overhead_ms=overhead_ms,
    )


def widths_to_measure(reachable: Sequence[int], blocks: Sequence[int]) -> tuple[int, ...]:
    """Choose among the sizes that an axis can take: some of each block, those just beside them, and the extremes."""
    ordered = sorted(set(reachable))
    chosen = {ordered[0], ordered[-1]}
    for block in blocks:
        members = [one for one in ordered if alignment(one, blocks) == block]
        places = np.linspace(0, len(members) - 1, min(_PER_BLOCK, len(members))).round().astype(int).tolist()
        chosen |= {members[place] for place in places}
    others = [one for one in ordered if alignment(one, blocks) == 1]
    for width in [one for one in chosen if blocks and one % blocks[0] == 0]:
        chosen |= {*[one for one in others if one < width][-1:], *[one for one in others if one > width][:1]}
    return tuple(sorted(chosen | {*others[:1], *others[-1:]}))


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


class _Noted(Observer):
    """Notes every call of a layer."""

    def __init__(self, groups: Groups, blocks: tuple[int, ...]) -> None:
        self.layers: list[_Layer] = []
        self._groups = groups
        self._blocks = blocks
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
                self._widths(inputs, divisors[geometry.input_axis]),
                self._widths(outputs, divisors[1 - geometry.input_axis]),
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

    def _widths(self, axis: Axis, divisor: int) -> tuple[int, ...]:
        """Choose among the sizes that an axis can take; where several groups meet on it, all between the extremes."""
        atoms = list(dict.fromkeys(atom for atom in leaves(axis) if atom in self._prunable))
        if len(atoms) == 1:
            reachable = [count(axis, {atoms[0]: kept}) for kept in range(1, atoms[0].size + 1)]
        else:
            least: Mapping[Atom, int] = dict.fromkeys(atoms, 1)
            reachable = list(range(count(axis, least), axis.size + 1))
        return widths_to_measure([one for one in reachable if one % divisor == 0], self._blocks)


def _whole(groups: Groups, first: Tensor, batch: Tensor, here: Runtime) -> tuple[float, float]:
    """Return the milliseconds of a pass of the network, and how much of it passes beside its operators.

    The operators' own times are added up: where other programs share the machine, they interrupt a long pass, and
    hardly ever a single operator.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = export_onnx(groups.model, first, Path(folder) / "whole.onnx")
        threads, provider = here.num_threads, here.provider
        (whole,) = measure_latency(
            {"whole": path}, batch_sizes=[here.batch_size], num_threads=threads, provider=provider, rounds=_ROUNDS
        )
        times = operator_times(
            path,
            {"input": batch.numpy()},
            num_threads=threads,
            provider=provider,
            shortest_ms=_ROUNDS * whole.median_ms,
        )
    most_ms = times.pop("")
    operators_ms = sum(times.values())
    overhead_ms = min(most_ms, max(0.0, whole.lower_quartile_ms - operators_ms))
    return operators_ms + overhead_ms, overhead_ms
