from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from pruning.errors import SettingsError
from tasks.config.loop_schema import Prune
from tasks.config.schema import Settings, load
from tasks.config.target_schema import Target
from tasks.environment import REPOSITORY
from tasks.file_cache import holding
from tasks.fingerprint import code_file, to_tell
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
    assert "params" not in found, "its settings are in the file of the stage `code`, with those that are left out"
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


CHANGED: dict[str, dict[str, Any]] = {
    "run": {"seed": 1},
    "data": {"kwargs": {"seed": 3}},
    "task": {"kwargs": {"ignore_index": 255}},
    "model": {"kwargs": {"width": 8}},
    "training": {"batch_size": 128},
    "baseline": {"keep_epochs": (1,)},
    "analyze": {"sweep": "full"},
    "profile": {"threads": (2,)},
    "prune": {"backoff": 0.25},
    "export": {"opset": 21},
    "quantize": {"profile": "cpu"},
    "benchmark": {"rounds": 7},
    "tracking": {"model_name": "another"},
    "cleanup": {"keep_days": 3},
    "machine": {"processes": 2},
    "frontier": {"targets": (Target(mac_reduction=0.4),)},
    "promote": {"min_parity": 0.9},
}


def test_another_effective_value_tells_dvc_of_exactly_the_stages_that_it_shapes(
    write_params: Callable[[None], Path],
) -> None:
    """Whether the file says it or a default does: the file is the same one here, as after an upgrade."""
    settings = load(write_params(None))
    assert set(CHANGED) == set(Settings.model_fields)
    with holding():
        before = {stage.name: to_tell(stage, settings) for stage in STAGES}
        for section, change in CHANGED.items():
            changed = settings.model_copy(update={section: getattr(settings, section).model_copy(update=change)})
            new = {stage.name for stage in STAGES if to_tell(stage, changed) != before[stage.name]}
            shown = set() if section in ("machine", "tracking", "cleanup", "frontier") else {"report"}
            assert new == {stage.name for stage in STAGES if section in stage.sections} | shown, section


def test_nothing_but_the_report_depends_on_the_benchmark() -> None:
    assert [stage.name for stage in STAGES if "benchmark" in stage.needs] == ["report"]
    assert not [stage.name for stage in STAGES if "report" in stage.needs]


def test_unknown_stage_names_the_nearest() -> None:
    with pytest.raises(SettingsError, match="did you mean 'prune'"):
        find_stage("prun")
