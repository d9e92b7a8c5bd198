"""The loop has one driver, and what it is to come to is worked out once."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

from tasks.environment import REPOSITORY


def callers(name: str, *folders: str) -> Iterator[str]:
    """Give the files below these folders in which a function of this name is called, once for each call."""
    for path in sorted(path for folder in folders for path in (REPOSITORY / folder).rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(text)) if name in text else ():
            if isinstance(node, ast.Call) and name == getattr(node.func, "attr", getattr(node.func, "id", None)):
                yield path.relative_to(REPOSITORY).as_posix()


@pytest.mark.thorough
@pytest.mark.parametrize(("name", "places"), [("close_loop", ["tasks/loop/loop.py"]), ("attempt", [])])
def test_flow_and_tests_run_the_loop_by_the_same_driver(name: str, places: list[str]) -> None:
    """`prune` closes the loop; it hands `attempt` on, to be called as Prefect's task or simply so."""
    assert list(callers(name, "flows", "tasks", "secateur", "benchmarks", "tests")) == places


def test_target_becomes_goals_once() -> None:
    """Once by what tells what a run would do, and once by the run."""
    places = ["tasks/estimate/dry_run.py", "tasks/loop/loop.py"]
    assert list(callers("goals_of", "flows", "tasks", "secateur", "benchmarks")) == places
