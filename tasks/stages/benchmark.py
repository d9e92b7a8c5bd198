"""Measure the latency of baseline, dense and quantised model, in turns, beside what the profile predicted.

Only the report depends on this stage, because times differ in every run.
"""

from __future__ import annotations

import logging
import os
from dataclasses import asdict
from typing import Annotated

from pydantic import Field
from typing_extensions import TypedDict  # pydantic reads those of `typing` from Python 3.12 on

import pruning
from pruning.dynamic.gates import GatedModel
from pruning.errors import WorkspaceError
from pruning.latency.measure import Latency, measure_latency, runtime_here
from pruning.latency.profile import LatencyCost, Profiles
from tasks import quantization
from tasks.config.schema import Settings
from tasks.data import read_description, read_inputs
from tasks.determinism import begin
from tasks.loop.measurements import read_profile
from tasks.models import example_inputs, load_model
from tasks.quantization import read_quantization
from tasks.stages import export
from tasks.terminal import command_line, shown
from tasks.workspace import Json, Workspace, write_json, writing

FOLDER = "latency"
FILE = "latency.json"
FAR_OFF = 0.15
"""A measured share of the baseline's latency that is further than this from the predicted one is worth a warning."""

MODELS = ("baseline", "dense")
QUANTIZED = "quantized"

log = logging.getLogger("secateur")


_Milliseconds = Annotated[float, Field(gt=0)]


class Row(TypedDict):
    """Of a model with a number of threads and a batch size: milliseconds a batch."""

    model: str
    batch_size: int
    threads: int
    median_ms: _Milliseconds
    lower_quartile_ms: _Milliseconds
    upper_quartile_ms: _Milliseconds
    num_rounds: int
    predicted_ms: _Milliseconds | None


class Latencies(TypedDict):
    """What `latency.json` holds: rows of the baseline, of the dense model and of the quantised one if there is any."""

    latencies: list[Row]


def benchmark(settings: Settings, workspace: Workspace) -> None:
    """Write `latency.json`: median and quartiles in milliseconds a batch, by model, number of threads and batch size.

    If the profile is of this machine, its prediction is added. Shares of the baseline's latency are compared, because
    the load of a machine changes both models' times alike.

    Raises:
        ExportError: An ONNX file is missing or damaged.
        ProfileError: The profile is damaged.
    """
    begin(settings)
    chosen = settings.benchmark
    files = {name: workspace.folder(export.FOLDER) / export.FILES[name] for name in MODELS}
    groups = {name: _groups(settings, workspace, name) for name in MODELS}
    if read_quantization(workspace) is not None:
        files[QUANTIZED], groups[QUANTIZED] = workspace.folder(quantization.FOLDER) / quantization.ONNX, None
    profiles, samples = read_profile(workspace, "profile"), read_inputs(settings, workspace, "validation")
    inputs = samples.first(max(chosen.batch_sizes)).inputs
    rows = []
    for threads in dict.fromkeys(one or os.cpu_count() or 1 for one in chosen.threads):
        with shown(f"benchmark, {threads} threads") as progress:
            found = measure_latency(
                files,
                inputs=inputs,
                batch_sizes=chosen.batch_sizes,
                num_threads=threads,
                rounds=chosen.rounds,
                progress=progress,
            )
        for latency in found:
            predicted_ms = _predicted_ms(profiles, groups[latency.model], threads, latency)
            rows.append({**asdict(latency), "threads": threads, "predicted_ms": predicted_ms})
    for start in range(0, len(rows), len(files)):
        _say(*rows[start : start + len(files)])
    with writing(workspace.folder(FOLDER)) as folder:
        write_json(folder / FILE, {"latencies": rows})


def read_latencies(workspace: Workspace) -> list[tuple[Row, Row]]:
    """Read what was measured: for each number of threads and batch size, the baseline's row and the dense model's.

    Raises:
        WorkspaceError: It isn't there or is damaged.
    """
    return [(baseline, dense) for baseline, dense, _ in _read(workspace)]


