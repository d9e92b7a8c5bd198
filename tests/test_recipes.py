"""The recipe files of published methods are settings of the language model, and choose what their papers do."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tasks.config.prune_schema import Structured
from tasks.config.schema import Settings
from tasks.config.yaml_io import read_mapping
from tasks.environment import REPOSITORY

EXAMPLES = REPOSITORY / "examples"
RECIPES = sorted((EXAMPLES / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_the_language_model_with_another_section_prune(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(EXAMPLES / "language_model")
    for name in ("net", "data"):  # the example's own, which other tests have of theirs
        monkeypatch.delitem(sys.modules, name, raising=False)
    found, base = read_mapping(path), read_mapping(EXAMPLES / "language_model" / "params.yaml")
    assert {key: value for key, value in found.items() if key != "prune"} == {
        key: value for key, value in base.items() if key != "prune"
    }
    prune = Settings.model_validate(found).prune
    assert isinstance(prune, Structured)
    assert not prune.recipes


def test_every_recipe_is_named_where_choices_are_explained() -> None:
    page = (REPOSITORY / "docs" / "choices.md").read_text(encoding="utf-8")
    assert RECIPES
    for path in RECIPES:
        assert f"recipes/{path.name}" in page, path.name
