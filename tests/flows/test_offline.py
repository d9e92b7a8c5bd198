"""Prefect's server away from the beginning: flows are their bodies alone. In mid-run: `test_restarts`."""

from __future__ import annotations

import json
import logging
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows import offline
from pruning.errors import WorkspaceError


@pytest.fixture
def nobody_listens() -> Iterator[str]:
    """The address of a server that has ended, in Prefect's settings."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{taken.getsockname()[1]}/api"
        with temporary_settings({PREFECT_API_URL: address}):
            yield address


def double(number: int) -> int:
    if number < 0:
        raise WorkspaceError("negative")
    return 2 * number


def test_flow_does_its_work_at_once_and_says_why_there_is_no_page(
    nobody_listens: str, caplog: pytest.LogCaptureFixture
) -> None:
    flow = offline.Flow(double, name="double", typed=False)
    began = time.monotonic()
    with caplog.at_level(logging.WARNING, "secateur"):
        assert flow(4) == 8
    assert time.monotonic() - began < 2
    assert f"{nobody_listens} doesn't answer: double goes on without it" in caplog.text
    with pytest.raises(WorkspaceError, match="negative"):
        flow(-1)


def test_nothing_is_shown_and_nothing_fails(nobody_listens: str) -> None:
    assert offline.is_away()
    assert offline.tell(lambda: pytest.fail("called")) is None


def test_end_that_was_kept_stays_until_its_own_server_is_there(
    nobody_listens: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    for server in (nobody_listens, "http://another:4200/api"):
        note = tmp_path / "unreported" / f"{uuid4()}.json"
        note.parent.mkdir(exist_ok=True)
        note.write_text(json.dumps({"server": server, "state": {"type": "COMPLETED"}}), encoding="utf-8")
    offline.report()
    assert len(list((tmp_path / "unreported").iterdir())) == 2


def test_note_that_another_flow_has_just_told_or_that_is_damaged_holds_up_no_flow(
    nobody_listens: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    notes = tmp_path / "unreported"
    notes.mkdir()
    (notes / f"{uuid4()}.json").symlink_to("gone")  # listed, and no longer there when it is read
    damaged = ["", "[", "null", "[]", '{"server": 1}', '{"server": null, "state": {"type": "NONE"}}', "[" * 100_000]
    for content in damaged:
        (notes / f"{uuid4()}.json").write_text(content, encoding="utf-8")
    (notes / "no-uuid.json").write_text('{"server": null, "state": {"type": "COMPLETED"}}', encoding="utf-8")
    with caplog.at_level(logging.WARNING, "secateur"):
        offline.report()
    assert caplog.text.count("can't be read") == len(damaged) + 1


def test_no_server_is_never_away() -> None:
    with temporary_settings(restore_defaults={PREFECT_API_URL}):
        assert not offline.is_away()
