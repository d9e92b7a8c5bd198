"""The password of the Prefect server that `make serve` starts: whoever may use its API may run code on this machine.

It is made once and lies in PREFECT_HOME, in a file that its owner alone can read. Commands of the pipeline find it
there by themselves (`tasks.environment`), and so does the worker.
"""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path

from pruning.errors import SettingsError
from tasks.environment import password_file

_OTHERS = stat.S_IRWXG | stat.S_IRWXO


def password() -> str:
    """Return the password, `user:secret` as Prefect takes it; the first time it is made.

    Raises:
        SettingsError: Others can read the file, or it holds something else.
    """
    place = password_file()
    if not place.exists():
        _make(place)
    if place.stat().st_mode & _OTHERS:
        raise SettingsError(
            f"others can read {place}, the password of Prefect's server; delete it, and it is made anew"
        )
    found = place.read_text(encoding="utf-8").strip()
    user, _, secret = found.partition(":")
    if not user or not secret or not found.isprintable() or " " in found:
        raise SettingsError(f"{place} holds no password `user:secret`; delete it, and one is made")
    return found


def _make(place: Path) -> None:
    """Write a new one, whole or not at all; whoever was first wins."""
    place.parent.mkdir(parents=True, exist_ok=True)
    beside = place.with_name(f".{place.name}.{secrets.token_hex(8)}")
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(f"secateur:{secrets.token_urlsafe(24)}\n")
        place.hardlink_to(beside)
    except FileExistsError:
        pass
    finally:
        beside.unlink()
