"""Measure in ONNX Runtime how long each layer of a network takes, at few widths from which the others follow."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import onnxruntime

from pruning.errors import ProfileError
from pruning.evaluation import Progress
from pruning.structure.groups import Groups
from pruning.timing.measuring import MeasuringError, cpu_name, measure
from pruning.timing.profiles import Profile, Profiles, Runtime, read_profiles
from pruning.timing.questions import ask


def runtime_here(*, provider: str = "CPUExecutionProvider", num_threads: int = 1, batch_size: int = 1) -> Runtime:
    """Describe this machine and its runtime, as profiles do that are made here; 0 threads are one for each core."""
    return Runtime(
        cpu=cpu_name(),
        onnxruntime=onnxruntime.__version__,
        provider=provider,
        num_threads=num_threads or os.cpu_count() or 1,
        batch_size=batch_size,
    )


def answer(folder: str | Path, progress: Progress | None = None) -> Profiles:
    """Answer a folder of questions on this machine, as its script does on any.

    Args:
        folder: written by `questions.ask`; the profile is written into it.
        progress: told after each file.

    Raises:
        ProfileError: the folder holds no questions, or this build of ONNX Runtime has no such provider.
    """
    try:
        return read_profiles(measure(Path(folder), progress))
    except MeasuringError as fault:
        raise ProfileError(str(fault)) from fault


def profile(
    groups: Groups,
    *,
    provider: str = "CPUExecutionProvider",
    num_threads: int = 1,
    batch_size: int = 1,
    shortest_ms: float = 1.0,
    progress: Progress | None = None,
) -> Profile:
    """Measure a network layer by layer on this machine; see `questions.ask` for what is measured.

    Noted of a layer is the time of its operator alone by the runtime's own clock, without the conversion of its input
    into blocks and back, which neighbouring layers share.

    Args:
        groups: of the network.
        provider: execution provider of ONNX Runtime.
        num_threads: threads within an operator; 0: one for each core.
        batch_size: samples per pass.
        shortest_ms: how long each layer is measured at each pair of widths, within 7 and 200 passes.
        progress: told after each file.

    Raises:
        ProfileError: the provider can't be measured or isn't there, the network has no layer, or its input is no tensor
            of 32-bit floats.
        ExportError: the network can't be exported.
    """
    with tempfile.TemporaryDirectory() as folder:
        ask(groups, folder, provider=provider, threads=[num_threads], batch_sizes=[batch_size], shortest_ms=shortest_ms)
        return answer(folder, progress).profiles[0]
