"""Killed between the moves of two aliases: production is never empty, and the next decision does what is missing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from pruning.errors import WorkspaceError
from pruning.io.files import replace_file
from tasks.registry import decisions, mlflow_models, promote
from tasks.registry.promote import Case

pytestmark = pytest.mark.thorough


def number(shop: Any, alias: str) -> str | None:
    found = mlflow_models.at(shop.settings, alias)
    return found.number if found else None


def lines() -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path("promotions.jsonl").read_text(encoding="utf-8").splitlines()]


WRITES = (
    "set_registered_model_alias",
    "delete_registered_model_alias",
    "set_model_version_tag",
    "delete_model_version_tag",
)


class Killed(BaseException):
    """What stands for SIGKILL here: nothing catches it."""


@pytest.fixture
def three(shop: Any) -> Any:
    """Version 1 was in production, version 2 is, version 3 is the candidate; the decisions' figures are left out."""
    for version, instead_of in (("1", None), ("2", "1")):
        if version != "1":
            shop.same_model_again()
            assert shop.register() == version
        promote.promote(shop.settings, Case(version, instead_of, (), ()))
    shop.same_model_again()
    assert shop.register() == "3"
    return shop


def put_back(shop: Any, before: dict[str, Any]) -> None:
    """Make registry and file what they were."""
    for alias, version in before["aliases"].items():
        if version is None and number(shop, alias) is not None:
            mlflow_models.withdraw(shop.settings, alias)
        elif version is not None:
            mlflow_models.assign(shop.settings, alias, version)
    for version, tags in before["tags"].items():
        now = mlflow_models.find(shop.settings, number=version).tags
        mlflow_models.tag(shop.settings, version, tags, without=now.keys() - tags.keys())
    Path("promotions.jsonl").write_text(before["lines"], encoding="utf-8")


def as_it_is(shop: Any) -> dict[str, Any]:
    return {
        "aliases": {alias: number(shop, alias) for alias in ("production", "previous")},
        "tags": {version.number: dict(version.tags) for version in mlflow_models.versions(shop.settings)},
        "lines": Path("promotions.jsonl").read_text(encoding="utf-8"),
    }


def killed_at(step: int, action: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> bool:
    """Do something until, as many steps on, the registry or the file would be changed; say whether it came to that."""
    left = [step]

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            if left[0] == 0:
                raise Killed
            left[0] -= 1
            return real(*arguments, **named)

        return call

    with monkeypatch.context() as patch:
        for name in WRITES:
            patch.setattr(MlflowClient, name, counted(getattr(MlflowClient, name)))
        patch.setattr("tasks.registry.decisions.replace_file", counted(replace_file))
        try:
            action()
        except Killed:
            return True
    return False


def test_promotion_that_is_killed_leaves_production_and_is_finished_or_decided_anew(
    three: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    case, before = Case("3", "2", (), ()), as_it_is(three)
    for step in range(4):
        put_back(three, before)
        assert killed_at(step, lambda: promote.promote(three.settings, case), monkeypatch)
        moved = step == 3
        assert number(three, "production") == ("3" if moved else "2")
        assert promote.undecided(three.settings) == (None if moved else "3")
        decisions.complete(three.settings)
        assert number(three, "previous") == ("2" if moved else "1")
        if not moved:
            promote.promote(three.settings, case)
        assert [(line["decision"], line["version"]) for line in lines()] == [("promoted", one) for one in "123"]
        promote.roll_back(three.settings)
        assert (number(three, "production"), number(three, "previous")) == ("2", None)
    put_back(three, before)
    assert not killed_at(4, lambda: promote.promote(three.settings, case), monkeypatch), "a step more"


def test_rollback_after_a_promotion_that_was_killed_goes_to_what_was_there_before(
    three: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert killed_at(2, lambda: promote.promote(three.settings, Case("3", "2", (), ())), monkeypatch)
    assert (number(three, "production"), number(three, "previous")) == ("2", "2")
    promote.roll_back(three.settings)
    assert (number(three, "production"), number(three, "previous")) == ("1", None)


def test_rollback_that_is_killed_leaves_production_and_is_finished(three: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    before = as_it_is(three)
    for step in range(5):
        put_back(three, before)
        assert killed_at(step, lambda: promote.roll_back(three.settings), monkeypatch)
        moved = step >= 3
        assert number(three, "production") == ("1" if moved else "2")
        if moved:
            decisions.complete(three.settings)
        else:
            promote.roll_back(three.settings)
        assert (number(three, "production"), number(three, "previous")) == ("1", None)
        assert [(line["decision"], line["version"]) for line in lines()][2:] == [("rolled back", "1")]
        assert decisions.ROLLED_BACK in mlflow_models.find(three.settings, number="2").tags
        with pytest.raises(WorkspaceError, match="no version is `previous`"):
            promote.roll_back(three.settings)
    put_back(three, before)
    assert not killed_at(5, lambda: promote.roll_back(three.settings), monkeypatch), "a step more"


def test_refusal_whose_line_a_kill_left_out_is_written_down(three: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case("3", "2", (), ("slow",))
    assert killed_at(2, lambda: promote.refuse(three.settings, case), monkeypatch)
    assert len(lines()) == 2
    decisions.complete(three.settings)
    assert [line["reasons"] for line in lines()][2:] == [["slow"]]
