"""The password of Prefect's server: made once, for its owner alone."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from flows.servers import password
from pruning.errors import SettingsError
from tasks.environment import REPOSITORY


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "password"


def test_it_is_made_once_and_nobody_else_can_read_it(place: Path) -> None:
    with ThreadPoolExecutor(8) as threads:
        (found,) = set(threads.map(lambda _: password(), range(8)))
    assert found == password() == place.read_text(encoding="utf-8").strip()
    assert found.startswith("secateur:")
    assert len(found) > 40
    assert place.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in place.parent.iterdir()] == ["password"]


@pytest.mark.parametrize(
    ("content", "mode", "message"),
    [("user:secret", 0o644, "others can read"), ("", 0o600, "no password"), ("a:b\nc", 0o600, "no password")],
)
def test_file_that_cannot_be_trusted_is_one_message(place: Path, content: str, mode: int, message: str) -> None:
    place.parent.mkdir()
    place.write_text(content, encoding="utf-8")
    place.chmod(mode)
    with pytest.raises(SettingsError, match=message):
        password()


@pytest.mark.parametrize(
    ("address", "told"), [("http://127.0.0.1:4200/api", True), ("http://elsewhere:4200/api", False), ("", False)]
)
def test_servers_on_this_machine_alone_are_told(place: Path, address: str, told: bool) -> None:
    secret = password()
    code = "import os, tasks; print(os.environ.get('PREFECT_API_AUTH_STRING', ''))"
    environment = {name: value for name, value in os.environ.items() if name != "PREFECT_API_AUTH_STRING"}
    environment |= {"PYTHONPATH": str(REPOSITORY), "PREFECT_API_URL": address}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == (secret if told else "")