def read_quantized_latencies(workspace: Workspace) -> list[tuple[Row, Row]]:
    """Read the same of the dense model's float file and the quantised one; nothing where there is none.

    Raises:
        WorkspaceError: It isn't there or is damaged.
    """
    return [(dense, quantized) for _, dense, quantized in _read(workspace) if quantized is not None]


def _read(workspace: Workspace) -> list[tuple[Row, Row, Row | None]]:
    found = dict[tuple[int, int], dict[str, Row]]()
    rows = workspace.read_json(FOLDER, FILE, "benchmark", Latencies)["latencies"]
    for row in rows:
        found.setdefault((row["threads"], row["batch_size"]), {})[row["model"]] = row
    whole = all(models.keys() - {QUANTIZED} == set(MODELS) for models in found.values())
    if not whole or len(rows) != sum(map(len, found.values())):
        path = workspace.folder(FOLDER) / FILE
        raise WorkspaceError(
            f"{path} is damaged: its rows aren't one of {' and '.join(MODELS)} each; delete {path.parent} and run "
            f"{command_line('run benchmark')} again"
        )
    return [(models["baseline"], models["dense"], models.get(QUANTIZED)) for models in found.values()]


def is_slower(reference: Row, other: Row) -> bool:
    """Say whether one of two models that were measured in turns is slower: three quarters of its times are longer."""
    return other["lower_quartile_ms"] > reference["median_ms"]


def _groups(settings: Settings, workspace: Workspace, name: str) -> pruning.Groups | None:
    """Return the groups of a model; None if it has gates, whose time no profile knows."""
    example = example_inputs(workspace, settings)
    model, _, _ = load_model(workspace.folder(name), settings, read_description(workspace), example)
    return None if isinstance(model, GatedModel) else pruning.find_groups(model, example)


def _predicted_ms(profiles: Profiles, groups: pruning.Groups | None, threads: int, latency: Latency) -> float | None:
    """Return what the profile predicts.

    None if there is none for this machine, these threads and this batch size, or if it knows nothing of the residual
    streams that were narrowed.
    """
    found = profiles.find(num_threads=threads, batch_size=latency.batch_size)
    here = runtime_here(num_threads=threads, batch_size=latency.batch_size)
    if found is None or groups is None or found.runtime != here:
        return None
    cost = LatencyCost(groups, found)
    return cost.predict({}) if cost.is_known else None


def _say(baseline: Json, dense: Json, quantized: Json | None = None) -> None:
    """Log the models' latencies, and how far off the prediction is."""
    measured = dense["median_ms"] / baseline["median_ms"]
    log.info(
        "benchmark: batch %d, threads %d: %.3f ms [quartiles %.3f, %.3f], the baseline %.3f ms [%.3f, %.3f]: "
        "%.2f times as fast",
        dense["batch_size"],
        dense["threads"],
        *(row[key] for row in (dense, baseline) for key in ("median_ms", "lower_quartile_ms", "upper_quartile_ms")),
        1 / measured,
    )
    if quantized is not None:
        log.info(
            "benchmark: the quantised file %.3f ms [%.3f, %.3f]: %.2f times as fast as the float one%s",
            *(quantized[key] for key in ("median_ms", "lower_quartile_ms", "upper_quartile_ms")),
            dense["median_ms"] / quantized["median_ms"],
            "; it is slower, so it isn't promoted" if is_slower(dense, quantized) else "",
        )
    if dense["predicted_ms"] is None or baseline["predicted_ms"] is None:
        return
    predicted = dense["predicted_ms"] / baseline["predicted_ms"]
    if abs(measured / predicted - 1) > FAR_OFF:
        log.warning(
            "benchmark: batch %d, threads %d: the dense model takes %.2f of the baseline's latency where %.2f was "
            "predicted. If the machine was busy, measure again; otherwise make a new profile: delete its folder and "
            "run %s",
            dense["batch_size"],
            dense["threads"],
            measured,
            predicted,
            command_line("run profile"),
        )
