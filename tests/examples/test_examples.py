"""The examples do what their pages say."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from secateur.project import Network, project_files
from tasks.environment import REPOSITORY

EXAMPLES = REPOSITORY / "examples"
OWN = EXAMPLES / "own_repository"
NOTEBOOK = EXAMPLES / "notebook" / "prune_step_by_step.ipynb"

pytestmark = pytest.mark.timeout(1800)  # they train, and a busy machine takes its time


def call(*command: str | Path, folder: Path) -> str:
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "MPLBACKEND": "agg",
        "PYTHONPATH": str(REPOSITORY),
        "PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
    }
    environment.pop("DVC_STAGE", None)
    done = subprocess.run([*command], cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_settings_of_the_own_repository_are_what_init_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(OWN)
    written = project_files(Network("net:make_model"), "data:load")["params.yaml"]
    assert (OWN / "params.yaml").read_text(encoding="utf-8") == written


def test_notebook_is_committed_without_outputs() -> None:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert code
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)


@pytest.mark.slow
def test_own_repository_is_registered_by_the_commands_of_its_page(tmp_path: Path) -> None:
    folder = tmp_path / "own_repository"
    (folder / "bin").mkdir(parents=True)
    for name in ("net.py", "data.py", "params.yaml"):
        shutil.copy(OWN / name, folder)
    command = folder / "bin" / "secateur"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m secateur "$@"\n', encoding="utf-8")
    command.chmod(0o755)
    page = (OWN / "README.md").read_text(encoding="utf-8")
    lines = re.findall(r"^secateur .*$", page, re.MULTILINE)
    assert len(lines) == 2
    printed = [call("sh", "-c", line, folder=folder) for line in lines]
    assert "registered" in printed[-1]
    assert (folder / "artifacts" / "report" / "report.html").is_file()
    assert (folder / "params.yaml").read_bytes() == (OWN / "params.yaml").read_bytes()


@pytest.mark.slow
def test_training_loop_of_ones_own_recovers_what_pruning_cost(tmp_path: Path) -> None:
    printed = call(sys.executable, EXAMPLES / "training_loop" / "train.py", folder=tmp_path)
    accuracy = {line.split()[0]: float(line.split()[1].rstrip("%")) for line in printed.splitlines()[:3]}
    assert accuracy["narrowed"] < accuracy["fine-tuned"]
    assert accuracy["fine-tuned"] > accuracy["trained"] - 2
    assert (tmp_path / "model.onnx").is_file()


@pytest.mark.slow
def test_notebook_runs_from_top_to_bottom(tmp_path: Path) -> None:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    code = "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    script = tmp_path / "notebook.py"
    script.write_text(code, encoding="utf-8")
    assert "fine-tuned" in call(sys.executable, script, folder=tmp_path)
