from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pruning.errors import SettingsError
from tasks.config.reference import FIRST, json_schema_text
from tasks.config.schema import load
from tasks.config.yaml_io import read_mapping
from tasks.environment import REPOSITORY

Settings = dict[str, Any]
Write = Callable[[Callable[[Settings], object] | None], Path]


def test_shipped_settings_are_valid_and_name_what_a_first_run_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    assert load(Path("params.yaml")).prune.kind == "structured"
    assert {*FIRST, "model.kwargs"} == {
        f"{s}.{k}" for s, keys in read_mapping(Path("params.yaml")).items() for k in keys
    }
    first, second = (REPOSITORY / place for place in ("params.yaml", "secateur/templates/params.yaml"))
    assert first.read_text().splitlines()[0] == second.read_text().splitlines()[0].replace("$$", "$")


def test_the_committed_schema_is_the_one_that_editors_get() -> None:
    """Written by `secateur params --json-schema > params.schema.json`."""
    assert (REPOSITORY / "params.schema.json").read_text(encoding="utf-8") == json_schema_text()


def test_project_with_own_code_is_valid(write_params: Write) -> None:
    settings = load(write_params(None))
    assert settings.prune.target.kinds == ("mac_reduction",)
    assert settings.prune.schedule_for(0.6).target == 0.6


FAULTS: list[tuple[Callable[[Settings], object], str]] = [
    (
        lambda s: s["prune"].update(creterion="l1_norm"),
        "prune.creterion: unknown setting 'creterion'; did you mean 'criterion'",
    ),
    (lambda s: s.update(prun={}), "prun: unknown setting 'prun'; did you mean 'prune'"),
    (lambda s: s.update(tidy={"keep_days": 1}), "rewrites it:\n  tidy is called cleanup now"),
    (lambda s: s["prune"].update(criterion="l3_norm"), "unknown criterion 'l3_norm'; did you mean 'l"),
    (lambda s: s["prune"].update(schedule="cubik"), "unknown choice 'cubik'; did you mean 'cubic'"),
    (lambda s: s["prune"].update(target={"mac_reduction": 1.5}), "prune.target.mac_reduction: found 1.5"),
    (lambda s: s["prune"].update(target={"mac_reduction": 0}), "prune.target.mac_reduction: found 0"),
    (lambda s: s["prune"].update(target={}), "expected at least one of mac_reduction, parameter_reduction, size_bytes"),
    (
        lambda s: s["prune"].update(target={"mac_reduction": 0.5, "weight_sparsity": 0.5}),
        "latency_reduction or latency_ms; found mac_reduction and weight_sparsity",
    ),
    (
        lambda s: s["prune"].update(target={"latency_ms": 2.0, "latency_reduction": 0.5}),
        "latency_ms and latency_reduction are the same target",
    ),
    (lambda s: s["prune"].update(round_to="often"), "prune.round_to: found 'often': expected a number of 1 or more"),
    (lambda s: s["prune"].update(round_to=0), "prune.round_to: found 0: expected a number of 1 or more, or auto"),
    (lambda s: s["prune"].update(first_step=0.9), "first_step (0.9) must not be above the target (0.6)"),
    (lambda s: s["prune"]["recipes"][1].update(name="distil"), "two recipes are named 'distil'"),
    (
        lambda s: s["prune"]["recipes"][0].update(epoch=3),
        "prune.recipes[0].epoch: unknown setting 'epoch'; did you mean 'epochs'",
    ),
    (lambda s: s["analyze"].update(rates=[0.5, 1.0]), "analyze.rates[1]: found 1.0"),
    (lambda s: s["analyze"].update(sample_fraction=0.4), "analyze.sample_fraction: found 0.4"),
    (
        lambda s: s["model"].update(factory="own_project:smal"),
        "unknown name in own_project 'smal'; did you mean 'small'",
    ),
    (lambda s: s["model"].update(factory="nowhere.models:make"), "there is no module 'nowhere'"),
    (lambda s: s["model"].update(factory="own_project"), "is no import string"),
    (lambda s: s["model"].update(weights="absent.pt"), "there is no file absent.pt"),
    (
        lambda s: s["training"].update(loss="cross_entropi"),
        "unknown loss 'cross_entropi'; did you mean 'cross_entropy'",
    ),
    (lambda s: s["run"].update(device="abacus"), "can't compute on it"),
    (lambda s: s.update(prune=3), "prune: found 3; expected a mapping of settings"),
    (lambda s: s.update(baseline=None), "baseline: found None; expected a mapping of settings"),
    (
        lambda s: s["prune"].update(allocation="trial"),
        "prune.allocation: found 'trial'; expected a mapping of settings",
    ),
    (lambda s: s["model"].update(kwargs=[3]), "model.kwargs: found [3]; expected a mapping of settings"),
    (lambda s: s["baseline"].update(recipe=None), "a fault:\n  baseline.recipe and model.weights are both null"),
]


