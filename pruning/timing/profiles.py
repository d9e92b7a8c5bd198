"""What a profile holds: how long a runtime on a machine takes for each layer of a network, by the layer's widths."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pruning.errors import ProfileError

_MADE_BY = "make one with pruning.timing.profiling.profile on the machine that the model is for"


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
        version: of this format.
        runtime: where and how they were measured.
        blocks: widths that are multiples of the first are one class, of the second but not the first another, and so
            on: times are interpolated within a class alone.
        surfaces: the layers' times; layers that differ in nothing share one.
        layers: every call of a layer.
        whole_ms: the whole network at its full widths.
        overhead_ms: what a pass takes beside its operators, whatever the widths.
    """

    version: Literal[1] = 1
    runtime: Runtime
    blocks: tuple[int, ...]
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
        if list(self.blocks) != sorted(set(self.blocks), reverse=True) or any(block < 2 for block in self.blocks):
            raise ValueError(f"blocks must fall and be 2 or more; found {list(self.blocks)}")
        return self

    def write(self, path: str | Path) -> None:
        """Write the profile as JSON."""
        Path(path).write_text(self.model_dump_json(indent=1) + "\n", encoding="utf-8")


def read_profile(path: str | Path, *, expected: Runtime | None) -> Profile:
    """Read a profile.

    Args:
        path: its file.
        expected: where the model is to run, see `runtime_here`; None if the profile is meant to be of another machine.

    Raises:
        ProfileError: there is no such file, it is damaged, or it was measured elsewhere or otherwise.
    """
    try:
        found = Profile.model_validate_json(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as fault:
        raise ProfileError(f"no profile at {path}; {_MADE_BY}") from fault
    except (ValidationError, UnicodeDecodeError) as fault:
        raise ProfileError(f"{path} is no profile, or a damaged one: {fault}; {_MADE_BY}") from fault
    differences = found.runtime.differences(expected) if expected is not None else []
    if differences:
        raise ProfileError(
            f"{path} was measured elsewhere or otherwise; found and expected: {'; '.join(differences)}. If the model "
            f"is for that machine, say so (expected=None); else {_MADE_BY}"
        )
    return found


def cpu_name() -> str:
    """Return the model of this machine's processor with its architecture."""
    name = ""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
        # Virtual machines give many processors one name; family, model and stepping tell them apart.
        known = [facts[key] for key in ("cpu family", "model", "stepping") if key in facts]
        name = " ".join([facts.get("model name", facts.get("CPU part", "")), "/".join(known)]).strip()
    except OSError:
        name = platform.processor()
    return f"{name or 'unknown'}, {platform.machine()}, {os.cpu_count()} cores"
