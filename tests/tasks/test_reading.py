"""What a stage opens of the data: no whole split for one sample."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tasks.stage_table import NAMES
from tests.tasks.test_pipeline import made, make

_opened: list[str] | None = None


def _note(event: str, arguments: tuple[Any, ...]) -> None:
    if _opened is not None and event == "open" and isinstance(arguments[0], str):
        path = Path(arguments[0])
        if path.parent.name == "data" and path.suffix == ".safetensors":
            _opened.append(path.stem)


@pytest.mark.thorough
def test_no_stage_reads_a_whole_split_for_one_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, project_writer: Callable[..., Path]
) -> None:
    global _opened

    def once(settings: dict[str, Any]) -> None:
        settings["prune"].update(iterations=1, max_accuracy_drop=0.9, recipes=[], allocation={"strategy": "global"})
        settings["baseline"]["recipe"]["epochs"] = 1

    made(tmp_path, project_writer, ("prepare", "baseline"), once)
    monkeypatch.chdir(tmp_path)
    project = make(tmp_path, project_writer, once)
    sys.addaudithook(_note)  # it stays, and notes nothing when the test has ended
    found: dict[str, set[str]] = {}
    for name in NAMES[NAMES.index("analyze") :]:
        _opened = []
        try:
            project.run(name)
        finally:
            found[name], _opened = set(_opened), None
    assert found["analyze"] == found["measurements"] == set()
    assert found["profile"] <= {"example"}
    batches = found["benchmark"], found["transform"], found["export"]
    assert all(one == {"example", "validation"} for one in batches), "what they run are batches of samples"
    assert found["report"] == {"example", "test", "validation"}
    assert "test" not in found["prune"]
