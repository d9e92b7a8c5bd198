"""Files and folders that are whole or not there, whenever the process dies."""

from __future__ import annotations

from pathlib import Path

import pytest

from pruning.io.files import put_back, writing
from tests.dying import died_before


def _replace(place: Path, text: str) -> None:
    with writing(place) as folder:
        for name in ("a", "b"):
            (folder / name).write_text(text, encoding="utf-8")


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
        died = died_before(at, lambda: _replace(place, "new"))  # noqa: B023 - called at once
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
        if not died_before(at, lambda: _replace(place, "new")):  # noqa: B023 - called at once
            return
        if place.exists():
            for path in place.iterdir():
                path.unlink()
            place.rmdir()
        put_back(place)
        if place.exists():
            assert _found(place) == {"a: old", "b: old"}
    pytest.fail("it never ended")
