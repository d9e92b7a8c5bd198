"""What the closure of each stage holds, and that a stage executes nothing else."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from types import FrameType

import pytest

import pruning
from tasks.code_closure import NOT_FOLLOWED, OURS, code_of
from tasks.code_hash import meaning_of
from tasks.environment import REPOSITORY
from tasks.fingerprint import executed, fingerprint
from tasks.stage_table import STAGES, body_of, find_stage
from tasks.workspace import seal
from tests.tasks.test_pipeline import make


def test_each_stage_depends_on_what_it_computes_with_and_on_nothing_more() -> None:
    found = {stage.name: set(code_of((stage.module,), ()).modules) for stage in STAGES}
    assert "pruning.allocation.schedule" in found["prune"]
    assert "pruning.importance.filters" in found["prune"], "registered by being imported"
    assert not {"pruning.allocation.schedule", "pruning.allocation.selection"} & found["baseline"]
    assert "tasks.loop.ledger" in found["report"]
    choosing = {"tasks.loop.loop", "tasks.loop.methods", "tasks.loop.channels", "tasks.loop.trial"}
    assert not choosing & found["report"], "it reads what the loop wrote"
    engine = [name for name in found["prepare"] if name.startswith("pruning.")]
    of_samples = ("pruning.batches", "pruning.containers", "pruning.streams")
    of_tasks = ("pruning.evaluation", "pruning.metrics", "pruning.scoring", "pruning.task", "pruning.world")
    assert all(name.startswith(("pruning.errors", "pruning.io.", *of_samples, *of_tasks)) for name in engine), engine
    for stage, modules in found.items():
        assert find_stage(stage).module in modules
        assert not modules & set(NOT_FOLLOWED)


def test_a_name_that_is_imported_late_comes_from_where_its_statement_says() -> None:
    """A stage depends on the module that the statement for type checkers names; `__getattr__` must import that one."""
    exports = meaning_of(Path(pruning.__file__).read_bytes(), docstrings=False).exports
    assert exports is not None
    assert set(pruning.__all__) <= set(exports)
    for name in pruning.__all__:
        module, _, there = exports[name]
        assert getattr(pruning, name) is getattr(import_module(module), there), name


@pytest.mark.slow
def test_a_stage_executes_no_module_that_it_does_not_depend_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, project_writer: Callable[..., Path]
) -> None:
    """Every function of ours that is called in a stage is watched: imports alone would miss what is handed around."""
    monkeypatch.chdir(tmp_path)
    project = make(tmp_path, project_writer, lambda settings: settings["baseline"]["recipe"].update(epochs=1))
    for stage in STAGES:
        called = _called(partial(body_of(stage.name), project.settings, project.workspace))
        seal(project.workspace.folder(stage.folder), fingerprint(stage, project.settings, project.workspace))
        known = set(executed(stage, project.settings)["modules"])
        assert called, stage.name
        # Facts are compared themselves, so that the code which works them out need not be.
        by_value = {f"tasks.config.{one}_schema" for one in ("loop", "prune", "target")} if stage.facts else set()
        messages = {"tasks.config.training_schema"}  # what they call the model
        assert called <= known | set(NOT_FOLLOWED) | by_value | messages | {"pruning"}, (stage.name, called - known)


def _called(action: Callable[[], object]) -> set[str]:
    """Return the modules of ours of which something is called."""
    found: set[str] = set()

    def watch(frame: FrameType, event: str, _argument: object) -> None:
        if event == "call" and frame.f_code.co_filename not in found and not _asks_what_is_current(frame):
            found.add(frame.f_code.co_filename)

    sys.setprofile(watch)
    try:
        action()
    finally:
        sys.setprofile(None)
    names = set()
    for file in found:
        path = Path(file)
        if path.is_relative_to(REPOSITORY) and path.relative_to(REPOSITORY).parts[0] in OURS:
            inside = path.relative_to(REPOSITORY).with_suffix("")
            names.add(".".join(inside.parts[:-1] if inside.name == "__init__" else inside.parts))
    return names


def _asks_what_is_current(frame: FrameType | None) -> bool:
    """Say whether a call is part of a fingerprint, by which some stages name the folder of what they have half done."""
    while frame is not None:
        if frame.f_code.co_filename.endswith("tasks/fingerprint.py"):
            return True
        frame = frame.f_back
    return False
