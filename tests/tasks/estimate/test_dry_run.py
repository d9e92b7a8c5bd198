"""`secateur run --dry-run` says what a run then does, within its bounds, and leaves everything as it was."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from pruning.errors import SecateurError
from secateur.cli import commands
from tasks.config.schema import load
from tasks.estimate import dry_run
from tasks.estimate.counts import Bounds, Work
from tasks.loop.ledger import read_ledger
from tasks.stage_table import NAMES, body_of, find_stage
from tasks.workspace import Workspace, digest, seal

Write = Callable[[Callable[[dict[str, Any]], object] | None], Path]
QUICK = 0.5  # seconds of timing


def few_epochs(settings: dict[str, Any]) -> None:
    settings["baseline"]["recipe"]["epochs"] = 2
    settings["prune"]["iterations"] = 2
    settings["prune"]["max_accuracy_drop"] = 0.9


def call(*arguments: str) -> Result:
    return CliRunner().invoke(commands, [*arguments])


def listing(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*") if "__pycache__" not in path.parts}


def run_stages(params: Path, *names: str) -> None:
    from tasks.fingerprint import origin

    settings, workspace = load(params), Workspace(Path("artifacts"))
    workspace.open()
    for name in names:
        stage = find_stage(name)
        made_by = origin(stage, settings, workspace)
        body_of(name)(settings, workspace)
        seal(workspace.folder(stage.folder), digest(made_by), made_by)


@pytest.mark.thorough
def test_before_anything_ran_every_stage_would_and_nothing_is_written(write_params: Write, tmp_path: Path) -> None:
    params, before = write_params(few_epochs), listing(tmp_path)
    found = dry_run.estimate(params, Path("artifacts"), seconds=QUICK)
    assert listing(tmp_path) == before | {str(params): before[str(params)]}
    assert [one.stage for one in found.stages] == list(NAMES)
    assert all(one.runs and one.reasons for one in found.stages)
    assert found.seconds is not None
    assert 0 < found.seconds.least <= found.seconds.expected <= found.seconds.most
    assert found.memory_bytes is not None
    assert {"data", "baseline", "ONNX files"} <= found.disk.keys()


@pytest.mark.slow
def test_a_run_stays_within_the_bounds_that_were_said(write_params: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    params = write_params(few_epochs)
    found = {one.stage: one.work for one in dry_run.estimate(params, Path("artifacts"), seconds=QUICK).stages}
    counted = dict.fromkeys(NAMES, 0)
    from tasks import models

    score = models.score

    def counting(*given: Any, **named: Any) -> Any:
        counted[stage] += 1
        return score(*given, **named)

    monkeypatch.setattr(models, "score", counting)
    for stage in NAMES:
        run_stages(params, stage)
    rows = read_ledger(Path("artifacts/iterations")).rows
    recipes = load(params).prune.recipes
    trained = sum(recipe.epochs for row in rows for recipe in recipes if recipe.name in row.recipes)
    work = found["prune"]
    assert work.attempts is not None
    for said, number in (
        (work.attempts, len(rows)),
        (work.epochs, trained),
        (work.evaluations, counted["prune"]),
        (found["baseline"].evaluations, counted["baseline"]),
        (found["report"].evaluations, counted["report"]),
    ):
        assert said.least <= number <= said.most
        assert number > 0
    points = json.loads(Path("artifacts/analysis/curves.json").read_text())
    assert found["analyze"].evaluations.least <= 1 + sum(len(curve["points"]) for curve in points)
    assert 1 + sum(len(curve["points"]) for curve in points) <= found["analyze"].evaluations.most
    again = dry_run.estimate(params, Path("artifacts"))
    assert not any(one.runs for one in again.stages)
    assert again.seconds == Bounds.exactly(0)


@pytest.mark.thorough
def test_after_prepare_its_samples_are_read_and_other_stages_would_run(write_params: Write, tmp_path: Path) -> None:
    params = write_params(few_epochs)
    run_stages(params, "prepare")
    before = listing(tmp_path / "artifacts")
    found = dry_run.estimate(params, Path("artifacts"), seconds=QUICK)
    assert listing(tmp_path / "artifacts") == before
    assert [one.runs for one in found.stages] == [False] + [True] * (len(NAMES) - 1)


@pytest.mark.thorough
def test_programs_get_json_and_a_trial_leaves_no_trace(write_params: Write, tmp_path: Path) -> None:
    write_params(few_epochs)
    before = listing(tmp_path)
    done = call("run", "--dry-run", "--json", "--set", "prune.max_attempts=4")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert listing(tmp_path).keys() == before.keys()
    prune = next(one for one in found["stages"] if one["stage"] == "prune")
    assert prune["attempts"] == {"least": 1, "expected": 2, "most": 4}
    assert prune["epochs"] == {"least": 4, "expected": 8, "most": 16}
    assert found["seconds"]["expected"] > 0
    assert found["memory_bytes"] > 10**8


@pytest.mark.thorough
def test_people_get_a_table_of_one_stage_too(write_params: Write) -> None:
    write_params(few_epochs)
    done = call("run", "baseline", "--dry-run")
    assert done.exit_code == 0, done.output
    assert "baseline" in done.stdout
    assert "memory:" in done.stdout
    assert "report" not in done.stdout.partition("note")[0].partition("\n")[2]


@pytest.mark.thorough
@pytest.mark.parametrize("kind", ["unstructured", "n_m", "dynamic"])
def test_every_kind_of_pruning_is_estimated(write_params: Write, kind: str) -> None:
    target = {"unstructured": {"weight_sparsity": 0.5}, "n_m": {"pattern": "2:4"}, "dynamic": {"mac_reduction": 0.3}}

    def of_kind(settings: dict[str, Any]) -> None:
        few_epochs(settings)
        kept = ("iterations", "max_attempts", "max_accuracy_drop", "recipes")
        settings["prune"] = {name: settings["prune"][name] for name in kept} | {"kind": kind, "target": target[kind]}

    found = dry_run.estimate(write_params(of_kind), Path("artifacts"), seconds=QUICK, only="prune")
    (prune,) = found.stages
    assert prune.seconds is not None
    assert 0 < prune.seconds.expected <= prune.seconds.most
    refused = "no attempt finds a plan: 2:4 needs layers that sum over a multiple of 4"  # the first sums over 9
    assert (refused in " ".join(found.notes)) == (kind == "n_m")


STREAM = """
import torch
from torch.utils.data import IterableDataset


