from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from pruning.errors import SettingsError
from tasks.code_closure import code_of
from tasks.config.import_strings import call, made, resolve


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
        ("zoo.models:resnet_20", "did you mean 'resnet20'"),
        ("zoo.models:__name__", "is a str; expected a function or a class"),
        ("os:system", "'os:system' is Python's own"),
        ("builtins:exec", "'builtins:exec' is Python's own"),
        ("subprocess:run", "'subprocess:run' is Python's own"),
        (
            "tasks.config.import_strings:importlib.import_module",
            "'tasks.config.import_strings:importlib.import_module' is Python's own",
        ),
        ("tasks.config.import_strings:Path.unlink", "'tasks.config.import_strings:Path.unlink' is Python's own"),
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


@pytest.mark.parametrize("named", ["unbound", "bound", "inside", "partial_of_it"])
def test_function_of_python_is_recognised_in_a_module_of_ones_own(
    named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "disguise.py").write_text(
        "import functools, os, pathlib, shutil\n"
        "unbound, bound = shutil.rmtree, pathlib.Path('x').unlink\n"
        "class Own:\n    inside = staticmethod(os.system)\n"
        "inside = Own.inside\npartial_of_it = functools.partial(os.system, 'true')\n",
        encoding="utf-8",
    )
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SettingsError, match=f"'disguise:{named}' is Python's own"):
        resolve(f"disguise:{named}")


def test_partial_of_ones_own_function_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "halved.py").write_text(
        "import functools\ndef add(a, b):\n    return a + b\nmake = functools.partial(add, 1)\n", encoding="utf-8"
    )
    monkeypatch.chdir(tmp_path)
    assert call("halved:make", {"b": 2}) == 3


@pytest.mark.parametrize("place", ["at once", "when called"])
def test_module_that_ends_the_process_is_one_message(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = "sys.exit(0)" if place == "at once" else "def make():\n    sys.exit(3)"
    name = f"leaves_{place.replace(' ', '_')}"
    (tmp_path / f"{name}.py").write_text(f"import sys\n{body}\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SettingsError, match=rf"'{name}:make' .*SystemExit"):
        call(f"{name}:make", {})


def test_unknown_argument_names_those_that_are_taken() -> None:
    with pytest.raises(SettingsError, match="it takes: fractions, seed"):
        call("zoo.datasets:digits", {"sead": 1})


def test_lacking_argument_is_named() -> None:
    with pytest.raises(SettingsError, match="was given no arguments: missing a required argument: 'folder'"):
        call("zoo.datasets:image_folder", {})


def test_package_in_src_is_pointed_to_until_it_can_be_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "src" / "lies_in_src").mkdir(parents=True)
    (tmp_path / "src" / "lies_in_src" / "net.py").write_text("def make(): ...\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SettingsError, match=r"src/lies_in_src is there: .*'src.lies_in_src.net:make'"):
        resolve("lies_in_src.net:make")
    with pytest.raises(SettingsError, match=r"or in the environment$"):
        resolve("lies_nowhere.net:make")
    assert resolve("src.lies_in_src.net:make").__name__ == "make"


def test_function_that_raises_is_named_with_its_arguments() -> None:
    with pytest.raises(SettingsError, match=r"zoo.models:resnet20.*raised ValueError"):
        call("zoo.models:resnet20", {"width": -1})


CALLABLES = """
from functools import partial
import torch
from torch import nn
from torch.nn import functional

def plain(outputs, targets):
    return functional.cross_entropy(outputs, targets)

class Scored:
    def __call__(self, outputs, targets):
        return functional.cross_entropy(outputs, targets)

    def method(self, outputs, targets):
        return functional.cross_entropy(outputs, targets)

smoothed = nn.CrossEntropyLoss(label_smoothing=0.1)
bound = partial(functional.cross_entropy, label_smoothing=0.1)
twice = partial(bound, reduction="mean")
scored = Scored()
method = scored.method
built_in = torch.sub
Renamed = nn.CrossEntropyLoss
"""
"""Whatever Python can call."""


@pytest.mark.parametrize(
    "name",
    ["plain", "Scored", "smoothed", "bound", "twice", "scored", "method", "scored.method", "built_in", "Renamed"],
)
def test_digest_of_any_callable_follows_the_file_that_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    source = tmp_path / "all_callables.py"
    source.write_text(CALLABLES, encoding="utf-8")
    before = code_of((), [f"all_callables:{name}"])
    assert code_of((), [f"all_callables:{name}"]) == before
    source.write_text(CALLABLES.replace("0.1", "0.2").replace("sub", "add"), encoding="utf-8")
    assert code_of((), [f"all_callables:{name}"]) != before


@pytest.mark.parametrize("name", ["plain", "smoothed", "bound", "twice", "scored", "method", "Scored", "Renamed"])
def test_any_callable_is_a_loss_and_a_class_is_made_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "all_callables.py").write_text(CALLABLES, encoding="utf-8")
    loss = made(f"all_callables:{name}")
    assert float(loss(torch.tensor([[0.0, 0.0]]), torch.tensor([1]))) == pytest.approx(math.log(2))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("torch.nn:Linear", "is a class that can't be made without arguments"),
        ("torch:Size", "is a class whose instances can't be called"),
    ],
)
def test_class_that_is_no_function_of_outputs_and_targets_is_explained(name: str, text: str) -> None:
    with pytest.raises(SettingsError, match=text):
        made(name)
