"""The registered model answers what was recorded when it was registered: loaded, and through a real server."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load as parse_safetensors

from tasks.registry import mlflow_models, trust
from tasks.registry.manifest import BATCH, NUM_ANSWERS
from tasks.registry.mlflow_client import absolute

LONGEST_START_S = 180.0


def batch(shop: Any, into: Path) -> dict[str, NDArray[np.float32]]:
    into.mkdir()
    mlflow_models.fetch_record(shop.settings, mlflow_models.find(shop.settings, alias="candidate"), into)
    return dict(parse_safetensors((into / BATCH).read_bytes()))


def test_loaded_model_gives_the_recorded_answers(shop: Any, tmp_path: Path) -> None:
    found = batch(shop, tmp_path / "record")
    assert len(found["answers"]) == NUM_ANSWERS
    version = mlflow_models.find(shop.settings, number="1")
    answers = trust.answers_of(shop.settings, version, {"input": found["inputs"]})
    np.testing.assert_allclose(answers["output"], found["answers"], rtol=1e-5, atol=1e-6)
    other = trust.answers_of(shop.settings, version, {"input": found["inputs"][::-1].copy()})
    assert np.abs(other["output"] - found["answers"]).max() > 1e-3


@pytest.mark.slow
def test_server_gives_the_recorded_answers_and_refuses_another_shape(shop: Any, tmp_path: Path) -> None:
    found = batch(shop, tmp_path / "record")
    mlflow_models.assign(shop.settings, mlflow_models.PRODUCTION, "1")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    tools = Path(sys.executable).parent
    server = subprocess.Popen(
        [
            *(str(tools / "mlflow"), "models", "serve", "--model-uri", "models:/small@production"),
            *("--env-manager", "local", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"),
        ],
        env={
            **os.environ,
            "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}",
            "MLFLOW_TRACKING_URI": absolute(shop.settings.tracking.uri),
        },
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + LONGEST_START_S
        while True:
            assert server.poll() is None, "the server ended"
            assert time.monotonic() < deadline, "the server never answered"
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=5)
                break
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                time.sleep(0.5)
        (answers,) = ask(port, found["inputs"])["predictions"].values()
        np.testing.assert_allclose(np.asarray(answers, np.float32), found["answers"], rtol=1e-5, atol=1e-6)
        with pytest.raises(urllib.error.HTTPError) as refused:
            ask(port, found["inputs"][:, :, :4])
        assert refused.value.code == 400
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def ask(port: int, inputs: NDArray[np.float32]) -> Any:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/invocations",
        json.dumps({"inputs": inputs.tolist()}).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.loads(response.read())
