from __future__ import annotations

from typing import Any

import pytest
import yaml

from pruning.errors import SettingsError
from tasks.config.prune_schema import Prune
from tasks.config.schema import Settings
from tasks.environment import REPOSITORY
from tasks.fingerprint import code_file
from tasks.registry.dvc_repo import dvc_yaml
from tasks.stage_table import NAMES, STAGES, STOP_ONLY, Stage, find_stage
from tasks.workspace import DEFAULT_ROOT, Workspace

DVC: dict[str, Any] = yaml.safe_load((REPOSITORY / "dvc.yaml").read_text(encoding="utf-8"))["stages"]


def folder(name: str) -> str:
    return Workspace(DEFAULT_ROOT).folder(find_stage(name).folder).as_posix()


def read_of(name: str) -> list[str]:
    return [f"{folder(name)}/{file}" for file in find_stage(name).files] or [folder(name)]


def test_dvcs_file_is_the_one_that_the_table_makes() -> None:
    written = (REPOSITORY / "dvc.yaml").read_text(encoding="utf-8")
    assert written == dvc_yaml("python -m flows.{}"), "run `python -m tasks.registry.dvc_repo > dvc.yaml`"
    assert tuple(DVC) == ("code", *NAMES)


def test_file_of_a_users_project_differs_by_the_command_alone() -> None:
    assert dvc_yaml("secateur run {}").replace("secateur run ", "python -m flows.") == dvc_yaml("python -m flows.{}")


@pytest.mark.parametrize("stage", STAGES, ids=NAMES)
def test_dvc_runs_the_flow_and_depends_on_what_shapes_its_output(stage: Stage) -> None:
    found = DVC[stage.name]
    assert found["cmd"].endswith(f"python -m flows.{stage.name}")
    told = code_file(stage, Workspace(DEFAULT_ROOT)).as_posix()
    assert found["deps"] == [told, *(place for need in stage.needs for place in read_of(need))]
    assert told in DVC["code"]["outs"]
    options = {"persist": True} if stage.persist else None
    expected = [{folder(stage.name): options}] if options else [folder(stage.name)]
    assert found["outs"] == expected


def test_dvc_asks_each_time_what_is_executed() -> None:
    assert DVC["code"]["always_changed"]
    assert DVC["code"]["cmd"].endswith("python -m flows.code")
    assert len(DVC["code"]["outs"]) == len(STAGES)


def test_sections_and_stop_settings_exist() -> None:
    for stage in STAGES:
        assert set(stage.sections) <= set(Settings.model_fields)
        assert all(isinstance(getattr(Settings, fact), property) for fact in stage.facts)
    assert set(STOP_ONLY) <= set(Prune.model_fields)


def test_nothing_but_the_report_depends_on_the_benchmark() -> None:
    assert [stage.name for stage in STAGES if "benchmark" in stage.needs] == ["report"]
    assert not [stage.name for stage in STAGES if "report" in stage.needs]


def test_unknown_stage_names_the_nearest() -> None:
    with pytest.raises(SettingsError, match="did you mean 'prune'"):
        find_stage("prun")
