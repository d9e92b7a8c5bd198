"""What `secateur init` writes, and what `secateur inspect` counts."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import pytest
import torch
import yaml
from click.testing import CliRunner
from torch import nn

import pruning
from pruning.errors import SettingsError
from secateur.cli import commands
from secateur.inspection import Rules, Size, Source, inspect
from secateur.project import Network, make_project
from tasks.config import import_strings
from tasks.environment import REPOSITORY


def small() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 64, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 4))


def test_deployments_of_a_users_project_are_those_of_the_repository() -> None:
    given = (files("secateur") / "templates" / "prefect.yaml").read_text(encoding="utf-8")
    shipped = (REPOSITORY / "prefect.yaml").read_text(encoding="utf-8")
    assert yaml.safe_load(given.replace("secateur.deployed.", "flows/deployments.py:")) == yaml.safe_load(shipped)


def test_inspection_counts_what_can_go_and_says_what_stays_whole() -> None:
    model = small()
    found = inspect(model, torch.randn(1, 3, 8, 8))
    assert list(found.groups.values()) == [64]
    assert found.size.macs == pruning.count_macs(pruning.find_groups(model, torch.randn(1, 3, 8, 8)))
    assert found.smallest.macs == 36 * 27 + 4
    assert found.prunable_macs == pytest.approx(1 - (36 * 27 + 4) / found.size.macs)
    assert found.whole == {"it is an output of the model": ["4.bias"]}
    halved = found.predicted[0.5]
    assert not isinstance(halved, str)
    assert halved.macs <= found.size.macs / 2


def test_what_is_there_is_never_overwritten_and_faults_write_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text("mine: 1\n", encoding="utf-8")
    Path("net_of_init.py").write_text("import torch\nmake = lambda: torch.nn.Linear(3, 2)\n", encoding="utf-8")
    said: list[str] = []
    for model, message in (("net_of_init:mak", "did you mean 'make'"), ("nett:make", "there is no module 'nett'")):
        with pytest.raises(SettingsError, match=message):
            make_project(Path(), Network(model), model, force=False, say=said.append)
    assert sorted(path.name for path in Path().iterdir() if path.name != "__pycache__") == [
        "net_of_init.py",
        "params.yaml",
    ]
    done = CliRunner().invoke(commands, ["init", "--yes"])
    assert done.exit_code == 2
    assert "--model and --data have to be given" in done.output
    done = CliRunner().invoke(commands, ["init"], input="net_of_init:make\n")
    assert done.exit_code == 2
    assert "give --model, --data and --yes" in done.output


def test_folder_with_the_name_of_an_own_package_is_named_in_the_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "mine.py").write_text("def make(): ...\n", encoding="utf-8")
    with pytest.raises(SettingsError, match=r"'tasks' is a package of Secateur's own, so .* rename it"):
        import_strings.resolve("tasks.mine:make")
    (tmp_path / "tasks" / "__init__.py").write_text("def make(): ...\n", encoding="utf-8")
    with pytest.raises(SettingsError, match=r"'tasks' is a package of Secateur's own, so .* rename it"):
        import_strings.resolve("tasks:make")


def test_model_that_needs_the_number_of_classes_asks_for_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "from torch import nn\n\ndef make(num_classes):\n    return nn.Linear(4, num_classes)\n"
    (tmp_path / "needs_classes.py").write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SettingsError, match=r"needs num_classes, .*give --data"):
        Source("needs_classes:make", shape=(4,)).load()
    model, example = Source("needs_classes:make", model_arguments={"num_classes": 3}, shape=(4,)).load()
    assert model(example).shape == (1, 3)


def test_predictions_take_residual_streams_where_the_limits_are_not_enough() -> None:
    model = nn.Sequential(
        nn.Linear(16, 32), nn.LayerNorm(32), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32), nn.LayerNorm(32)
    ).append(nn.Linear(32, 4))
    found, without = (
        inspect(model, torch.randn(2, 16), Rules(freedoms=freedoms))
        for freedoms in (Rules().freedoms, Rules().freedoms[:1])
    )
    assert "0.weight:0" in found.groups
    assert "0.weight:0" not in without.groups
    assert isinstance(without.predicted[0.7], str)
    assert isinstance(found.predicted[0.7], Size)
    assert found.predicted[0.7].macs <= 0.3 * found.size.macs
    assert found.predicted[0.3] == without.predicted[0.3], "streams stay whole where they can"
