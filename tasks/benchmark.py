"""Measure the latency of baseline and dense model, in turns. Nothing depends on this stage: times differ every run."""

from __future__ import annotations

import logging
from dataclasses import asdict

from pruning.timing.latency import measure_latency
from tasks import export
from tasks.models import begin
from tasks.progress import shown
from tasks.settings import Settings
from tasks.workspace import Workspace, write_json, writing

FOLDER = "latency"
FILE = "latency.json"

log = logging.getLogger("secateur")


def benchmark(settings: Settings, workspace: Workspace) -> None:
    """Write `latency.json`: median and quartiles in milliseconds a batch, for each model and batch size.

    Raises:
        ExportError: An ONNX file is missing or damaged.
    """
    begin(settings)
    chosen = settings.benchmark
    files = {name: workspace.folder(export.FOLDER) / export.FILES[name] for name in ("baseline", "dense")}
    with shown("benchmark") as progress:
        found = measure_latency(
            files, batch_sizes=chosen.batch_sizes, num_threads=chosen.threads, rounds=chosen.rounds, progress=progress
        )
    with writing(workspace.folder(FOLDER)) as folder:
        write_json(folder / FILE, {"threads": chosen.threads, "latencies": [asdict(latency) for latency in found]})
    for batch_size in chosen.batch_sizes:
        medians = {latency.model: latency.median_ms for latency in found if latency.batch_size == batch_size}
        log.info(
            "benchmark: batch %d takes %.3f ms, the baseline %.3f ms: %.2f times as fast",
            batch_size,
            medians["dense"],
            medians["baseline"],
            medians["baseline"] / medians["dense"],
        )
