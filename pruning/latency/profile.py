"""What a profile holds, how long each layer takes by its widths; and the latency of a network predicted from it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from pruning.errors import ProfileError
from pruning.graph.axes import Axis, count, leaves
from pruning.graph.groups import Groups
from pruning.graph.module_copy import removed_tensors
from pruning.io.files import read_json

GRANULE = 8
"""Kernels for the CPU make 8 channels at a time with AVX2, 16 with AVX-512: widths in between are filled up."""

PERIOD = 64
"""They hold up to four times as many: efficiency follows a pattern that repeats every 32 or 64 channels."""

_MADE_BY = "make one on the machine that the model is for (docs/latency.md)"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Runtime(_Part):
    """Where and how times were measured: two profiles are comparable if these agree.

    Attributes:
        cpu: model of the processor, and its architecture.
        onnxruntime: version.
        provider: execution provider of ONNX Runtime.
        num_threads: threads within an operator.
        batch_size: samples per pass.
    """

    cpu: str
    onnxruntime: str
    provider: str
    num_threads: int = Field(ge=1)
    batch_size: int = Field(ge=1)

    @property
    def described(self) -> str:
        """Say it for people."""
        threads = "a thread" if self.num_threads == 1 else f"{self.num_threads} threads"
        return f"batch {self.batch_size}, {threads}, ONNX Runtime {self.onnxruntime} on {self.cpu}"

    def differences(self, other: Runtime) -> list[str]:
        """Say in which points another one differs."""
        mine, theirs = self.model_dump(), other.model_dump()
        return [f"{name} {mine[name]!r} and {theirs[name]!r}" for name in mine if mine[name] != theirs[name]]


class Surface(_Part):
    """Times of one layer over a grid of widths.

    Attributes:
        inputs: sizes of the weights' axis that is summed over (of a grouped convolution, the channels of each group);
            rising.
        outputs: sizes of their other axis of channels; rising.
        ms: [inputs][outputs], milliseconds per batch.
    """

    inputs: tuple[int, ...] = Field(min_length=1)
    outputs: tuple[int, ...] = Field(min_length=1)
    ms: tuple[tuple[float, ...], ...]

    @model_validator(mode="after")
    def _is_a_grid(self) -> Surface:
        for widths in (self.inputs, self.outputs):
            if list(widths) != sorted(set(widths)) or widths[0] < 1:
                raise ValueError(f"widths must rise from 1 or more; found {list(widths)[:8]}")
        if [len(row) for row in self.ms] != [len(self.outputs)] * len(self.inputs):
            raise ValueError(f"expected {len(self.inputs)} rows of {len(self.outputs)} times")
        if not all(0 < time < float("inf") for row in self.ms for time in row):
            raise ValueError("a time is not above zero, or not finite")
        return self


class LayerProfile(_Part):
    """One call of a layer in the network.

    Attributes:
        weight: name of its weights.
        surface: where its times stand in `Profile.surfaces`.
        input_axis: the axis of the weights that is summed over.
        positions: values that each index of the other axis makes, all samples of the batch together.
    """

    weight: str
    surface: str
    input_axis: Literal[0, 1]
    positions: int = Field(ge=1)


class Profile(_Part):
    """Times of a network's parts on one machine, in milliseconds per batch.

    Attributes:
        runtime: where and how they were measured.
        granule: sizes that are no multiples of it are one class; times are interpolated within a class alone.
        period: of sizes that layers make: multiples of the granule are of one class if they differ by periods.
        surfaces: the layers' times; layers that differ in nothing share one.
        layers: every call of a layer.
        whole_ms: the whole network at its full widths.
        overhead_ms: what a pass takes beside its operators, whatever the widths.
    """

    runtime: Runtime
    granule: int = Field(ge=2)
    period: int = Field(ge=2)
    surfaces: dict[str, Surface]
    layers: tuple[LayerProfile, ...] = Field(min_length=1)
    whole_ms: float = Field(gt=0)
    overhead_ms: float = Field(ge=0)

    @model_validator(mode="after")
    def _pass_takes_longer_than_its_overhead(self) -> Profile:
        if self.overhead_ms >= self.whole_ms:
            raise ValueError(f"overhead_ms ({self.overhead_ms:g}) is not below whole_ms ({self.whole_ms:g})")
        return self

    @model_validator(mode="after")
    def _layers_have_surfaces(self) -> Profile:
        missing = [layer.weight for layer in self.layers if layer.surface not in self.surfaces]
        if missing:
            raise ValueError(f"no times for {', '.join(missing[:4])}")
        if self.period % self.granule:
            raise ValueError(f"period ({self.period}) is no multiple of granule ({self.granule})")
        return self


class Profiles(_Part):
    """What a file of profiles holds: one network on one machine, with several numbers of threads and batch sizes.

    Attributes:
        version: of this format.
        questions: sha256 of the manifest that they answer.
        profiles: the first is the one that plans are made by.
    """

    version: Literal[1] = 1
    questions: str
    profiles: tuple[Profile, ...]

    def find(self, *, num_threads: int, batch_size: int) -> Profile | None:
        """Return the profile of so many threads and samples; None where there is none."""
        wanted = (num_threads, batch_size)
        fitting = (one for one in self.profiles if (one.runtime.num_threads, one.runtime.batch_size) == wanted)
        return next(fitting, None)

    def write(self, path: str | Path) -> None:
        """Write the profiles as JSON."""
        Path(path).write_text(self.model_dump_json(indent=1) + "\n", encoding="utf-8")


def read_profiles(path: str | Path) -> Profiles:
    """Read a file of profiles.

    Raises:
        ProfileError: there is no such file, or it is damaged.
    """
    try:
        return read_json(Path(path), Profiles, error=ProfileError, mend=_MADE_BY)
    except FileNotFoundError as fault:
        raise ProfileError(f"no profile at {path}; {_MADE_BY}") from fault


class SurfaceTimes:
    """The times of a layer at any widths: bilinear between measured widths of the same class.

    A runtime that holds several granules is faster at some multiples of its granule than at others, so straight lines
    lead only between multiples that hold the same place in the pattern. A width between two multiples takes as long as
    the next one, times what such widths were measured to take above it.
    """

    def __init__(self, surface: Surface, granule: int, period: int) -> None:
        self._ms = np.array(surface.ms)
        self._knots = (np.array(surface.inputs), np.array(surface.outputs))
        self._granule, self._periods = granule, (granule, period)  # sums over inputs have no pattern but the granule
        self._rows: dict[tuple[int, int], NDArray[np.float64]] = {}
        self._found: dict[tuple[int, int], float] = {}
        self._between = [1.0, 1.0]
        self._between = [self._above_the_next(place) for place in (0, 1)]

    @property
    def widest(self) -> tuple[int, int]:
        """The widths of the layer that was profiled."""
        return int(self._knots[0][-1]), int(self._knots[1][-1])

    @property
    def is_varied(self) -> tuple[bool, bool]:
        """Whether several widths were measured, of the inputs and of the outputs."""
        return len(self._knots[0]) > 1, len(self._knots[1]) > 1

    def at(self, inputs: int, outputs: int) -> float:
        """Return milliseconds at these widths, as measured or interpolated; constant beyond the last of a class."""
        return float(self._weights(0, inputs) @ self._ms @ self._weights(1, outputs))

    def lowest(self, inputs: int, outputs: int) -> float:
        """Return the least time at these widths or wider ones: the lower envelope, which never rises when widths fall.

        Times are bilinear within a class, so the least is at its next width or at a measured one.
        """
        key = (inputs, outputs)
        if key not in self._found:
            self._found[key] = float((self._wider(0, inputs) @ self._ms @ self._wider(1, outputs).T).min())
        return self._found[key]

    def _wider(self, place: int, width: int) -> NDArray[np.float64]:
        """Return the weights of the knots, [candidates, knots]: of a width, the next of each class, all wider knots."""
        if (place, width) not in self._rows:
            knots, granule = self._knots[place], self._granule
            furthest = min(width + self._periods[place], int(knots[-1]))
            multiples = range(-(-width // granule) * granule, furthest + 1, granule)
            candidates = sorted({width, *multiples, *knots[knots > width].tolist()})
            self._rows[place, width] = np.stack([self._weights(place, one) for one in candidates])
        return self._rows[place, width]

    def _weights(self, place: int, width: int) -> NDArray[np.float64]:
        """Return the weights of the knots from which the time at a width follows."""
        knots, granule = self._knots[place], self._granule
        weights = np.zeros(len(knots))
        if width in knots:
            weights[int(np.searchsorted(knots, width))] = 1
            return weights
        if width % granule:
            return self._between[place] * self._weights(place, min(-(-width // granule) * granule, int(knots[-1])))
        same = (knots % granule == 0) & (knots % self._periods[place] == width % self._periods[place])
        chosen = np.flatnonzero(same if same.any() else np.full(len(knots), True))
        right = int(np.searchsorted(knots[chosen], width))
        left, right = chosen[max(right - 1, 0)], chosen[min(right, len(chosen) - 1)]
        share = min(max((width - knots[left]) / max(knots[right] - knots[left], 1), 0.0), 1.0)
        weights[left] += 1 - share
        weights[right] += share
        return weights

    def _above_the_next(self, place: int) -> float:
        """Return how much longer widths between two multiples take than the next multiple: their median, 1 at least."""
        knots, times = self._knots[place], self._ms.sum(axis=1 - place)
        ratios = [
            times[index] / float(self._weights(place, -(-width // self._granule) * self._granule) @ times)
            for index, width in enumerate(knots.tolist())
            if width % self._granule and width < knots[-1] - knots[-1] % self._granule
        ]
        return max(1.0, float(np.median(ratios))) if ratios else 1.0


@dataclass(frozen=True)
class _Call:
    weight: str
    times: SurfaceTimes
    inputs: Axis
    outputs: Axis
    positions: int


class LatencyCost:
    """Milliseconds per batch as a function of how many channels each group keeps; a `landing.Measure`.

    The sum of the layers' times, of what all else takes (proportional to the values that the layers give) and of the
    pass itself (constant), so that the network that was profiled has the latency that was measured. Products of two
    activations, recurrent layers and whatever else `observation` doesn't see as a layer count with all else.

    Called, it takes for each layer the least time at its widths or wider ones, the lower envelope: to keep 63 channels
    is worth no more than to keep 64. So it never rises when channels go, and a plan whose single steps are given back
    while the target stays met ends on the widths that the profile rewards. `predict` says what a plan takes as it is.

    The layers of blocks that are gone from the model take no time, nor does what followed them.

    Args:
        groups: of the network that was profiled, or of one that was narrowed from it.
        profile: its times.

    Raises:
        ProfileError: the profile is of another network.
    """

    def __init__(self, groups: Groups, profile: Profile) -> None:
        model = type(groups.model).__name__
        times = {
            key: SurfaceTimes(surface, profile.granule, profile.period) for key, surface in profile.surfaces.items()
        }
        self.profile = profile
        self._atoms = {group.name: groups.atom(group.name) for group in groups}
        self._calls: list[_Call] = []
        gone = removed_tensors(groups.model)
        for layer in profile.layers:
            if layer.weight in gone:
                continue
            surface, axes = profile.surfaces[layer.surface], groups.trace.parameters.get(layer.weight, [])
            widest = (surface.inputs[-1], surface.outputs[-1])
            if len(axes) < 2:
                raise ProfileError(f"the profile is of another network: {model} has no layer {layer.weight}")
            inputs, outputs = (axes[layer.input_axis], axes[1 - layer.input_axis])
            if inputs.size > widest[0] or outputs.size > widest[1]:
                raise ProfileError(
                    f"the profile is of another network: its {layer.weight} has at most {widest[0]} input and "
                    f"{widest[1]} output channels, that of {model} has {inputs.size} and {outputs.size}"
                )
            self._calls.append(_Call(layer.weight, times[layer.surface], inputs, outputs, layer.positions))
        layers = sum(profile.surfaces[one.surface].ms[-1][-1] for one in profile.layers)
        values = sum(profile.surfaces[one.surface].outputs[-1] * one.positions for one in profile.layers)
        self._overhead = profile.overhead_ms
        rest = profile.whole_ms - profile.overhead_ms - layers
        # By itself a layer may take longer than among others; then all are scaled to what the whole network took.
        self._scale = 1.0 if rest >= 0 else (profile.whole_ms - profile.overhead_ms) / layers
        self._per_value = max(rest, 0.0) / values

    @property
    def is_known(self) -> bool:
        """Whether every layer was timed at more than one width along each axis that has been narrowed since.

        The widths of residual streams may not have been; `predict` then takes them for whole.
        """
        return all(
            axis.size == full or several
            for call in self._calls
            for axis, full, several in zip(
                (call.inputs, call.outputs), call.times.widest, call.times.is_varied, strict=True
            )
        )

    def __call__(self, kept: Mapping[str, int]) -> float:
        """Return milliseconds per batch on the lower envelope."""
        return self._total(kept, envelope=True)

    def predict(self, kept: Mapping[str, int]) -> float:
        """Return the milliseconds per batch to expect of exactly these widths."""
        return self._total(kept, envelope=False)

    def surcharge(self, kept: Mapping[str, int]) -> float:
        """Return how much longer than their share of the MACs the layers take that these groups touch.

        1 is a runtime that gives back in time what goes in MACs. Counted are the layers' own times, with axes of other
        groups as wide as they were profiled, however narrow the model at hand is.
        """
        sizes = {self._atoms[name]: number for name, number in kept.items()}
        taken, due = 0.0, 0.0
        for call in self._calls:
            whole = call.times.widest
            now = [
                full if sizes.keys().isdisjoint(leaves(axis)) else count(axis, sizes)
                for axis, full in zip((call.inputs, call.outputs), whole, strict=True)
            ]
            if now != list(whole):
                taken += call.times.at(*now)
                due += call.times.at(*whole) * prod(now) / prod(whole)
        return taken / due if due else 1.0

    def of_layers(self, weights: Collection[str]) -> float:
        """Return the milliseconds per batch of these layers, and of what follows them, at the widths that they have."""
        return self._time([call for call in self._calls if call.weight in weights], {}, envelope=False)

    def _total(self, kept: Mapping[str, int], *, envelope: bool) -> float:
        return self._overhead + self._time(self._calls, kept, envelope=envelope)

    def _time(self, calls: Sequence[_Call], kept: Mapping[str, int], *, envelope: bool) -> float:
        sizes = {self._atoms[name]: number for name, number in kept.items()}
        layers, values = 0.0, 0
        for call in calls:
            inputs, outputs = count(call.inputs, sizes), count(call.outputs, sizes)
            layers += call.times.lowest(inputs, outputs) if envelope else call.times.at(inputs, outputs)
            values += outputs * call.positions
        return self._scale * layers + self._per_value * values
