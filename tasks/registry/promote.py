"""Measure a candidate and the version it would replace; put it into production, or say why not; or roll back.

    gates ─► decision as a tag of the version ─► alias `previous` ─► alias `production` ─► line in promotions.jsonl

A kill at any arrow leaves some version in production. A promotion that didn't reach its alias is decided again; later
steps that are missing are completed by the next decision.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, dataclass, replace
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
from pruning.io.onnx_module import OnnxModule, example_outputs
from pruning.io.parity import check_parity
from pruning.latency.measure import measure_latency
from tasks.config.schema import Settings
from tasks.data import read_description, read_split, task_of
from tasks.determinism import begin, bounded_memory
from tasks.intervals import Interval, Paired, compare_pairs, interval_of
from tasks.models import example_inputs, load_model, measure_of, measure_whole, score
from tasks.registry import mlflow_models
from tasks.registry.decisions import ROLLED_BACK, Decision, about, announce, complete, write_down
from tasks.registry.manifest import read_answered_batch
from tasks.registry.mlflow_models import CANDIDATE, ONNX_HASH, PREVIOUS, PRODUCTION, Version
from tasks.registry.restore import Copy, brought_back
from tasks.registry.served import DENSE, file_of, served_in
from tasks.registry.trust import answers_of, fetch_served, refuse_what_hangs, settings_to_measure_by
from tasks.reporting.verdict import Figures, Gate, judge
from tasks.stages.benchmark import QUANTIZED
from tasks.terminal import command_line, shown
from tasks.workspace import Workspace

WAITING = "secateur.waiting"


@dataclass(frozen=True)
class Case:
    """A candidate to decide about.

    Attributes:
        version: The candidate.
        instead_of: The version in production; None if there is none yet.
        gates: Both versions' figures and limits.
        reasons: Why the candidate can't go to production.
    """

    version: str
    instead_of: str | None
    gates: tuple[Gate, ...]
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class _Waiting:
    """The content of a version's tag while a person is asked about it.

    Attributes:
        run: The id of the flow's run that waits.
        case: What the person was shown.
    """

    run: str
    case: Case


def undecided(settings: Settings) -> str | None:
    """Return the candidate's version if nothing was decided about it yet and nobody is being asked."""
    candidate = mlflow_models.at(settings, CANDIDATE)
    if candidate is None or WAITING in candidate.tags:
        return None
    decision = about(candidate)
    if decision is None or (decision.decision == "promoted" and _was_cut_off(settings, candidate)):
        return candidate.number
    return None


def _was_cut_off(settings: Settings, candidate: Version) -> bool:
    """Say whether a promotion was decided but, because of a kill, never carried out."""
    production = mlflow_models.at(settings, PRODUCTION)
    in_production = production is not None and production.number == candidate.number
    return not in_production and ROLLED_BACK not in candidate.tags


def examine(settings: Settings, workspace: Workspace) -> Case | None:
    """Measure candidate and production side by side; None if the candidate is in production already.

    Raises:
        WorkspaceError: There is no candidate, or files of a version are missing.
    """
    complete(settings)
    candidate = mlflow_models.find(settings, alias=CANDIDATE)
    production = mlflow_models.at(settings, PRODUCTION)
    instead_of = production.number if production else None
    if candidate.number == instead_of:
        return None
    if ROLLED_BACK in candidate.tags:
        reason = (
            f"it was rolled back on {candidate.tags[ROLLED_BACK]}; put it back by hand with "
            f"{command_line(f'rollback --version {candidate.number}')} if that is meant"
        )
        return Case(candidate.number, instead_of, (), (reason,))
    new, old, pairs = measure_side_by_side(settings, workspace, candidate, production)
    gates = judge(new, old, settings.promote, pairs)
    return Case(candidate.number, instead_of, gates, tuple(gate.reason for gate in gates if not gate.passed))


def keep_waiting(settings: Settings, case: Case, run: str) -> None:
    """Store what a person is asked about, so that their yes applies to these figures and not to later ones."""
    mlflow_models.tag(settings, case.version, {WAITING: json.dumps(asdict(_Waiting(run, case)))})


def waited_for(settings: Settings, run: str | None) -> Case | None:
    """Return what a person was asked about in an earlier part of this run; None if nothing was asked.

    It may no longer be the candidate: the yes applies to the version that was shown, not to a later one.
    """
    for version in mlflow_models.versions(settings) if run is not None else ():
        found = mlflow_models.read_tag(version, WAITING, _Waiting) if WAITING in version.tags else None
        if found is not None and found.run == run:
            return found.case
    return None


def refuse(settings: Settings, case: Case) -> Decision:
    """Leave production as it is, and record why."""
    decision = Decision.now("refused", settings, case.version, case.instead_of, case.gates, case.reasons)
    return _record(settings, decision)


def decline(settings: Settings, case: Case, reason: str) -> Decision:
    """Leave production as it is because a person said no."""
    decision = Decision.now("declined", settings, case.version, case.instead_of, case.gates, [reason])
    return _record(settings, decision)


def promote(settings: Settings, case: Case, approved: str | None = None) -> Decision:
    """Put a candidate that passed every gate into production.

    Raises:
        WorkspaceError: Production is no longer the version that the candidate was compared with.
    """
    _still(settings, case.instead_of)
    decision = Decision.now("promoted", settings, case.version, case.instead_of, case.gates, approved=approved)
    announce(settings, decision)
    if case.instead_of is not None:
        mlflow_models.assign(settings, PREVIOUS, case.instead_of)
    mlflow_models.assign(settings, PRODUCTION, case.version)
    write_down(decision)
    return decision


