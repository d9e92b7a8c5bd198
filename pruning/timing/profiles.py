"""What a profile holds: how long a runtime on a machine takes for each layer of a network, by the layer's widths."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from pruning.errors import ProfileError
from pruning.files.json_files import read_json

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
