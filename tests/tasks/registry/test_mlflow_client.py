"""MLflow's store when something is wrong with it: one message that says what, and never a password."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable
from errno import ENOSPC
from pathlib import Path
from typing import Any

import pytest

from pruning.errors import SettingsError, WorkspaceError
from tasks.config.schema import Settings, Tracking, load
from tasks.registry import decisions, mlflow_client, mlflow_models, mlflow_runs
from tasks.registry.mlflow_models import Version
from tests.conftest import Change

WriteParams = Callable[[Change | None], Path]


def settings_with(write_params: WriteParams, **changed: str) -> Settings:
    return load(write_params(lambda settings: settings["tracking"].update(changed)))


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("http://user:s3cret@host:5000/path", "http://user:***@host:5000/path"),
        ("postgresql://user:s3cret@host/db?sslmode=require", "postgresql://user:***@host/db?sslmode=require"),
        ("postgresql://host/db?user=u&password=s3cret", "postgresql://host/db?user=u&password=***"),
        ("postgresql+psycopg://u:s3cret%40x@host/db", "postgresql+psycopg://u:***@host/db"),
        ("mysql://u:s3cret@x@host/db", "mysql://u:***@host/db"),
        ("sqlite:///mlflow.db", "sqlite:///mlflow.db"),
        ("http://host:5000", "http://host:5000"),
    ],
)
def test_address_is_shown_without_its_password(uri: str, shown: str) -> None:
    assert mlflow_client.shown(uri) == shown
    for secret in mlflow_client.secrets_in(uri):
        assert "s3cret" not in mlflow_client.without_secrets(f"can't open {uri}: {secret!r} is wrong", uri)


@pytest.mark.parametrize(
    "uri",
    [
        "http://user:s3cret@127.0.0.1:9/",
        "postgresql://user:s3cret@127.0.0.1:9/db",
        "mysql+pymysql://user:s3cret@127.0.0.1:9/db",
        "nosuchdatabase://user:s3cret@host/db",
        "mssql+pyodbc://user:s3cret@host/db",
    ],
)
def test_store_that_cannot_be_reached_is_one_message_without_the_password(uri: str, write_params: WriteParams) -> None:
    settings = settings_with(write_params, uri=uri)
    with pytest.raises(WorkspaceError) as caught:
        mlflow_models.versions(settings)
    text = str(caught.value)
    assert mlflow_client.shown(uri) in text
    assert "s3cret" not in text
    assert "\n" not in text


def test_missing_driver_is_named(write_params: WriteParams) -> None:
    settings = settings_with(write_params, uri="mysql+oursql://user:s3cret@host/db")
    with pytest.raises(WorkspaceError, match=r"oursql.*isn't installed; install it|oursql"):
        mlflow_models.versions(settings)
    message = "needs absent_driver, which isn't installed; install it"
    with pytest.raises(WorkspaceError, match=message), mlflow_client.store_faults(settings):
        __import__("absent_driver")


def test_full_disk_is_not_blamed_on_the_store(write_params: WriteParams) -> None:
    settings = settings_with(write_params)
    with pytest.raises(OSError, match="No space left") as caught, mlflow_client.store_faults(settings):
        Path("/dev/full").write_bytes(b"x" * 10_000)
    assert caught.value.errno == ENOSPC
    with pytest.raises(WorkspaceError, match="can't be used"), mlflow_client.store_faults(settings):
        Path("absent").read_bytes()


def test_lost_store_is_no_empty_one(write_params: WriteParams, caplog: pytest.LogCaptureFixture) -> None:
    settings = settings_with(write_params)
    Path("promotions.jsonl").write_text("{}\n", encoding="utf-8")
    for content in (None, b""):
        if content is not None:
            Path("mlflow.db").write_bytes(content)
        with pytest.raises(WorkspaceError, match=r"mlflow.db isn't there, though promotions.jsonl records decisions"):
            mlflow_models.versions(settings)
    Path("promotions.jsonl").unlink()
    Path("mlflow.db").unlink()
    Path("dvc.lock").write_text("schema: '2.0'\n", encoding="utf-8")  # the first run of a clone writes it before
    with caplog.at_level(logging.WARNING, logger="secateur"):
        mlflow_client.refuse_loss(Path("mlflow.db"))
        assert caplog.text == ""
        Path("mlartifacts/tests").mkdir(parents=True)
        assert mlflow_models.versions(settings) == []
    assert "though mlartifacts/ holds files of its runs" in caplog.text


@pytest.mark.parametrize("content", [b"x" * 5000, b"SQLite format 3\0" + b"\xff" * 5000])
def test_damaged_database_is_one_message(content: bytes, write_params: WriteParams) -> None:
    settings = settings_with(write_params)
    Path("mlflow.db").write_bytes(content)
    with pytest.raises(WorkspaceError, match=r"MLflow's store .*mlflow.db can't be used"):
        mlflow_models.versions(settings)


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "no JSON",
            "null",
            "[]",
            "3",
            '"text"',
            "[" * 5000,
            '{"decision": "promoted"}',
            '{"run": true, "case": 1}',
        ),
        *('{"run": "a run", "case": null}', '{"time": {}, "decision": [], "model": 1, "version": 2, "instead_of": 3}'),
    ],
)
def test_malformed_tag_counts_as_none_and_that_is_said(text: str, caplog: pytest.LogCaptureFixture) -> None:
    version = Version("3", "run", {decisions.TAG: text})
    with caplog.at_level(logging.WARNING, logger="secateur"):
        assert decisions.about(version) is None
    (said,) = caplog.messages
    assert said.startswith("version 3: its tag secateur.decision is malformed")
    assert "pydantic" not in said


def test_tag_of_another_version_counts_as_none(caplog: pytest.LogCaptureFixture) -> None:
    made = decisions.Decision(time="", decision="promoted", model="m", version="1", instead_of=None)
    assert decisions.about(Version("1", "run", {decisions.TAG: made.line})) == made
    with caplog.at_level(logging.WARNING, logger="secateur"):
        assert decisions.about(Version("2", "run", {decisions.TAG: made.line})) is None
    assert "is about version 1" in caplog.text


@pytest.mark.parametrize("name", ["a/b", "a:b", "a'b", 'a"b', "", " a", "a\n", "-a", "a\0", "x" * 201, "a`b", "a%b"])
def test_name_that_mlflow_refuses_is_refused_at_once(name: str, write_params: WriteParams) -> None:
    for setting in ("model_name", "experiment"):
        with pytest.raises(SettingsError, match=f"tracking.{setting}: "):
            settings_with(write_params, **{setting: name})


@pytest.mark.parametrize("name", ["pruned", "ResNet 20", "a.b-c_d+e", "größer", "7"])
def test_other_names_are_taken(name: str) -> None:
    assert Tracking(model_name=name).model_name == name


def test_every_page_is_read() -> None:
    class Page(list[int]):
        token: str | None = None

    def ask(token: str | None) -> Any:
        page = Page([int(token or 0)])
        page.token = str(page[0] + 1) if page[0] < 3 else None
        return page

    assert mlflow_client.all_pages(ask) == [0, 1, 2, 3]


def test_password_is_not_shown_by_what_goes_on_without_a_server(write_params: WriteParams) -> None:
    settings = settings_with(write_params, uri="http://user:s3cret@127.0.0.1:9/")
    with pytest.raises(WorkspaceError) as caught:
        mlflow_runs.end_early(settings, "x", mlflow_runs.KILLED)
    assert "s3cret" not in "".join(traceback.format_exception_only(caught.value))
