"""The stage that measures what latencies are predicted from, on a network of three layers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pruning.errors import ProfileError
from pruning.latency.measure import runtime_here
from pruning.latency.runner import PROFILE
from tasks.config.schema import Settings, load
from tasks.fingerprint import fingerprint
from tasks.loop.measurements import read_profile
from tasks.stage_table import find_stage
from tasks.stages import prepare
from tasks.stages.profile import profile
from tasks.workspace import Workspace, seal

Write = Callable[[Callable[[dict[str, Any]], object] | None], Path]
WORKSPACE = Workspace(Path("artifacts"))


def begun(write_params: Write, **chosen: Any) -> Settings:
    settings = load(write_params(lambda found: found.update(profile=chosen)))
    if not WORKSPACE.folder("data").exists():
        prepare.prepare(settings, WORKSPACE)
        seal(WORKSPACE.folder("data"), fingerprint(find_stage("prepare"), settings, WORKSPACE))
    return settings


def written() -> bytes:
    return (WORKSPACE.folder("profile") / PROFILE).read_bytes()


@pytest.mark.thorough
def test_what_was_measured_stays_as_long_as_questions_and_machine_do(
    write_params: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = begun(write_params, batch_sizes=[1, 2])
    profile(settings, WORKSPACE)
    first = written()
    assert [one.runtime.batch_size for one in read_profile(WORKSPACE, "profile").profiles] == [1, 2]
    assert read_profile(WORKSPACE, "profile").profiles[0].layers[0].weight == "0.weight"
    assert (WORKSPACE.folder("profile") / "questions" / "measure.py").exists()
    profile(settings, WORKSPACE)
    assert written() == first
    there = lambda **given: runtime_here(**given).model_copy(update={"cpu": "another"})  # noqa: E731
    monkeypatch.setattr("tasks.stages.profile.runtime_here", there)
    profile(settings, WORKSPACE)
    assert written() != first


@pytest.mark.thorough
def test_profile_made_elsewhere_is_taken_as_it_is(write_params: Write) -> None:
    profile(begun(write_params, batch_sizes=[1]), WORKSPACE)
    elsewhere = Path("elsewhere.json")
    elsewhere.write_text(written().decode().replace(' cores"', ' cores, elsewhere"'), encoding="utf-8")
    settings = begun(write_params, batch_sizes=[], path=str(elsewhere))
    profile(settings, WORKSPACE)
    assert written() == elsewhere.read_bytes()
    before = fingerprint(find_stage("profile"), settings, WORKSPACE)
    elsewhere.write_text(elsewhere.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    assert fingerprint(find_stage("profile"), settings, WORKSPACE) != before
    body = json.loads(written())
    body["profiles"][0]["layers"][0]["weight"] = "stem.weight"
    elsewhere.write_text(json.dumps(body), encoding="utf-8")
    with pytest.raises(ProfileError, match=r"of another network: .* no layer stem\.weight"):
        profile(settings, WORKSPACE)
    assert written() != elsewhere.read_bytes()


def test_network_that_cannot_be_profiled_leaves_the_pipeline_without_predictions(
    write_params: Write, caplog: pytest.LogCaptureFixture
) -> None:
    settings = begun(write_params, provider="CUDAExecutionProvider")
    profile(settings, WORKSPACE)
    assert read_profile(WORKSPACE, "profile").profiles == ()
    assert "no latency can be predicted: CUDAExecutionProvider can't be profiled" in caplog.text