def roll_back(settings: Settings, number: str | None = None) -> Decision:
    """Put `previous`, or a named version, into production.

    The version that was there is marked, so that no schedule promotes it again. There is no `previous` afterwards.

    Raises:
        WorkspaceError: There is nothing to go back to, nothing is in production, or serving that version would run code
            other than an ONNX file.
    """
    complete(settings)
    goal = None if number is None else mlflow_models.find(settings, number=number)
    production = mlflow_models.find(settings, alias=PRODUCTION)
    if goal is None:
        previous = mlflow_models.at(settings, PREVIOUS)
        if previous is None or previous.number == production.number:
            raise WorkspaceError(
                f"version {production.number} is in production and no version is `previous`; name one with --version N "
                "(promotions.jsonl says what was in production when)"
            )
        goal = previous
    if goal.number == production.number:
        raise WorkspaceError(f"version {goal.number} is in production already")
    _see_that_it_can_be_served(settings, goal)
    decision = Decision.now("rolled back", settings, goal.number, production.number)
    announce(settings, decision)
    mlflow_models.tag(settings, production.number, {ROLLED_BACK: decision.time})
    mlflow_models.assign(settings, PRODUCTION, goal.number)
    if mlflow_models.at(settings, PREVIOUS) is not None:
        mlflow_models.withdraw(settings, PREVIOUS)
    write_down(decision)
    return decision


def _see_that_it_can_be_served(settings: Settings, version: Version) -> None:
    """Refuse a version that isn't an ONNX file with its record, as a registration makes it."""
    mlflow_models.read_record(settings, version)
    with tempfile.TemporaryDirectory() as folder:
        refuse_what_hangs(version, fetch_served(settings, version, Path(folder)))


def _still(settings: Settings, instead_of: str | None) -> None:
    now = mlflow_models.at(settings, PRODUCTION)
    if (now.number if now else None) != instead_of:
        raise WorkspaceError(
            f"production changed from version {instead_of or 'none'} to {now.number if now else 'none'} while the "
            "candidate was measured: another promotion won; run again to compare with the new one"
        )


def _record(settings: Settings, decision: Decision) -> Decision:
    announce(settings, decision)
    write_down(decision)
    return decision


FOLDERS = ("baseline", "dense", "onnx", "quantized")


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
        served = served_in(one.workspace, candidate.tags.get(ONNX_HASH))
        stage = served_in(two.workspace, production.tags.get(ONNX_HASH)) if production else "baseline"
        test = read_split(settings, one.workspace, "test")
        files = {"candidate": file_of(one.workspace, served), "reference": file_of(two.workspace, stage)}
        if served == QUANTIZED:
            files["float"] = file_of(one.workspace, DENSE)
        sizes = (1, *settings.benchmark.batch_sizes)
        few = test.first(max(sizes)).inputs
        turns = [torch.arange(size) % count_samples(few) for size in sizes]
        for name, file in files.items():
            version = production or candidate if name == "reference" else candidate
            refuse_what_hangs(version, file)  # loaded there first, so that it may be loaded here
            session = open_session(file)
            refuse_what_hangs(version, file, [feeds_of(session, take(few, numbers)) for numbers in turns])
        taken = _latencies(settings, files, few)
        new, values = _score(by_one, one, served, test, one.workspace)
        old, before = _score(by_two, two, stage, test, one.workspace)
        return (
            replace(
                new,
                **taken["candidate"],
                answer_difference=differences[0],
                float_ms=taken["float"]["latencies_ms"] if "float" in taken else {},
            ),
            replace(old, **taken["reference"], answer_difference=differences[1]),
            None if before is None or values is None else compare_pairs(before, values, new.measure),
        )


def _batch(copy: Copy, version: Version) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]:
    """Return the recorded inputs and answers, by name."""
    try:
        return read_answered_batch(copy.batch.read_bytes())
    except Exception as error:  # whatever else is stored under that name: the parser may raise anything
        raise WorkspaceError(f"version {version.number}: its {copy.batch.name} can't be read ({error})") from error


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
    """Return figures on the test samples, latency left out, and the metric of each sample.

    Of a quantised file the score is its own, in ONNX Runtime, and the size the checkpoint's times its share of the
    float file's; parity is that of the float file with its checkpoint, from which it was made.
    """
    example, checkpoint = example_inputs(data, settings), DENSE if stage == QUANTIZED else stage
    model, _, _ = load_model(copy.workspace.folder(checkpoint), settings, read_description(data), example)
    float_file = file_of(copy.workspace, checkpoint)
    parity = check_parity(float_file, model, test, by_class=task_of(settings).by_class)
    found, evaluated = measure_whole(model, test, settings, example)
    reached, values, size = found.score, evaluated.values, found.size_bytes
    if stage == QUANTIZED:
        path = file_of(copy.workspace, stage)
        module = OnnxModule(path, example_outputs(model, example), device=settings.run.device)
        answered = score(module, test, settings)
        reached, values = answered.score, answered.values
        size = round(size * path.stat().st_size / float_file.stat().st_size)
    figures = Figures(
        score=reached,
        macs=found.macs,
        size_bytes=size,
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
