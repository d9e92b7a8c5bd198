"""Measure a candidate and what it would replace again, on the same test samples and the same machine, in turns."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import ExitStack, nullcontext
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load as parse_safetensors
from torch import Tensor

from pruning.errors import SecateurError, WorkspaceError
from pruning.files.export import check_parity
from pruning.timing.latency import measure_latency
from tasks import export
from tasks.data import read_description, read_split
from tasks.determinism import begin
from tasks.measured import Measured
from tasks.memory import bounded_memory
from tasks.models import example_inputs, load_model, measure
from tasks.params.settings import Settings
from tasks.production.gates import Figures
from tasks.production.registry import Version
from tasks.production.restoring import Copy, brought_back
from tasks.production.served import answers_of
from tasks.production.trust import settings_to_measure_by
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
    try:
        with bounded_memory() if settings.run.device == "cpu" else nullcontext():
            return _measure(settings, workspace, candidate, production)
    except (SecateurError, OSError):
        raise
    except Exception as error:  # a version may hold anything, and so raise anything where it is run
        other = f" or version {production.number}" if production else ""
        raise WorkspaceError(
            f"version {candidate.number}{other} can't be measured: {type(error).__name__}: {error}"
        ) from error


def _measure(
    settings: Settings, workspace: Workspace, candidate: Version, production: Version | None
) -> tuple[Figures, Figures]:
    """Do that: what may not be run is found out before anything is."""
    with ExitStack() as stack:
        one = stack.enter_context(brought_back(settings, candidate, workspace, ("data", *FOLDERS)))
        two = stack.enter_context(brought_back(settings, production, workspace, FOLDERS)) if production else one
        by_one, by_two = (settings_to_measure_by(settings, copy.params, copy.commit) for copy in (one, two))
        differences: list[float | None] = [_answer_difference(settings, candidate, one)]
        differences += [_answer_difference(settings, production, two)] if production else [None]
        stage = "dense" if production else "baseline"
        test = read_split(one.workspace, "test")
        files = {"candidate": _file(one, "dense"), "reference": _file(two, stage)}
        medians = _latencies(settings, files, test.inputs)
        new = _score(by_one, one, "dense", test, one.workspace)
        old = _score(by_two, two, stage, test, one.workspace)
        return (
            Figures(*new, medians["candidate"], differences[0]),
            Figures(*old, medians["reference"], differences[1]),
        )


def _batch(copy: Copy, version: Version) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the recorded inputs and answers."""
    try:
        batch = parse_safetensors(copy.batch.read_bytes())
        return batch["inputs"], batch["answers"]
    except Exception as error:  # what else was recorded under that name: the parser raises what it likes
        raise WorkspaceError(f"version {version.number}: its {copy.batch.name} can't be read ({error})") from error


def _file(copy: Copy, stage: str) -> Path:
    return copy.workspace.folder(export.FOLDER) / export.FILES[stage]


def _latencies(settings: Settings, files: Mapping[str, Path], inputs: Tensor) -> dict[str, dict[int, float]]:
    """Return the median latency of each file at each batch size, measured in turns."""
    chosen = settings.benchmark
    with shown("side by side") as progress:
        found = measure_latency(
            files,
            inputs=inputs,
            batch_sizes=chosen.batch_sizes,
            num_threads=chosen.threads[0],
            rounds=chosen.rounds,
            progress=progress,
        )
    medians: dict[str, dict[int, float]] = {name: {} for name in files}
    for latency in found:
        medians[latency.model][latency.batch_size] = latency.median_ms
    return medians


def _score(settings: Settings, copy: Copy, stage: str, test: Samples, data: Workspace) -> tuple[Measured, float]:
    """Return what a checkpoint scores on the test samples, and the share on which its ONNX file agrees with it."""
    example = example_inputs(data, settings)
    model, _, _ = load_model(copy.workspace.folder(stage), settings, read_description(data), example)
    parity = check_parity(_file(copy, stage), model, test.inputs)
    return measure(model, test, settings, example), parity.close


def _answer_difference(settings: Settings, version: Version, copy: Copy) -> float:
    """Return how far the registered file's answers are from the recorded ones, relative to the largest."""
    inputs, expected = _batch(copy, version)
    found = answers_of(settings, version, inputs)
    if found.shape != expected.shape or not np.isfinite(found).all():
        return sys.float_info.max
    return float(np.abs(found - expected).max() / max(np.abs(expected).max(), np.finfo(np.float32).tiny))
