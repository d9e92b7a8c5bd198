"""The pipeline trains with several processes: the artefacts of one, and settings that can't work are named."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pruning.errors import SettingsError
from tasks.config.schema import load
from tasks.environment import REPOSITORY
from tasks.fingerprint import settings_of
from tasks.rank_group import followers, group
from tasks.stage_table import NAMES, STAGES, find_stage
from tests.tasks.test_pipeline import Project, made

Writer = Callable[..., Path]

KINDS: dict[str, dict[str, Any]] = {
    "structured": {
        "target": {"mac_reduction": 0.3},
        "allocation": {"strategy": "local"},
        "recover": {"num_samples": 64},
        "undo_training": True,
        "recipes": [
            {"name": "short", "epochs": 1, "learning_rate": 0.02, "batch_size": 32, "distillation": 0.5},
            {"name": "wild", "epochs": 1, "learning_rate": 1000.0, "weight_decay": 1000.0, "batch_size": 32},
        ],
    },
    "unstructured": {"kind": "unstructured", "target": {"weight_sparsity": 0.5}},
    "dynamic": {"kind": "dynamic", "target": {"mac_reduction": 0.2}},
}


def settings_with(kind: str = "structured") -> Callable[[dict[str, Any]], None]:
    def change(settings: dict[str, Any]) -> None:
        general = {"max_accuracy_drop": 0.99, "iterations": 1, "max_attempts": 1}
        recipes = [{"name": "short", "epochs": 1, "learning_rate": 0.02, "batch_size": 32}]
        settings["run"]["shards"] = 2
        settings["training"]["batch_size"] = 16  # small, so that evaluations are shared too
        settings["baseline"]["recipe"]["epochs"] = 2
        settings["analyze"]["rates"] = []
        settings["prune"] = {**general, "recipes": recipes, **deepcopy(KINDS[kind])}

    return change


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "parallel"), [*((kind, "ddp") for kind in KINDS), ("structured", "fsdp")], ids=[*KINDS, "in parts"]
)
def test_loop_on_two_ranks_writes_the_bytes_of_one_process(
    kind: str, parallel: str, tmp_path: Path, project_writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = (tmp_path / name for name in ("one", "two"))
    one.mkdir()
    begun = made(one, project_writer, NAMES[: NAMES.index("prune")], settings_with(kind))
    shutil.copytree(one, two)
    monkeypatch.chdir(one)
    begun.run("prune")
    monkeypatch.chdir(two)
    machine = begun.settings.machine.model_copy(update={"ranks": 2, "parallel": parallel})
    again: Project = replace(begun, root=two, settings=begun.settings.model_copy(update={"machine": machine}))
    with followers(again.settings):
        while not group.is_ready:
            assert not group.why_lost()  # which takes a while to look
        again.run("prune")
    found = again.bytes_of("iterations")
    monkeypatch.chdir(one)
    assert found == begun.bytes_of("iterations")
    assert "01/weights.safetensors" in found
    assert not list(two.rglob("*.ranks"))


@pytest.mark.slow
def test_command_that_torchrun_starts_trains_on_its_ranks(tmp_path: Path, project_writer: Writer) -> None:
    one, two = (tmp_path / name for name in ("one", "two"))
    one.mkdir()
    begun = made(one, project_writer, ["prepare"], settings_with())
    shutil.copytree(one, two)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(one)
        begun.run("baseline")
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-addr", "127.0.0.1"]
    done = subprocess.run(
        [sys.executable, *torchrun, "--local-addr", "127.0.0.1", "-m", "flows.baseline", "--no-commit"],
        cwd=two,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "GLOO_SOCKET_IFNAME": "lo"},
        capture_output=True,
        text=True,
        check=False,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    weights = [(folder / "artifacts/baseline/weights.safetensors").read_bytes() for folder in (one, two)]
    assert weights[0] == weights[1]


FAULTS: list[tuple[dict[str, Any], str]] = [
    ({"run": {"shards": 3}}, r"run\.shards: 3 is no power of two"),
    ({"machine": {"ranks": 6}}, r"machine\.ranks: 6 is no power of two"),
    ({"machine": {"ranks": 4}}, r"machine\.ranks is 4, run\.shards 2; each rank needs a shard"),
    ({"run": {"shards": 32}}, r"recipe 'baseline': batch_size is 32 and run\.shards 32"),
    ({"recipe": {"trainer": "own_project:few"}}, r"recipe 'short' names a trainer, which takes its batches whole"),
    ({"machine": {"parallel": "fsdp"}, "recipe": {"precision": "fp16"}}, r"recipe 'short' has precision fp16"),
    (
        {"machine": {"parallel": "fsdp"}, "baseline": {"keep_epochs": [1]}},
        r"baseline\.keep_epochs copies whole weights",
    ),
    ({"machine": {"parallel": "fsdp"}, "kind": "unstructured"}, r"unstructured pruning trains whole weights"),
]


@pytest.mark.parametrize(("update", "said"), FAULTS)
def test_settings_that_cannot_work_on_ranks_are_named(
    update: dict[str, Any], said: str, write_params: Callable[[Callable[[dict[str, Any]], None]], Path]
) -> None:
    def change(settings: dict[str, Any]) -> None:
        settings_with(update.pop("kind", "structured"))(settings)
        settings["prune"]["recipes"][0].update(update.pop("recipe", {}))
        for section, changed in update.items():
            settings.setdefault(section, {}).update(changed)

    with pytest.raises(SettingsError, match=said):
        load(write_params(change))


def test_shards_shape_what_stages_write_and_ranks_do_not(
    write_params: Callable[[Callable[[dict[str, Any]], None]], Path],
) -> None:
    settings = load(write_params(settings_with()))
    machine = settings.machine.model_copy(update={"ranks": 2})
    more = settings.model_copy(update={"machine": machine})
    assert [settings_of(stage, more) for stage in STAGES] == [settings_of(stage, settings) for stage in STAGES]
    assert settings_of(find_stage("prune"), settings)["run"]["shards"] == 2
