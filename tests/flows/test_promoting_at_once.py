"""Two promotions at the same time, as processes of their own: one wins, the other says so."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tasks.environment import REPOSITORY
from tasks.registry import mlflow_models

pytestmark = pytest.mark.slow

LONGEST_S = 240.0
HELD = '''

whole = small


def small(input_shape, num_classes, width=16):
    """The same, which waits until it may go on."""
    import time
    from pathlib import Path

    Path("measuring").touch()
    while not Path("go").exists():
        time.sleep(0.05)
    return whole(input_shape, num_classes, width)
'''


def promote(folder: Path) -> subprocess.Popen[str]:
    """Start the command as a process of its own, without Prefect's engine."""
    environment = {**os.environ, "DVC_STAGE": "tests", "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "flows.promote"],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_until_it_measures(process: subprocess.Popen[str], folder: Path) -> None:
    deadline = time.monotonic() + LONGEST_S
    while not (folder / "measuring").exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    _, printed = process.communicate(timeout=LONGEST_S)
    return process.returncode, printed


def decided(folder: Path) -> list[tuple[str, str]]:
    file = folder / "promotions.jsonl"
    found = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []
    return [(line["decision"], line["version"]) for line in found]


@pytest.fixture
def held(shop: Any) -> Any:
    """A project whose model waits for the file `go`, and a store that can be named from anywhere."""
    with (shop.root / "own_project.py").open("a", encoding="utf-8") as own:
        own.write(HELD)
    shop.change(lambda s: s["tracking"].update(uri=f"sqlite:///{shop.root}/mlflow.db"))
    return shop


def test_second_one_in_the_same_folder_says_that_another_is_at_work(held: Any) -> None:
    first = promote(held.root)
    wait_until_it_measures(first, held.root)
    code, printed = ended(promote(held.root))
    assert code == 2
    assert "another promotion or rollback is at work here" in printed
    assert (mlflow_models.at(held.settings, "production"), decided(held.root)) == (None, [])
    (held.root / "go").touch()
    assert ended(first)[0] == 0
    assert decided(held.root) == [("promoted", "1")]


def test_second_one_on_another_machine_says_that_another_won(held: Any, tmp_path: Path) -> None:
    there = tmp_path / "another machine"
    shutil.copytree(held.root, there)
    first = promote(held.root)
    wait_until_it_measures(first, held.root)
    (there / "go").touch()
    assert ended(promote(there))[0] == 0
    (held.root / "go").touch()
    code, printed = ended(first)
    assert code == 2
    assert "production changed from version none to 1" in printed
    assert "another promotion won" in printed
    assert (decided(there), decided(held.root)) == ([("promoted", "1")], [])
    found = mlflow_models.at(held.settings, "production")
    assert found is not None
    assert found.number == "1"
