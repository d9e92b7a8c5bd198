from __future__ import annotations

from pathlib import Path

import pytest

from pruning.errors import SettingsError
from tasks.imports import call, resolve, source_digest


def test_module_in_the_current_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "beside_me.py").write_text("def make(a, b=2):\n    return a + b\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert call("beside_me:make", {"a": 1}) == 3


def test_what_is_offered_is_passed_where_it_is_taken_and_settings_win(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "offered.py").write_text("def make(days):\n    return days\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert call("offered:make", {"days": 2}, {"days": 1, "unknown": 5}) == 2
    assert call("offered:make", {}, {"days": 1, "unknown": 5}) == 1


@pytest.mark.parametrize(
    ("reference", "text"),
    [
        ("json", "is no import string"),
        ("json:", "is no import string"),
        ("jason_absent:loads", "there is no module 'jason_absent'"),
        ("json:load_s", "did you mean 'loads'"),
        ("json:__name__", "is a str; expected a function or a class"),
    ],
)
def test_wrong_reference_is_explained(reference: str, text: str) -> None:
    with pytest.raises(SettingsError) as caught:
        resolve(reference)
    assert text in str(caught.value)


def test_module_that_needs_something_absent_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "needy.py").write_text("import absent_dependency\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SettingsError, match="needy itself needs 'absent_dependency'"):
        resolve("needy:make")


def test_module_that_raises_while_imported_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_inside.py").write_text("1 / 0\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SettingsError, match="ZeroDivisionError"):
        resolve("broken_inside:make")


def test_unknown_argument_names_those_that_are_taken() -> None:
    with pytest.raises(SettingsError, match="it takes: fractions, seed"):
        call("zoo.datasets:digits", {"sead": 1})


def test_function_that_raises_is_named_with_its_arguments() -> None:
    with pytest.raises(SettingsError, match=r"zoo.models:resnet20.*raised ValueError"):
        call("zoo.models:resnet20", {"width": -1})


def test_digest_follows_the_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    source = tmp_path / "digested.py"
    source.write_text("def make():\n    return 1\n", encoding="utf-8")
    before = source_digest("digested:make")
    assert source_digest("digested:make") == before
    source.write_text("def make():\n    return 2\n", encoding="utf-8")
    assert source_digest("digested:make") != before
