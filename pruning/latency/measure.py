"""Measure latency in ONNX Runtime: of models against each other, and of each layer of one."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray

from pruning.containers import Inputs, count_samples, take
from pruning.errors import ExportError, ProfileError
from pruning.evaluation import Progress
from pruning.graph.groups import Groups
from pruning.io.onnx import feeds_of, open_session
from pruning.latency.microbenchmarks import ask
from pruning.latency.profile import Profile, Profiles, Runtime, read_profiles
from pruning.latency.runner import MeasuringError, cpu_name, measure

_DTYPES = {"tensor(float)": np.float32, "tensor(double)": np.float64, "tensor(float16)": np.float16}
_WARMUP = 5  # passes of each model before the first measurement
_SHORTEST_MS = 1.0  # a measurement repeats the pass until about this long, so that the clock's grain doesn't matter


@dataclass(frozen=True)
class Latency:
    """Latency of one model at one batch size, over all rounds, in milliseconds per batch.

    Attributes:
        model: its name.
        batch_size: samples per batch.
        median_ms: the figure to quote.
        lower_quartile_ms: a quarter of the rounds was faster.
        upper_quartile_ms: a quarter was slower.
        num_rounds: how many times it was measured.
    """

    model: str
    batch_size: int
    median_ms: float
    lower_quartile_ms: float
    upper_quartile_ms: float
    num_rounds: int


def measure_latency(
    models: Mapping[str, str | Path],
    *,
    inputs: Inputs | None = None,
    batch_sizes: Sequence[int] = (1, 32),
    num_threads: int = 1,
    provider: str = "CPUExecutionProvider",
    rounds: int = 50,
    progress: Progress | None = None,
) -> tuple[Latency, ...]:
    """Measure models in turns, A B A B …, so that whatever else the machine does meets all of them alike.

    Args:
        models: name -> ONNX file whose inputs have a dynamic batch axis.
        inputs: samples, [N, ...] each, that batches are made of, in turns: a tensor, a tuple, or a dict by the inputs'
            names; None: random numbers, for models that read floating point.
        batch_sizes: each is measured by itself.
        num_threads: threads of ONNX Runtime.
        provider: what runs the operators.
        rounds: measurements of each model at each batch size.
        progress: told after each round.

    Returns:
        One entry per model and batch size: batch sizes in the order asked for, models in the order given.

    Raises:
        ExportError: a file is missing, damaged, or doesn't take the samples; or there are none, and it reads integers
            or has an axis other than the first that is dynamic.
    """
    sessions = {name: open_session(path, num_threads=num_threads, provider=provider) for name, path in models.items()}
    found: list[Latency] = []
    for position, batch_size in enumerate(batch_sizes):
        feeds = {name: _feed(name, session, batch_size, inputs) for name, session in sessions.items()}
        repeats = {}
        for name, session in sessions.items():
            # The fastest: one that was interrupted would give a model fewer repeats, so colder caches, than the others.
            fastest = min(_time_ms(session, feeds[name], 1) for _ in range(_WARMUP))
            repeats[name] = max(1, round(_SHORTEST_MS / max(fastest, 1e-6)))
        times: dict[str, list[float]] = {name: [] for name in sessions}
        for turn in range(rounds):
            for name, session in sessions.items():
                times[name].append(_time_ms(session, feeds[name], repeats[name]))
            if progress is not None:
                progress(position * rounds + turn + 1, rounds * len(batch_sizes))
        found.extend(_summary(name, batch_size, taken) for name, taken in times.items())
    return tuple(found)


def _summary(name: str, batch_size: int, times_ms: Sequence[float]) -> Latency:
    lower, median, upper = (float(value) for value in np.percentile(times_ms, [25, 50, 75]))
    return Latency(name, batch_size, median, lower, upper, len(times_ms))


def _time_ms(session: onnxruntime.InferenceSession, feed: Mapping[str, NDArray[np.generic]], repeats: int) -> float:
    start = time.perf_counter_ns()
    for _ in range(repeats):
        session.run(None, feed)
    return (time.perf_counter_ns() - start) / repeats / 1e6


def _feed(
    name: str, session: onnxruntime.InferenceSession, batch_size: int, inputs: Inputs | None
) -> dict[str, NDArray[np.generic]]:
    """Make a batch for a session: of the samples given, in turns, or of fixed random numbers."""
    if inputs is not None:
        numbers = torch.arange(batch_size) % count_samples(inputs)
        feed = feeds_of(session, take(inputs, numbers))
        for entry in session.get_inputs():
            fixed = [size if isinstance(size, int) else None for size in entry.shape[1:]]
            shape = list(feed[entry.name].shape[1:])
            if len(shape) != len(fixed) or any(size not in (None, one) for size, one in zip(fixed, shape, strict=True)):
                raise ExportError(
                    f"model {name!r}: input {entry.name!r} is {entry.shape}, the samples are {shape} each"
                )
        return feed
    generator, feed = np.random.default_rng(0), {}
    for entry in session.get_inputs():
        shape = list(entry.shape[1:])
        if not all(isinstance(size, int) for size in shape):
            raise ExportError(
                f"model {name!r}: input {entry.name!r} is {entry.type} {entry.shape}; expected a dynamic axis in the "
                "first place only, or samples to measure it on"
            )
        if entry.type not in _DTYPES:
            raise ExportError(f"model {name!r}: input {entry.name!r} is {entry.type}; give samples to measure it on")
        feed[entry.name] = generator.standard_normal([batch_size, *shape]).astype(_DTYPES[entry.type])
    return feed


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
        ProfileError: the provider can't be measured or isn't there, the network has no layer, or an input is no tensor,
            or of floats that aren't of 32 bits.
        ExportError: the network can't be exported.
    """
    with tempfile.TemporaryDirectory() as folder:
        ask(groups, folder, provider=provider, threads=[num_threads], batch_sizes=[batch_size], shortest_ms=shortest_ms)
        return answer(folder, progress).profiles[0]
