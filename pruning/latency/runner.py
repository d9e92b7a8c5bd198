"""Measure a profile on the machine that a model is for; onnxruntime and numpy are all that this file needs.

`questions.ask` writes a folder of small ONNX files with this file among them, as `measure.py`. There,

    python measure.py

runs every file and writes `profile.json`, which the pipeline reads on any machine. The pipeline's own profile of the
machine that it runs on is made by the same functions.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

MANIFEST = "questions.json"
PROFILE = "profile.json"
WEIGHTS = "weights.bin"

_WARMUP, _FEWEST, _MOST = 1, 4, 200  # passes
_ROUNDS = 30  # of the whole network
_TURNS = 3  # of passes with the runtime's notes and without
_LEAST_MS = 1e-6

Feeds = Mapping[str, Any]
"""Name of an input -> its values."""


class MeasuringError(Exception):
    """The questions can't be answered here."""


def measure(folder: Path, progress: Callable[[int, int], object] | None = None) -> Path:
    """Answer all questions of a folder, and write the profile beside them.

    Args:
        folder: Written by `questions.ask`.
        progress: Told after each file, with the number of all files.

    Raises:
        MeasuringError: The folder holds no questions, or this build of ONNX Runtime has no such provider.
    """
    try:
        text = (folder / MANIFEST).read_bytes()
    except FileNotFoundError:
        raise MeasuringError(f"{folder} holds no {MANIFEST}; run this file in the folder it was written to") from None
    try:
        manifest = json.loads(text)
        provider = manifest["provider"]
    except (ValueError, TypeError, KeyError, RecursionError) as fault:
        raise MeasuringError(
            f"{folder / MANIFEST} is damaged ({type(fault).__name__}); have it written again"
        ) from fault
    known = _runtime().get_available_providers()
    if provider not in known:
        raise MeasuringError(f"this ONNX Runtime has no {provider}; it has {', '.join(known)}")
    weights = np.random.default_rng(0).standard_normal(manifest["largest_weight"], dtype=np.float32)
    weights.tofile(folder / WEIGHTS)
    threads = list(dict.fromkeys(one or os.cpu_count() or 1 for one in manifest["threads"]))
    per_case = [1 + sum(len(parts) for surface in case["surfaces"].values() for parts in surface["rows"])
                for case in manifest["cases"]]  # fmt: skip
    steps = _steps(progress, sum(per_case) * len(threads))
    profiles = [_answer(folder, manifest, case, count, steps) for count in threads for case in manifest["cases"]]
    body = {"version": 1, "questions": sha256(text).hexdigest(), "profiles": profiles}
    beside = folder / f".{PROFILE}.partial"
    beside.write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")
    beside.replace(folder / PROFILE)
    (folder / WEIGHTS).unlink()
    return folder / PROFILE


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


def operator_times(
    path: Path, feeds: Feeds, *, threads: int, provider: str, shortest_ms: float, clock_ms: float = 0.0
) -> dict[str, float]:
    """Run a file and return the milliseconds of each of its operators by the operator's name.

    Under the empty name stands what a pass takes beside them, the runtime's own notes of them included.

    Args:
        path: The file.
        feeds: Its inputs.
        threads: Within an operator.
        provider: Execution provider.
        shortest_ms: How long it is run, within 4 and 200 passes.
        clock_ms: What the runtime's notes add to the time of each operator.
    """
    session = _session(path, threads, provider, trace=True)
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
    typical = {name: _typical(durations[_WARMUP:]) for name, durations in taken.items()}
    return {name: max(ms - clock_ms, 0.0) if name else ms for name, ms in typical.items()}


def clock_cost_ms(path: Path, feeds: Feeds, threads: int, provider: str) -> float:
    """Return what the runtime's notes add to the time of an operator, 2 to 3 microseconds: a third of a small layer's.

    Measured on operators that do next to nothing: by how much their times come to more than a pass without notes. Both
    are measured in turns, and the least of each counts: another program that holds up a turn only ever adds.
    """
    bare, noted = [], []
    for _ in range(_TURNS):
        bare.append(_pass_ms(path, feeds, threads, provider, rounds=_MOST))
        shortest_ms = _MOST * bare[-1]
        times = operator_times(path, feeds, threads=threads, provider=provider, shortest_ms=shortest_ms)
        del times[""]
        noted.append(sum(times.values()))
    return max(0.0, min(noted) - min(bare)) / len(times)


