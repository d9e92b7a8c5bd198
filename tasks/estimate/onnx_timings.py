"""Time what ONNX Runtime takes part in: the profile, the export and its proof, the benchmark."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from pruning.graph.groups import Groups
from pruning.io.onnx import export_onnx
from pruning.io.parity import check_parity
from pruning.latency.measure import answer, measure_latency
from pruning.latency.microbenchmarks import ask
from tasks.estimate.timings import Bench
from tasks.models import axes_that_differ


def time_profile(bench: Bench, groups: Groups) -> float:
    """Return the seconds of a profile: its files are written, and timed until the time is used up."""
    chosen = bench.settings.profile
    with tempfile.TemporaryDirectory() as folder:
        place, began = Path(folder, "questions"), bench.clock()
        if chosen.path is not None or chosen.batch_sizes:
            sizes = chosen.batch_sizes or (1,)
            ask(groups, place, provider=chosen.provider, threads=chosen.threads, batch_sizes=sizes)
        taken = bench.clock() - began
        if chosen.path is None and chosen.batch_sizes:
            with bench.watch() as (stamps, total, progress):
                answer(place, progress)
            done = len(stamps) - 1
            taken += (stamps[-1] - stamps[0]) * total[0] / done
            if done < total[0]:
                bench.cut.append("profile")
    bench.parts["profile"] = taken
    return taken


def time_exports(bench: Bench, relative: float) -> tuple[float, float]:
    """Return the seconds of writing and proving ONNX files of baseline and dense model, and of the benchmark.

    Args:
        bench: Of model and samples.
        relative: How long the dense model takes where the baseline takes one second; its own file isn't written.
    """
    chosen, model, inputs = bench.settings.benchmark, bench.subject.model, bench.subject.inputs["validation"]
    some = inputs.first(max(7, *chosen.batch_sizes)).inputs
    axes = axes_that_differ(model, some, bench.subject.data)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        opset = bench.settings.export.opset
        bench.once("an ONNX file", lambda: export_onnx(model, some, file, opset=opset, axes=axes))

        def compare(count: int) -> object:
            return check_parity(file, model, inputs.spread(count), by_class=False)

        proof = bench.by_size("proof of an ONNX file", bench.count("validation"), compare)[0]
        rounds = sum(
            _round(bench, file, some, size, threads)
            for threads in dict.fromkeys(chosen.threads)
            for size in chosen.batch_sizes
        )
    timed = rounds * chosen.rounds * (1 + relative)
    bench.parts["benchmark"] = timed
    return 2 * bench.parts["an ONNX file"] + proof * (1 + relative), timed


def _round(bench: Bench, file: Path, inputs: Any, batch_size: int, threads: int) -> float:
    """Return the seconds of a round of the benchmark, of one model."""
    with bench.watch() as (stamps, _, progress):
        measure_latency(
            {"model": file},
            inputs=inputs,
            batch_sizes=[batch_size],
            num_threads=threads,
            rounds=3,
            progress=progress,
        )
    if len(stamps) == 2:  # with what comes before the first
        return stamps[1] - stamps[0]
    return (stamps[-1] - stamps[1]) / (len(stamps) - 2)
