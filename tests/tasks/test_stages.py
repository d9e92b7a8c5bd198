from __future__ import annotations

from typing import Any

import pytest
import yaml

from pruning.errors import SettingsError
from tasks.environment import REPOSITORY
from tasks.params.settings import Settings
from tasks.stages import NAMES, STAGES, STOP_ONLY, Stage, find_stage
from tasks.workspace import DEFAULT_ROOT, Workspace

DVC: dict[str, Any] = yaml.safe_load((REPOSITORY / "dvc.yaml").read_text(encoding="utf-8"))["stages"]


def folder(name: str) -> str:
    return Workspace(DEFAULT_ROOT).folder(find_stage(name).folder).as_posix()


def test_dvc_knows_the_same_stages_in_the_same_order() -> None:
    assert tuple(DVC) == NAMES


@pytest.mark.parametrize("stage", STAGES, ids=NAMES)
def test_dvc_runs_the_flow_and_depends_on_what_shapes_its_output(stage: Stage) -> None:
    found = DVC[stage.name]
    assert found["cmd"].endswith(f"python -m flows.{stage.name}")
    assert found["deps"] == [f"flows/{stage.name}.py", *stage.code, *(folder(need) for need in stage.needs)]
    assert tuple(found["params"]) == stage.sections
    options = {"persist": True} if stage.name in ("prune", "profile") else None
    expected = [{folder(stage.name): options}] if options else [folder(stage.name)]
    assert found["outs"] == expected


@pytest.mark.parametrize("stage", STAGES, ids=NAMES)
def test_code_that_a_stage_names_exists(stage: Stage) -> None:
    for place in (f"flows/{stage.name}.py", *stage.code):
        assert (REPOSITORY / place).exists(), place


def test_every_module_of_the_tasks_shapes_a_stage_or_none_of_its_output() -> None:
    """A new module has to be given a place: what a stage computes with belongs to its code."""
    aside = {"environment", "fingerprints", "frontier", "lock", "memory", "progress", "resuming", "stages"}
    aside |= {"params", "production"}
    named = {place.removeprefix("tasks/") for stage in STAGES for place in stage.code if place.startswith("tasks/")}
    modules = {path.relative_to(REPOSITORY / "tasks").as_posix() for path in (REPOSITORY / "tasks").rglob("*.py")}
    modules -= {"__init__.py"}
    unnamed = {one for one in modules if not any(one == place or one.startswith(f"{place}/") for place in named)}
    assert {one.partition("/")[0].removesuffix(".py") for one in unnamed} == aside


def test_sections_and_stop_settings_exist() -> None:
    for stage in STAGES:
        assert set(stage.sections) <= set(Settings.model_fields)
    prune = Settings.model_fields["prune"].annotation
    assert prune is not None
    assert set(STOP_ONLY) <= set(prune.model_fields)


def test_nothing_but_the_report_depends_on_the_benchmark() -> None:
    assert [stage.name for stage in STAGES if "benchmark" in stage.needs] == ["report"]
    assert not [stage.name for stage in STAGES if "report" in stage.needs]


def test_unknown_stage_names_the_nearest() -> None:
    with pytest.raises(SettingsError, match="did you mean 'prune'"):
        find_stage("prun")
