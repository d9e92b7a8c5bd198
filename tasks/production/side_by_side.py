"""Measure a candidate and what it would replace again, on the same test samples and the same machine, in turns."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from safetensors.numpy import load as parse_safetensors

from pruning.files.export import check_parity
from pruning.timing.latency import measure_latency
from tasks import export
from tasks.data import read_description, read_split
from tasks.determinism import begin
from tasks.measured import Measured
from tasks.models import example_inputs, load_model, measure
from tasks.params.settings import Settings, load
from tasks.production.gates import Figures
from tasks.production.registry import Version, answers_of
from tasks.production.restoring import Copy, brought_back
from tasks.progress import shown
from tasks.workspace import Workspace
from zoo.datasets.splits import Samples

FOLDERS = ("baseline", "dense", "onnx")


def measure_side_by_side(
    settings: Settings, workspace: Workspace, candidate: Version, production: Version | None
) -> tuple[Figures, Figures]:
    """Return the candidate's figures, and production's, or the candidate's own baseline's where there is none yet.

    Both are measured on the test samples that the candidate was registered with.

    Args:
        settings: Where the registry is, and how latency is measured.
        workspace: Looked into for the files of either version.
        candidate: The version that wants to be production.
        production: The version that is.

    Raises:
        WorkspaceError: Files of a version aren't anywhere any more.
        CheckpointError: A model can't be built any more from what its settings name.
    """
    begin(settings)
    with ExitStack() as stack:
        one = stack.enter_context(brought_back(settings, candidate, workspace, ("data", *FOLDERS)))
        two = stack.enter_context(brought_back(settings, production, workspace, FOLDERS)) if production else one
        stage = "dense" if production else "baseline"
        test = read_split(one.workspace, "test")
        files = {"candidate": _file(one, "dense"), "reference": _file(two, stage)}
        medians = _latencies(settings, files)
        new, old = _score(one, "dense", test, one.workspace), _score(two, stage, test, one.workspace)
        return (
            Figures(*new, medians["candidate"], _answer_difference(settings, candidate, one)),
            Figures(*old, medians["reference"], _answer_difference(settings, production, two) if production else None),
        )


def _file(copy: Copy, stage: str) -> Path:
    return copy.workspace.folder(export.FOLDER) / export.FILES[stage]


def _latencies(settings: Settings, files: Mapping[str, Path]) -> dict[str, dict[int, float]]:
    """Return the median latency of each file at each batch size, measured in turns."""
    chosen = settings.benchmark
    with shown("side by side") as progress:
        found = measure_latency(
            files,
            batch_sizes=chosen.batch_sizes,
            num_threads=chosen.threads[0],
            rounds=chosen.rounds,
            progress=progress,
        )
    medians: dict[str, dict[int, float]] = {name: {} for name in files}
    for latency in found:
        medians[latency.model][latency.batch_size] = latency.median_ms
    return medians


def _score(copy: Copy, stage: str, test: Samples, data: Workspace) -> tuple[Measured, float]:
    """Return what a checkpoint scores on the test samples, and the share on which its ONNX file agrees with it."""
    settings = load(copy.params)
    example = example_inputs(data, settings)
    model, _, _ = load_model(copy.workspace.folder(stage), settings, read_description(data), example)
    parity = check_parity(_file(copy, stage), model, test.inputs)
    return measure(model, test, settings, example), parity.close


def _answer_difference(settings: Settings, version: Version, copy: Copy) -> float:
    """Return how far the registered model's answers are from the recorded ones, relative to the largest."""
    batch = parse_safetensors(copy.batch.read_bytes())
    expected, found = batch["answers"], answers_of(settings, version.number, batch["inputs"])
    if found.shape != expected.shape or not np.isfinite(found).all():
        return sys.float_info.max
    return float(np.abs(found - expected).max() / max(np.abs(expected).max(), np.finfo(np.float32).tiny))
