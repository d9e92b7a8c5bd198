"""Settings files of earlier versions, as this repository had them, become files of today; or they stay as they are."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from pruning.errors import SettingsError
from pruning.training.recipe import Recipe, recipe_for
from tasks.config.migration import migrate
from tasks.config.schema import load
from tasks.config.yaml_io import read_mapping
from tasks.environment import REPOSITORY
from zoo.models import resnet20

OLD = Path(__file__).parent / "old_params"
CHANGES = {
    "first": [
        "prune.recalibrate is prune.recover now, with method: recalibrate",
        "benchmark.threads is a list now: [1]",
    ],
    "kinds_of_pruning": ["prune.allocation.by is prune.allocation.strategy now", "prune.gates is removed"],
    "before_the_names": ["tidy is cleanup now", "promote.max_more_macs is promote.max_macs_increase now"],
}


def _old(name: str, into: Path) -> Path:
    place = into / "params.yaml"
    place.write_bytes((OLD / f"{name}.yaml").read_bytes())
    return place


@pytest.mark.parametrize("name", CHANGES)
def test_file_of_an_earlier_version_is_refused_then_rewritten_with_its_comments(name: str, tmp_path: Path) -> None:
    path = _old(name, tmp_path)
    before = path.read_text(encoding="utf-8").splitlines()
    with pytest.raises(SettingsError, match=r"`secateur params --migrate .*params\.yaml` rewrites it"):
        load(path)
    said = migrate(path)
    assert all(any(line.startswith(change) for line in said) for change in CHANGES[name]), said
    settings = load(path)
    assert settings.prune.kind == "structured"
    after = path.read_text(encoding="utf-8").splitlines()
    removed = [line for line in before if re.match(r"  (weights: \{scope|gates:)", line)]
    assert len(after) == len(before) - len(removed)
    for line in before:
        _, hash_sign, comment = line.partition("#")
        assert not hash_sign or line in removed or any(other.endswith(f"#{comment}") for other in after), line
    assert migrate(path) == []
    assert path.read_text(encoding="utf-8").splitlines() == after


def test_values_are_kept_and_those_that_had_another_form_mean_the_same(tmp_path: Path) -> None:
    path = _old("first", tmp_path)
    old = read_mapping(path)
    migrate(path)
    new = read_mapping(path)
    assert new["model"] == {"factory": "zoo.models:resnet20", "kwargs": {"width": 16}, "weights": None}
    assert new["benchmark"]["threads"] == [1]
    assert new["prune"]["recover"] == {"method": "recalibrate", "num_samples": 1024}
    assert new["prune"]["min_channels"] == old["prune"]["keep_at_least"]
    assert new["prune"]["recipes"] == old["prune"]["recipes"]


def test_the_last_file_that_named_every_setting_says_what_the_short_one_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So the shipped recipe is the default of the schema; what is `auto` there comes to the numbers of that file."""
    path = _old("before_the_names", tmp_path)
    migrate(path)
    monkeypatch.chdir(REPOSITORY)
    old, new = load(path), load(Path("params.yaml"))
    model = resnet20()
    assert old.baseline.recipe is not None
    assert new.baseline.recipe is not None
    assert _filled(old.baseline.recipe, model) == _filled(new.baseline.recipe, model)
    assert [_filled(one, model) for one in old.prune.recipes] == [_filled(one, model) for one in new.prune.recipes]
    recipes = {"recipes": new.prune.recipes}
    baseline = old.baseline.model_copy(update={"recipe": new.baseline.recipe})
    assert old.model_copy(update={"baseline": baseline, "prune": old.prune.model_copy(update=recipes)}) == new


def _filled(recipe: Recipe, model: nn.Module) -> dict[str, Any]:
    """Return what a recipe comes to for a model, numbers in place of `auto`."""
    found = recipe_for(recipe, model)
    numbers = {"learning_rate": found.peak_rate, "warmup_epochs": found.rise, "gradient_clip": found.largest_gradient}
    return found.model_dump() | numbers


HEAD = "data: {factory: 'zoo.datasets:digits'}\nmodel: {factory: 'zoo.models:resnet20'}\nbaseline: {recipe: {}}\n"
LAYOUTS: list[tuple[str, str]] = [
    ("prune: {target: {mac_reduction: 0.5}, gates: {ramp: 0.2}}\n", "prune: {target: {mac_reduction: 0.5}}\n"),
    ("prune: {gates: {}, target: {mac_reduction: 0.5}}\n", "prune: {target: {mac_reduction: 0.5}}\n"),
    (
        "prune:\n  gates:  # gone\n    # gone\n    ramp: 0.2\n    # gone\n  # stays\n  target: {size_bytes: 9}\n",
        "prune:\n  # stays\n  target: {size_bytes: 9}\n",
    ),
    (
        "prune:\n  recalibrate:\n    num_samples: 64  # few\n  target: {size_bytes: 9}\n",
        "prune:\n  recover:\n    method: recalibrate\n    num_samples: 64  # few\n  target: {size_bytes: 9}\n",
    ),
    (
        "prune:\n  kind: dynamic\n  target: {mac_reduction: 0.5}\n  keep_at_least: 2\n  allocation:\n    by: local",
        "prune:\n  kind: dynamic\n  target: {mac_reduction: 0.5}\n",
    ),
    (
        "prune:\r\n  'keep_at_least': 2\r\n  target: {size_bytes: 9}\r\n",
        "prune:\r\n  min_channels: 2\r\n  target: {size_bytes: 9}\r\n",
    ),
]


@pytest.mark.parametrize(("old", "new"), LAYOUTS)
def test_layout_stays(tmp_path: Path, old: str, new: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_bytes((HEAD + old).encode())
    assert migrate(path)
    assert path.read_bytes().decode() == HEAD + new


REFUSED: list[tuple[str, str]] = [
    ("prune: {target: {size_bytes: 9}, keep_at_least: 1, min_channels: 2}\n", "are both given"),
    ("prune: {target: {size_bytes: 9}, keep_at_most: 1}\n", "prune.keep_at_most: unknown setting"),
    ("prune: {target: {size_bytes: 9}, recalibrate: 5}\n", "prune.recalibrate: unknown setting"),
    (
        "prune: {target: {size_bytes: 9}, ignore: &i [fc], gates: &g {ramp: 0.1}, weights: *g, start: {weights: *i}}\n",
        "prune.start.weights",
    ),
    (
        "prune: {target: {size_bytes: 9}, gates: &g {by: local}, allocation: *g}\n",
        "can't be rewritten without losing something",
    ),
    ("prune: [unclosed\n", "is not valid YAML"),
]


@pytest.mark.parametrize(("content", "text"), REFUSED, ids=[text for _, text in REFUSED])
def test_what_has_no_equivalent_is_named_and_nothing_is_written(tmp_path: Path, content: str, text: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(HEAD + content, encoding="utf-8")
    with pytest.raises(SettingsError) as caught:
        migrate(path)
    assert text in str(caught.value)
    assert path.read_text(encoding="utf-8") == HEAD + content
    assert [file.name for file in tmp_path.iterdir()] == ["params.yaml"]
