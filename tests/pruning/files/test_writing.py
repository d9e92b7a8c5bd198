"""Files and folders that are whole or not there, whenever the process dies."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from pruning.files.writing import put_back, writing

EVENTS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree")
DIED = 9


def _replace(place: Path, text: str) -> None:
    with writing(place) as folder:
        for name in ("a", "b"):
            (folder / name).write_text(text, encoding="utf-8")


def _killed(place: Path, text: str, at: int) -> bool:
    """Replace a folder in a process that dies without a word before its event of this number; say whether it did."""
    number = os.fork()
    if number == 0:
        seen = 0

        def hook(name: str, _arguments: object) -> None:
            nonlocal seen
            seen += name in EVENTS
            if seen == at:
                os._exit(DIED)

        sys.addaudithook(hook)
        _replace(place, text)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])
    assert code in (0, DIED)
    return code == DIED


def _found(place: Path) -> set[str]:
    return {f"{path.name}: {path.read_text(encoding='utf-8')}" for path in place.iterdir()}


@pytest.mark.parametrize("there", [True, False], ids=["replaced", "new"])
def test_folder_is_the_old_one_or_the_new_one_wherever_the_process_dies(tmp_path: Path, there: bool) -> None:
    at, found = 0, []
    old: set[str] = {"a: old", "b: old"} if there else set()
    new = {"a: new", "b: new"}
    while True:
        at += 1
        place = tmp_path / str(at) / "place"
        place.parent.mkdir()
        if there:
            _replace(place, "old")
        died = _killed(place, "new", at)
        put_back(place)
        found.append(_found(place) if place.exists() else set())
        assert found[-1] in (old, new), at
        _replace(place, "newest")
        assert _found(place) == {"a: newest", "b: newest"}
        assert [path.name for path in place.parent.iterdir()] == ["place"], "something was left over"
        if not died:
            break
    assert found[0] == old
    assert found[-1] == new
    assert at > 6, "too few events were heard"


def test_folder_that_was_half_removed_does_not_come_back(tmp_path: Path) -> None:
    """Whoever dies while the old folder is removed, and whoever removes the new one then, leaves no half of the old."""
    for at in range(1, 40):
        place = tmp_path / str(at) / "place"
        place.parent.mkdir()
        _replace(place, "old")
        if not _killed(place, "new", at):
            return
        if place.exists():
            for path in place.iterdir():
                path.unlink()
            place.rmdir()
        put_back(place)
        if place.exists():
            assert _found(place) == {"a: old", "b: old"}
    pytest.fail("it never ended")
