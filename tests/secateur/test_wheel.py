"""The wheel in a fresh environment, and in it a repository of the user's own: init, inspect, run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from tasks.environment import REPOSITORY

NET = '''
from torch import nn


def make_model(num_classes):
    """Two convolutions and a linear layer."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.BatchNorm2d(64), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(256, num_classes),
    )
'''
DATA = '''
from types import SimpleNamespace

import torch


def load():
    """Four patterns under noise."""
    generator = torch.Generator().manual_seed(0)
    patterns = torch.randn(4, 1, 8, 8, generator=generator)

    def part(count):
        targets = torch.arange(count) % 4
        noise = 0.5 * torch.randn(count, 1, 8, 8, generator=generator)
        return SimpleNamespace(inputs=patterns[targets] + noise, targets=targets)

    return SimpleNamespace(train=part(400), validation=part(200), test=part(200), classes=("a", "b", "c", "d"))
'''
SHADOWS = ("flows", "tasks", "zoo", "pruning")
"""Folders of the user's own, of the names that Secateur's packages have."""


def call(*command: str | Path, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "DVC_STAGE")}
    return subprocess.run(
        [str(part) for part in command],
        cwd=folder,
        env={**kept, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def tool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel and install it, alone, into an environment that sees the packages of this one; its command."""
    place = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet"]
    done = call(*build, "--wheel-dir", place, REPOSITORY, folder=place)
    assert done.returncode == 0, done.stderr
    (wheel,) = place.glob("secateur-*.whl")
    own = place / "venv"
    venv.create(own, with_pip=False)
    python = own / "bin" / "python"
    site = call(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", folder=place).stdout.strip()
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index", "--quiet"]
    done = call(*install, wheel, folder=place)
    assert done.returncode == 0, done.stderr
    Path(site, "shared.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    return own / "bin" / "secateur"


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    root = tmp_path / "my repository"
    for name in (*SHADOWS, "data"):
        (root / name).mkdir(parents=True)
    for name in SHADOWS:
        (root / name / "__init__.py").write_text("mine = 1\n", encoding="utf-8")
    (root / "data" / "scans.csv").write_text("mine\n", encoding="utf-8")
    (root / "net.py").write_text(NET, encoding="utf-8")
    (root / "data.py").write_text(DATA, encoding="utf-8")
    return root


def test_code_comes_from_the_wheel_with_its_data_files(tool: Path, tmp_path: Path) -> None:
    code = (
        "import secateur, flows.serve, pruning, tasks, zoo; from importlib.resources import files\n"
        "print(*(module.__file__ for module in (secateur, flows.serve, pruning, tasks, zoo)), sep='\\n')\n"
        "assert flows.serve.JOB_TEMPLATE.is_file() and (files('secateur') / 'py.typed').is_file()\n"
        "assert {file.name for file in (files('secateur') / 'templates').iterdir()} == {'params.yaml', 'prefect.yaml'}"
    )
    done = call(tool.with_name("python"), "-c", code, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert all(Path(line).is_relative_to(tool.parent.parent) for line in done.stdout.splitlines())


@pytest.mark.slow
def test_init_inspect_and_run_in_a_repository_of_the_users_own(tool: Path, repository: Path) -> None:
    done = call(tool, "init", "--model", "net:make_model", "--data", "data:load", "--yes", folder=repository)
    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip().endswith("then: secateur run")
    params = repository / "params.yaml"
    lines = [line for line in params.read_text(encoding="utf-8").splitlines() if line.startswith("  ")]
    assert len(lines) == 8
    again = call(tool, "init", "--model", "net:other", "--data", "data:load", "--yes", folder=repository)
    assert again.returncode == 2
    assert "'net:other'" not in params.read_text(encoding="utf-8")

    found = json.loads(call(tool, "inspect", "--json", folder=repository).stdout)
    assert [found["groups"], sorted(found["predicted"])] == [
        {"0.weight:0": 32, "3.weight:0": 64},
        ["0.3", "0.5", "0.7"],
    ]

    edited = params.read_text(encoding="utf-8").replace("{epochs: 12}", "{epochs: 2}")
    params.write_text(edited + "\nbenchmark: {rounds: 2}\nprofile: {batch_sizes: []}\n", encoding="utf-8")
    path = f"{tool.parent}{os.pathsep}{os.environ['PATH']}"
    done = call(tool, "run", folder=repository, PATH=path)
    assert done.returncode == 0, done.stderr
    assert "registered" in done.stdout
    assert (repository / "data" / "scans.csv").read_text(encoding="utf-8") == "mine\n"
    assert (repository / "artifacts" / "onnx" / "model.onnx").is_file()
    assert call(tool, "status", folder=repository).returncode == 0
    assert call(tool.with_name("python"), "-m", "dvc", "status", folder=repository).returncode == 0


@pytest.mark.slow
def test_what_cannot_be_imported_is_said(tool: Path, repository: Path) -> None:
    (repository / "tasks" / "net.py").write_text(NET, encoding="utf-8")
    done = call(tool, "init", "--model", "tasks.net:make_model", "--data", "data:load", "--yes", folder=repository)
    assert done.returncode == 2
    assert "'tasks' is a package of Secateur's own" in done.stderr
    assert "rename it" in done.stderr
    assert not (repository / "params.yaml").exists()