@pytest.mark.parametrize(("change", "text"), FAULTS, ids=[text[:40] for _, text in FAULTS])
def test_fault_is_named_with_its_path_and_the_nearest_right_name(
    write_params: Write, change: Callable[[Settings], object], text: str
) -> None:
    with pytest.raises(SettingsError) as caught:
        load(write_params(change))
    assert text in str(caught.value)


FOREIGN: list[tuple[str, Any]] = [
    ("recover", {"method": "none"}),
    ("weights", {"scope": "local"}),
    ("gates", {"ramp": 0.2}),
    ("criterion", "l2_norm"),
]
TARGETS: dict[str, Settings] = {
    "structured": {"mac_reduction": 0.5},
    "unstructured": {"weight_sparsity": 0.5},
    "n_m": {"pattern": "2:4"},
    "dynamic": {"mac_reduction": 0.5},
}


@pytest.mark.parametrize("kind", TARGETS)
def test_each_kind_has_its_own_keys_and_refuses_those_of_another(write_params: Write, kind: str) -> None:
    owners = {
        "recover": "kind structured",
        "weights": "kind unstructured",
        "gates": "kind dynamic",
        "criterion": "kinds structured, unstructured and n_m",
    }
    for key, value in FOREIGN:
        prune = {"kind": kind, "target": TARGETS[kind], key: value}
        path = write_params(partial(dict.update, prune=prune))
        if kind in owners[key].replace(",", "").split():
            assert load(path).prune.kind == kind
            continue
        with pytest.raises(SettingsError) as caught:
            load(path)
        message = f"prune.{key} is a key of {owners[key]}; kind is {kind}: remove it"
        assert str(caught.value) == f"params.yaml has a fault:\n  {message}".replace("params.yaml", str(path))


def test_all_faults_are_reported_at_once(write_params: Write) -> None:
    def change(settings: Settings) -> None:
        settings["run"]["sed"] = 1
        settings["prune"]["criterion"] = "magic"
        settings["analyze"]["rates"] = [2.0]
        settings["data"]["factory"] = "own_project:fewer"

    with pytest.raises(SettingsError) as caught:
        load(write_params(change))
    assert "has 4 faults" in str(caught.value), str(caught.value)
    for part in ("run.sed", "prune.criterion", "analyze.rates[0]", "data.factory"):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("run: {seed: 0}\nrun: {seed: 1}\n", "line 2: the key 'run' occurs twice"),
        ("run: [unclosed\n", "is not valid YAML"),
        ("- a list\n", "holds a list; expected a mapping"),
        ("run: !!python/object/apply:os.getcwd []\n", "is not valid YAML"),
        ("", "is empty"),
    ],
)
def test_malformed_file_is_one_message(tmp_path: Path, content: str, text: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(SettingsError) as caught:
        load(path)
    assert text in str(caught.value)


def test_absent_file_is_one_message(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="there is no settings file"):
        load(tmp_path / "absent.yaml")
