"""What a stage executes: the user's own modules, however they are reached, and ours; by what they mean."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

from tasks.code_closure import code_of, unlisted, versions
from tasks.file_cache import afresh, holding

FACTORY = '''"""Data."""
from own.shift import SHIFT


def data():
    """Make them."""
    return SHIFT  # stands for Splits
'''
PROJECT = {
    "own/__init__.py": "",
    "own/clf.py": FACTORY,
    "own/shift.py": "SHIFT = 1.0\n",
    "own/other.py": "OTHER = 1\n",
    "own/lazy.py": "def late():\n    from . import deep\n    from .sub.leaf import LEAF\n    return deep, LEAF\n",
    "own/deep.py": "import own.bottom as b\n",
    "own/bottom.py": "X = 1\n",
    "own/sub/leaf.py": "LEAF = 1\n",
    "own/star.py": "from own.bottom import *\n",
    "own/named.py": "import importlib\n\n\ndef data():\n    return importlib.import_module('own.bottom').X\n",
    "own/computed.py": "import importlib\n\n\ndef data(name):\n    return importlib.import_module(f'own.{name}').X\n",
    "own/hydra.py": "TARGET = 'own.bottom.X'\n",
    "own/typed.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import own.bottom\n\n\ndef data(): ...\n",
    "own/scored.py": 'def marked(f):\n    return f.__doc__\n\n\n@marked\ndef data():\n    """One."""\n',
    "own/placed.py": "import sys\nsys.path.insert(0, 'lib')\nimport placed_leaf\n\n\ndef data(): ...\n",
    "lib/placed_leaf.py": "X = 1\n",
    "own/located.py": "import pydoc\n\n\ndef data():\n    return pydoc.locate('beside')\n",
    "single.py": "from own import clf\nimport torch\n",
    "beside.py": "BESIDE = 1\n",
}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, text in PROJECT.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path


def _edit(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


@pytest.mark.parametrize(
    ("named", "file", "old", "new", "changed"),
    [
        ("own.clf:data", "own/clf.py", "return SHIFT", "return -SHIFT", {"own.clf"}),
        ("own.clf:data", "own/shift.py", "1.0", "0.0", {"own.shift"}),
        ("own.clf:data", "own/__init__.py", "", "import own.other\n", {"own", "own.other"}),
        ("own.clf:data", "own/clf.py", "# stands for Splits", "# another comment", set()),
        ("own.clf:data", "own/clf.py", '"""Make them."""', '"""Make the data."""', set()),
        ("own.clf:data", "own/clf.py", '"""Data."""\n', "", set()),
        ("own.clf:data", "own/clf.py", "    return", "\n\n    return", set()),
        ("own.clf:data", "own/other.py", "1", "2", set()),
        ("own.clf:data", "beside.py", "1", "2", set()),
        ("single:clf.data", "own/shift.py", "1.0", "0.0", {"own.shift"}),
        ("own.lazy:late", "own/bottom.py", "1", "2", {"own.bottom"}),
        ("own.lazy:late", "own/sub/leaf.py", "1", "2", {"own.sub.leaf"}),
        ("own.star:X", "own/bottom.py", "1", "2", {"own.bottom"}),
        ("own.named:data", "own/bottom.py", "1", "2", {"own.bottom"}),
        ("own.hydra:TARGET", "own/bottom.py", "1", "2", {"own.bottom"}),
        ("own.computed:data", "own/bottom.py", "1", "2", {"own.bottom"}),
        ("own.computed:data", "beside.py", "1", "2", {"beside"}),
        ("own.placed:data", "lib/placed_leaf.py", "1", "2", {"lib.placed_leaf"}),
        ("own.located:data", "beside.py", "1", "2", {"beside"}),
        ("own.typed:data", "own/bottom.py", "1", "2", set()),
        ("own.scored:data", "own/scored.py", '"""One."""', '"""Two."""', {"own.scored"}),
    ],
)
def test_an_edit_is_seen_where_it_changes_what_is_executed(
    project: Path, named: str, file: str, old: str, new: str, changed: set[str]
) -> None:
    before = code_of((), [named]).modules
    _edit(project / file, old, new) if old else (project / file).write_text(new, encoding="utf-8")
    after = code_of((), [named]).modules
    assert {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)} == changed


def test_file_that_is_no_python_counts_by_its_bytes(project: Path) -> None:
    (project / "own" / "shift.py").write_text("SHIFT = (\n", encoding="utf-8")
    before = code_of((), ["own.clf:data"]).modules
    (project / "own" / "shift.py").write_text("SHIFT = ((\n", encoding="utf-8")
    assert code_of((), ["own.clf:data"]).modules != before


def test_installed_packages_count_by_their_versions(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert code_of((), ["single:clf.data"]).installed == {"torch"}
    assert code_of((), ["torch.nn.functional:cross_entropy"]).installed == {"torch"}
    assert code_of((), ["accuracy", "json:loads", "/tmp/file.pt", "no.such:thing"]).installed == {"no"}
    found = versions({"torch"})
    assert set(found) == {"python", "torch", "numpy"}
    newer = project / "newer" / "torch-99.0.dist-info"
    newer.mkdir(parents=True)
    (newer / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 99.0\n", encoding="utf-8")
    monkeypatch.syspath_prepend(newer.parent)
    assert versions({"torch"}) == found | {"torch": "99.0"}


def test_owners_of_modules_are_listed_once_in_a_command(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def owners() -> dict[str, list[str]]:
        asked.append(1)
        return {"first_module": ["torch"], "second_module": ["torch"]}

    monkeypatch.setattr("tasks.code_closure.packages_distributions", owners)
    with holding():
        found = versions({"first_module", "second_module", "third_module"})
    assert found["first_module"] == found["second_module"] != found["third_module"] == "not installed"
    assert len(asked) == 1


def test_a_package_that_hands_on_names_stands_for_where_they_come_from(project: Path) -> None:
    digits = code_of((), ["zoo.datasets:digits"]).modules
    assert "zoo.datasets.small_images" in digits
    assert "zoo.datasets.cifar" not in digits
    one = code_of(("tasks.data",), []).modules
    assert not any(name.startswith("pruning.allocation") for name in one)


def test_what_a_command_has_read_stays_what_it_was(project: Path) -> None:
    with holding():
        before = code_of((), ["own.clf:data"])
        _edit(project / "own" / "shift.py", "1.0", "0.0")
        assert code_of((), ["own.clf:data"]) == before
        with afresh():
            assert code_of((), ["own.clf:data"]) != before
        assert code_of((), ["own.clf:data"]) == before
    assert code_of((), ["own.clf:data"]) != before


def test_what_was_executed_and_is_in_no_list_is_named(project: Path) -> None:
    def loaded(*files: str) -> dict[str, ModuleType]:
        modules = {file: ModuleType(file) for file in files}
        for file, module in modules.items():
            module.__file__ = str(project / file)
        return modules

    there = ("own/clf.py", "own/shift.py", "own/other.py", "beside.py", "lib/site-packages/x.py", "tests/t.py")
    for file in there:
        (project / file).parent.mkdir(parents=True, exist_ok=True)
        (project / file).touch()
    modules = loaded(*there) | {"built_in": ModuleType("built_in"), "ops": ModuleType("ops")}
    modules["ops"].__file__ = "_ops.py"  # as torch.ops calls itself: no file of the user's
    assert unlisted(modules, code_of(["own.clf"], []).modules) == [
        "beside.py",
        "own/other.py",
    ]