def _answer(folder: Path, manifest: Any, case: Any, threads: int, steps: Iterator[None]) -> dict[str, Any]:
    """Return the profile of one batch size with so many threads."""
    options = {"threads": threads, "provider": manifest["provider"]}
    options["clock_ms"] = clock_cost_ms(folder / manifest["clock"]["file"], _feeds(manifest["clock"]), **options)
    surfaces = {}
    for key, surface in case["surfaces"].items():
        rows = []
        for parts in surface["rows"]:
            row: dict[int, float] = {}
            for part in parts:
                shortest_ms = manifest["shortest_ms"] * len(part["outputs"])
                times = operator_times(folder / part["file"], _feeds(part), shortest_ms=shortest_ms, **options)
                for width in part["outputs"]:
                    own = sum(ms for name, ms in times.items() if name.split("_")[0] == f"o{width}")
                    row[width] = float(f"{max(own, _LEAST_MS):.4g}")
                next(steps)
            rows.append([row[width] for width in surface["outputs"]])
        surfaces[key] = {"inputs": surface["inputs"], "outputs": surface["outputs"], "ms": rows}
    whole_ms, overhead_ms = _whole(folder / case["whole"]["file"], _feeds(case["whole"], folder), **options)
    next(steps)
    return {
        "runtime": {
            "cpu": cpu_name(),
            "onnxruntime": _runtime().__version__,
            "provider": manifest["provider"],
            "num_threads": threads,
            "batch_size": case["batch_size"],
        },
        "granule": manifest["granule"],
        "period": manifest["period"],
        "surfaces": surfaces,
        "layers": case["layers"],
        "whole_ms": whole_ms,
        "overhead_ms": overhead_ms,
    }


def _whole(path: Path, feeds: Feeds, threads: int, provider: str, clock_ms: float) -> tuple[float, float]:
    """Return the milliseconds of a pass of the network, and how much of it passes beside its operators.

    The operators' own times are added up: where other programs share the machine, they interrupt a long pass, and
    hardly ever a single operator.
    """
    typical_ms = _pass_ms(path, feeds, threads, provider, rounds=_ROUNDS)
    times = operator_times(
        path, feeds, threads=threads, provider=provider, shortest_ms=_ROUNDS * typical_ms, clock_ms=clock_ms
    )
    most_ms = times.pop("")
    operators_ms = sum(times.values())
    overhead_ms = min(most_ms, max(0.0, typical_ms - operators_ms))
    return operators_ms + overhead_ms, overhead_ms


def _pass_ms(path: Path, feeds: Feeds, threads: int, provider: str, *, rounds: int) -> float:
    """Return the milliseconds of a pass, without any notes of operators."""
    session = _session(path, threads, provider)
    passes = []
    for _ in range(_WARMUP + rounds):
        start = time.perf_counter()
        session.run(None, feeds)
        passes.append((time.perf_counter() - start) * 1e3)
    return _typical(passes[_WARMUP:])


def _runtime() -> Any:
    """Return ONNX Runtime; who only reads what is measured here does without its loading."""
    import onnxruntime

    return onnxruntime


def _session(path: Path, threads: int, provider: str, *, trace: bool = False) -> Any:
    options = _runtime().SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if trace:
        options.enable_profiling, options.profile_file_prefix = True, str(path.with_suffix(""))
    return _runtime().InferenceSession(str(path), options, providers=[provider])


def _feeds(question: Any, folder: Path | None = None) -> dict[str, Any]:
    """Return what a file is fed: random numbers, or the values of a file beside it, which integers and masks need."""
    if folder is not None and "values" in question:
        with np.load(folder / question["values"]) as values:
            return {name: values[str(place)] for place, name in enumerate(question["feeds"])}
    generator = np.random.default_rng(0)
    return {name: generator.standard_normal(shape, dtype=np.float32) for name, shape in question["feeds"].items()}


def _typical(times: Sequence[float]) -> float:
    """Return the mean of the faster half: other programs only ever add, and the clock's grain is a microsecond."""
    return fmean(sorted(times)[: (len(times) + 1) // 2])


def _steps(progress: Callable[[int, int], object] | None, total: int) -> Iterator[None]:
    for done in range(1, total + 1):
        if progress is not None:
            progress(done, total)
        yield


if __name__ == "__main__":
    try:
        where = measure(Path(__file__).parent, lambda done, total: sys.stderr.write(f"\r{done} of {total} files"))
    except MeasuringError as fault:
        sys.exit(str(fault))
    sys.stderr.write(f"\nname it in params.yaml under profile.path: {where}\n")
