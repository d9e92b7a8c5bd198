from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict

from pruning.errors import WorkspaceError
from pruning.io.files import read_json
from pruning.plan.plan import Plan


class Form(BaseModel):
    model_config = ConfigDict(extra="forbid")

    count: int
    share: float = 0.0
    widths: tuple[int, ...] = ()


GOOD = '{"count": 3, "share": 1, "widths": [1, 2]}'


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "no JSON: Expecting value in line 1, column 1"),
        (GOOD.encode()[:-5], "no JSON"),
        (b"\xff\xfe" + GOOD.encode(), "no UTF-8 text"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"count": ' + b"[" * 400 + b"]" * 400 + b"}", "recursion limit exceeded"),
        (b"null", "found None"),
        (b"[3]", "found [3]"),
        (b'"3"', "found '3'"),
        (b'{"count": true}', "count: input should be a valid integer, found True"),
        (b'{"count": "3"}', "count: input should be a valid integer, found '3'"),
        (b'{"count": 3.0}', "count: "),
        (b'{"count": 3, "widths": [1, true]}', "widths[1]: "),
        (b'{"count": 3, "widths": null}', "widths: "),
        (b'{"count": 1' + b"0" * 5000 + b"}", "more than 64 bits"),
        (b'{"count": 9223372036854775808}', "more than 64 bits"),
        (b'{"count": 3, "share": NaN}', "NaN is no finite number"),
        (b'{"count": 3, "share": -Infinity}', "-Infinity is no finite number"),
        (b'{"count": 3, "share": 1e999}', "1e999 is no finite number"),
        (b'{"count": 3, "count": 4}', "'count' stands twice"),
        (b'{"count": 3, "more": 1}', "more: "),
        (b'{"share": "' + b"x" * 1000 + b'"}', "(and 1 more)"),
    ],
)
def test_what_is_wrong_is_one_message(content: bytes, says: str, tmp_path: Path) -> None:
    path = tmp_path / "some.json"
    path.write_bytes(content)
    with pytest.raises(WorkspaceError) as caught:
        read_json(path, Form, error=WorkspaceError, mend="make it anew")
    text = str(caught.value)
    assert says in text
    assert text.startswith(f"{path} is damaged: ")
    assert text.endswith("; make it anew")
    assert "\n" not in text
    assert "pydantic" not in text
    assert len(text) < 400


def test_what_is_right_is_read(tmp_path: Path) -> None:
    path = tmp_path / "some.json"
    path.write_text(GOOD, encoding="utf-8")
    assert read_json(path, Form, error=WorkspaceError, mend="") == Form(count=3, share=1.0, widths=(1, 2))
    assert read_json(path, dict[str, Any], error=WorkspaceError, mend="")["share"] == 1
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "absent.json", Form, error=WorkspaceError, mend="")


@pytest.mark.parametrize("kind", ["folder", "pipe", "device"])
def test_only_files_are_read(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "some.json"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    with pytest.raises(WorkspaceError, match="is no file"):
        read_json(path, Form, error=WorkspaceError, mend="make it anew")


def test_true_is_no_number_of_a_channel(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text('{"removed": {"a": [true]}, "sizes": {"a": 4}}', encoding="utf-8")
    with pytest.raises(WorkspaceError, match=r"removed\.a\[0\]: input should be a valid integer, found True"):
        read_json(path, Plan, error=WorkspaceError, mend="")
