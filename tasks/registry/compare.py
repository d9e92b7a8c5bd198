"""Measure a candidate and the version it would replace, on the same test samples and machine, in turns."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pruning.batches import Batches
from pruning.containers import Inputs, count_samples, take
from pruning.errors import SecateurError, WorkspaceError
from pruning.io.onnx import feeds_of, open_session
from pruning.io.parity import check_parity
from pruning.latency.measure import measure_latency
from tasks.config.schema import Settings
from tasks.data import read_description, read_split, task_of
from tasks.determinism import begin, bounded_memory
from tasks.models import example_inputs, load_model, measure_each, measure_of
from tasks.registry.manifest import read_answered_batch
from tasks.registry.mlflow_models import Version
from tasks.registry.restore import Copy, brought_back
from tasks.registry.trust import answers_of, refuse_what_hangs, settings_to_measure_by
from tasks.reporting.intervals import Interval, Paired, compare_pairs, interval_of
from tasks.reporting.verdict import Figures
from tasks.stages import export
from tasks.terminal import shown
from tasks.workspace import Workspace

FOLDERS = ("baseline", "dense", "onnx")


class _Times(TypedDict):
    """By batch size."""

    latencies_ms: dict[int, float]
    quartiles_ms: dict[int, Interval]


def measure_side_by_side(
    settings: Settings, workspace: Workspace, candidate: Version, production: Version | None
) -> tuple[Figures, Figures, Paired | None]:
    """Return the figures of the candidate, those of production (or its own baseline), and both sample by sample.

    Both are measured on the test samples that the candidate was registered with.

    Args:
        settings: Where the registry is, and how latency is measured.
        workspace: Looked into for the files of either version.
        candidate: The version to be promoted.
        production: The version in production; None if there is none.

    Raises:
        WorkspaceError: Files of a version can't be found any more.
        CheckpointError: A model can't be built any more from its settings.
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
) -> tuple[Figures, Figures, Paired | None]:
    """Measure both; whatever must not be run is refused before anything is run."""
    with ExitStack() as stack:
        one = stack.enter_context(brought_back(settings, candidate, workspace, ("data", *FOLDERS)))
        two = stack.enter_context(brought_back(settings, production, workspace, FOLDERS)) if production else one
        by_one, by_two = (settings_to_measure_by(settings, copy.params, copy.commit) for copy in (one, two))
        differences: list[float | None] = [_answer_difference(settings, candidate, one)]
        differences += [_answer_difference(settings, production, two)] if production else [None]
        stage = "dense" if production else "baseline"
        test = read_split(settings, one.workspace, "test")
        files = {"candidate": _file(one, "dense"), "reference": _file(two, stage)}
        sizes = (1, *settings.benchmark.batch_sizes)
        few = test.first(max(sizes)).inputs
        turns = [torch.arange(size) % count_samples(few) for size in sizes]
        for version, file in zip((candidate, production or candidate), files.values(), strict=True):
            refuse_what_hangs(version, file)  # loaded there first, so that it may be loaded here
            session = open_session(file)
            refuse_what_hangs(version, file, [feeds_of(session, take(few, numbers)) for numbers in turns])
        taken = _latencies(settings, files, few)
        new, values = _score(by_one, one, "dense", test, one.workspace)
        old, before = _score(by_two, two, stage, test, one.workspace)
        return (
            replace(new, **taken["candidate"], answer_difference=differences[0]),
            replace(old, **taken["reference"], answer_difference=differences[1]),
            None if before is None or values is None else compare_pairs(before, values, new.measure),
        )


def _batch(copy: Copy, version: Version) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]:
    """Return the recorded inputs and answers, by name."""
    try:
        return read_answered_batch(copy.batch.read_bytes())
    except Exception as error:  # whatever else is stored under that name: the parser may raise anything
        raise WorkspaceError(f"version {version.number}: its {copy.batch.name} can't be read ({error})") from error


def _file(copy: Copy, stage: str) -> Path:
    return copy.workspace.folder(export.FOLDER) / export.FILES[stage]


def _latencies(settings: Settings, files: Mapping[str, Path], inputs: Inputs) -> dict[str, _Times]:
    """Return the latency of each file at each batch size, measured in turns."""
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
    taken: dict[str, _Times] = {name: {"latencies_ms": {}, "quartiles_ms": {}} for name in files}
    for latency in found:
        taken[latency.model]["latencies_ms"][latency.batch_size] = latency.median_ms
        quartiles = latency.lower_quartile_ms, latency.upper_quartile_ms
        taken[latency.model]["quartiles_ms"][latency.batch_size] = quartiles
    return taken


def _score(settings: Settings, copy: Copy, stage: str, test: Batches, data: Workspace) -> tuple[Figures, Tensor | None]:
    """Return a checkpoint's figures on the test samples, latency left out, and the metric of each sample."""
    example = example_inputs(data, settings)
    model, _, _ = load_model(copy.workspace.folder(stage), settings, read_description(data), example)
    parity = check_parity(_file(copy, stage), model, test, by_class=task_of(settings).by_class)
    found, values = measure_each(model, test, settings, example)
    figures = Figures(
        score=found.score,
        macs=found.macs,
        size_bytes=found.size_bytes,
        parity=parity.close,
        score_interval=None if values is None else interval_of(values),
        measure=measure_of(settings, read_description(data)),
    )
    return figures, values


def _answer_difference(settings: Settings, version: Version, copy: Copy) -> float:
    """Return how far the registered file's answers are from the recorded ones, relative to the largest."""
    inputs, expected = _batch(copy, version)
    found = answers_of(settings, version, inputs)
    if found.keys() != expected.keys():
        return sys.float_info.max
    return max(_difference(found[name], expected[name]) for name in expected)


def _difference(found: NDArray[Any], expected: NDArray[Any]) -> float:
    if found.shape != expected.shape or not np.isfinite(found).all():
        return sys.float_info.max
    found, expected = (one.astype(np.int64) if one.dtype == bool else one for one in (found, expected))
    return float(np.abs(found - expected).max() / max(np.abs(expected).max(), np.finfo(np.float32).tiny))