class Stream(IterableDataset):
    def __iter__(self):
        raise AssertionError("a dry run reads no stream")


def make():
    return {"train": Stream(), "validation": Stream(), "test": Stream(), "classes": ("a", "b")}


def raising():
    raise RuntimeError("no such disk")
"""


def test_what_a_stream_takes_is_unknown_until_it_is_counted(write_params: Write, tmp_path: Path) -> None:
    (tmp_path / "streaming.py").write_text(STREAM, encoding="utf-8")
    params = write_params(lambda settings: settings["data"].update(factory="streaming:make"))
    found = dry_run.estimate(params, Path("artifacts"))
    assert found.seconds is None
    assert "run that, then ask again" in found.notes[0]
    assert "unknown" in str(dry_run.rows(found))


def test_what_would_end_a_run_ends_the_dry_run(write_params: Write, tmp_path: Path) -> None:
    (tmp_path / "raising.py").write_text(STREAM, encoding="utf-8")
    params = write_params(lambda settings: settings["data"].update(factory="raising:raising"))
    with pytest.raises(SecateurError, match="no such disk"):
        dry_run.estimate(params, Path("artifacts"))
    assert not Path("artifacts").exists()


def test_a_trainer_of_ones_own_takes_an_unknown_time(write_params: Write, tmp_path: Path) -> None:
    (tmp_path / "training_by_hand.py").write_text("def train(model, loader, **rest):\n    raise AssertionError\n")

    def own(settings: dict[str, Any]) -> None:
        settings["baseline"]["recipe"] = {"epochs": 2, "trainer": "training_by_hand:train"}

    found = dry_run.estimate(write_params(own), Path("artifacts"), seconds=QUICK, only="baseline")
    assert found.stages[0].seconds is None
    assert "its own trainer" in " ".join(found.notes)


def test_json_without_dry_run_and_the_stage_code_are_refused(write_params: Write) -> None:
    write_params(None)
    assert call("run", "--json").exit_code == 2
    assert call("run", "code", "--dry-run").exit_code == 2


def test_numbers_are_shown_with_their_bounds_and_units() -> None:
    work = dry_run.StageEstimate(
        "prune", "not run", ("it hasn't run",), True, Work(Bounds(1, 3, 10)), Bounds(50, 90, 7200)
    )
    shown = dry_run.rows(dry_run.Estimate((work,), {}, None, None, ()))
    assert shown[0] == ("prune", "not run", "3 (1 to 10)", "", "", "1.5 min (50 s to 2 h)", "it hasn't run")


@pytest.mark.thorough
def test_ranks_and_processes_divide_what_they_share(write_params: Write) -> None:
    """With a clock that ticks once whenever it is asked, whatever else the machine does."""

    def seconds(**machine: Any) -> tuple[dict[str, float], tuple[str, ...]]:
        def change(settings: dict[str, Any]) -> None:
            few_epochs(settings)
            settings["run"]["shards"] = 2
            recipe = settings["prune"]["recipes"][0]
            settings["prune"]["recipes"] = [recipe | {"name": name} for name in ("one", "two")]
            settings["machine"] = machine

        ticks = itertools.count(0.0, 0.001)
        found = dry_run.estimate(write_params(change), Path("artifacts"), seconds=QUICK, clock=lambda: next(ticks))
        known = {one.stage: one.seconds.expected for one in found.stages if one.seconds is not None}
        return known, found.notes

    alone, _ = seconds()
    ranks, notes = seconds(ranks=2)
    processes, _ = seconds(processes=2)
    assert ranks["baseline"] < 0.7 * alone["baseline"]
    assert ranks["prune"] < alone["prune"]
    assert processes["prune"] < alone["prune"]
    assert processes["baseline"] == alone["baseline"]
    assert any("divided by machine.ranks" in note for note in notes)
