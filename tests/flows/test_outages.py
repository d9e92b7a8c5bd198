"""Servers that are away: the run goes on, and what they missed is recorded by the next one."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

import flows.stages
from flows import command
from flows.compress import compress
from pruning.errors import WorkspaceError
from tasks.loop.ledger import read_ledger
from tasks.registry import mlflow_client, mlflow_models

pytestmark = pytest.mark.thorough

AT_ONCE_S = 5.0


@contextmanager
def nobody_listens() -> Iterator[str]:
    """The address of a server that has ended: the port stays taken, so that nobody else gets it."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


class Unwell(BaseHTTPRequestHandler):
    """What a proxy answers for a server that is away."""

    def do_GET(self) -> None:
        self.send_error(503)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def proxy_alone() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Unwell)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def keep_records_at(shop: Any, uri: str) -> None:
    shop.change(lambda s: s["tracking"].update(uri=uri))


def ended(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Run the whole pipeline as a command; return its exit code and what it printed."""
    capsys.readouterr()
    logging.getLogger("secateur").handlers.clear()
    try:
        command.main("compress", compress, "", [*arguments, "--no-commit"])
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    printed = capsys.readouterr()
    return code, printed.out, printed.err


@pytest.mark.parametrize(
    ("away", "said"),
    [(nobody_listens, "its server doesn't answer"), (proxy_alone, "its server answers with status 503")],
)
def test_mlflow_that_is_away_is_found_out_at_once(shop: Any, away: Any, said: str) -> None:
    with away() as address:
        keep_records_at(shop, address)
        began = time.monotonic()
        with pytest.raises(WorkspaceError, match=f"{address} can't be used: {said}"):
            mlflow_models.find(shop.settings, alias="candidate")
        assert time.monotonic() - began < AT_ONCE_S


def test_loop_goes_on_without_mlflow_and_the_next_run_records_it(
    shop: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flows.stages, "BY_DVC", False)
    there = shop.settings.tracking.uri
    with nobody_listens() as address:
        keep_records_at(shop, address)
        shop.change(lambda s: s["prune"].update(recipes=[], iterations=1, max_accuracy_drop=0.9))
        code, out, err = ended(capsys)
        assert code == command.FAULT
        assert err.count("the loop goes on without MLflow for now") == 1
        assert "the ledger holds it" in err.splitlines()[-1]
        assert "Traceback" not in err
        assert "accuracy (test)" in out
        assert "registered" not in out
    keep_records_at(shop, there)
    before = {path: path.stat().st_mtime_ns for path in Path("artifacts").rglob("*.safetensors")}
    for _ in range(2):
        code, out, _ = ended(capsys)
        assert code == 0
        assert "registered       small, version 2, alias candidate" in out
    assert before == {path: path.stat().st_mtime_ns for path in Path("artifacts").rglob("*.safetensors")}
    client = mlflow_client.open_store(there)
    run_id = mlflow_models.find(shop.settings, alias="candidate").run_id
    steps = [point.step for point in client.get_metric_history(run_id, "accepted")]
    assert steps == [row.attempt for row in read_ledger(Path("artifacts/iterations")).rows] == [0]
    assert client.get_run(run_id).info.status == "FINISHED"
