"""Milliseconds as a target of the whole loop, from a profile whose times are made up: steps of 8 channels."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from pruning.errors import SettingsError
from pruning.latency.measure import Latency, runtime_here
from tasks.config.target_schema import Target
from tasks.data import read_description
from tasks.loop import loop as prune
from tasks.loop import targets
from tasks.loop.ledger import Ledger, read_ledger
from tasks.loop.measurements import latency_cost
from tasks.loop.targets import Goals, goals_of
from tasks.models import ModelMetrics, example_inputs, load_model
from tasks.reporting.tables import compare_latency
from tasks.stages import benchmark
from tests.tasks.test_pipeline import Project, made, make

pytestmark = pytest.mark.thorough

Writer = Callable[..., Path]
WHOLE = ModelMetrics(score=1, loss=0, macs=1000, parameters=500, size_bytes=2000)


def _steps(width: int) -> int:
    return -(-width // 8)


def _made_up(profile: Path, cpu: str) -> None:
    """Replace what was measured by times in steps of 8, and say where it was measured."""
    body = json.loads(profile.read_text(encoding="utf-8"))
    found = body["profiles"][0]
    total = 0.0
    for surface in found["surfaces"].values():
        surface["ms"] = [[_steps(i) * _steps(o) / 8 for o in surface["outputs"]] for i in surface["inputs"]]
        total += surface["ms"][-1][-1]
    found.update(whole_ms=total + 0.1, overhead_ms=0.1, runtime={**found["runtime"], "cpu": cpu})
    profile.write_text(json.dumps(body), encoding="utf-8")


def _settled(settings: dict[str, Any]) -> None:
    settings["prune"].update(
        target={"latency_reduction": 0.5}, round_to="auto", max_group_rate=0.75, max_accuracy_drop=0.9, iterations=2
    )
    settings["prune"]["recipes"] = settings["prune"]["recipes"][:1]
    settings["prune"]["recipes"][0]["epochs"] = 1


@pytest.fixture(scope="module")
def profiled(tmp_path_factory: pytest.TempPathFactory, project_writer: Writer) -> Path:
    """A project whose baseline is trained, analysed and profiled, and the profile as of here and of elsewhere."""
    root = tmp_path_factory.mktemp("profiled")
    names = ("prepare", "baseline", "analyze", "profile")
    made(root, project_writer, names, lambda settings: settings.update(profile={"batch_sizes": [1]}))
    for name, cpu in (("here.json", runtime_here().cpu), ("elsewhere.json", "elsewhere")):
        shutil.copyfile(root / "artifacts/profile/profile.json", root / name)
        _made_up(root / name, cpu)
    return root


@pytest.fixture
def loop(
    profiled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, project_writer: Writer
) -> Callable[..., Project]:
    shutil.copytree(profiled, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)

    def begin(profile: str, **changed: Any) -> Project:
        def change(settings: dict[str, Any]) -> None:
            _settled(settings)
            settings["profile"] = {"path": profile}
            settings["prune"].update(changed)

        project = make(tmp_path, project_writer, change)
        for name in ("analyze", "profile", "measurements", "prune"):
            project.run(name)
        return project

    return begin


def _ledger(project: Project) -> Ledger:
    return read_ledger(project.workspace.folder("iterations"))


def _widths(project: Project) -> list[int]:
    data = read_description(project.workspace)
    folder = project.workspace.folder("iterations") / str(_ledger(project).accepted[-1].checkpoint)
    example = example_inputs(project.workspace, project.settings)
    model, _, _ = load_model(folder, project.settings, data, example)
    return [len(weight) for name, weight in model.named_parameters() if weight.ndim == 4]


def test_loop_comes_down_to_a_predicted_latency_and_writes_the_same_bytes_twice(loop: Callable[..., Project]) -> None:
    project = loop("elsewhere.json")
    rows = _ledger(project).accepted
    assert rows[-1].reached >= 0.5
    assert rows[-1].predicted_ms is not None
    assert all(row.latency_ratio is None for row in rows), "a profile of another machine can't be corrected here"
    assert all(width % 8 == 0 for width in _widths(project))
    written = project.bytes_of("iterations")
    shutil.rmtree("artifacts/iterations")
    project.run("prune")
    assert project.bytes_of("iterations") == written


@pytest.mark.parametrize("by", ["sensitivity", "global"])
def test_several_targets_are_all_met(loop: Callable[..., Project], by: str) -> None:
    target = {"latency_reduction": 0.3, "mac_reduction": 0.6, "size_bytes": 16_000}
    project = loop("elsewhere.json", target=target, allocation={"strategy": by})
    ledger = _ledger(project)
    last = ledger.accepted[-1]
    assert last.measured is not None
    assert last.predicted_ms is not None
    assert last.measured.macs <= 0.4 * ledger.baseline.macs
    assert last.measured.size_bytes <= 16_000
    whole_ms = json.loads(Path("elsewhere.json").read_text(encoding="utf-8"))["profiles"][0]["whole_ms"]
    assert last.predicted_ms <= 0.7 * whole_ms
    assert last.reached == pytest.approx(prune.open_loop(project.settings, project.workspace).schedule.target, abs=0.2)


def test_measured_ratio_corrects_the_steps_that_follow(
    loop: Callable[..., Project], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Every model is made to take a fifth longer than predicted, against the baseline."""
    predicted: list[float] = []
    whole = latency_cost

    def noted(*given: Any) -> Any:
        cost = whole(*given)
        assert cost is not None
        predicted.append(cost.predict({}) / cost.profile.whole_ms)
        return cost

    def measured(files: Mapping[str, Path], **_: Any) -> tuple[Latency, ...]:
        times = {"baseline": 1.0, "model": 1.2 * predicted[-1]}
        return tuple(Latency(name, 1, times[name], times[name], times[name], 1) for name in files)

    monkeypatch.setattr(targets, "latency_cost", noted)
    monkeypatch.setattr(targets, "measure_latency", measured)
    monkeypatch.setattr(targets, "export_onnx", lambda *given, **_: given[2])
    with caplog.at_level(logging.INFO, logger="secateur"):
        rows = _ledger(loop("here.json", measure_latency=True)).accepted
    assert [row.latency_ratio for row in rows] == pytest.approx([1.2] * len(rows))
    assert rows[-1].reached >= 0.5
    assert 1.2 * predicted[-1] <= 0.5 * (1 + targets.TOLERANCE)
    assert "measured at" in caplog.text


def test_busy_machine_corrects_nothing(
    loop: Callable[..., Project], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def measured(files: Mapping[str, Path], **_: Any) -> tuple[Latency, ...]:
        return tuple(Latency(name, 1, 1.0, 0.9, 1.3, 1) for name in files)

    monkeypatch.setattr(targets, "measure_latency", measured)
    monkeypatch.setattr(targets, "export_onnx", lambda *given, **_: given[2])
    rows = _ledger(loop("here.json", iterations=1, measure_latency=True)).accepted
    assert all(row.latency_ratio is None for row in rows)
    assert rows[-1].reached >= 0.5
    assert "too busy to measure latency (quartiles 20 % off the median)" in caplog.text


def test_latency_without_a_profile_is_refused_before_anything_runs(write_params: Callable[..., Path]) -> None:
    with pytest.raises(SettingsError, match="names a latency, but there is no profile"):
        goals_of(Target(latency_reduction=0.5), WHOLE, None)


def test_goals_rise_together_and_the_one_furthest_behind_counts() -> None:
    goals = goals_of(Target(mac_reduction=0.8, latency_ms=6.0, size_bytes=1500), WHOLE, 10.0)
    assert dict(goals.asked) == pytest.approx({"mac_reduction": 0.8, "size_bytes": 0.25, "latency_ms": 0.4})
    assert goals.total == 0.8
    assert goals.at(0.4) == pytest.approx({"mac_reduction": 0.4, "size_bytes": 0.125, "latency_ms": 0.2})
    reductions = {"mac_reduction": 0.8, "size_bytes": 0.125, "latency_ms": 0.4}
    assert goals.reached(reductions) == pytest.approx(0.4)
    assert Goals({"mac_reduction": 0.7}).reached({"mac_reduction": 0.123456789}) == 0.123456789


def test_target_that_is_met_already_is_named() -> None:
    with pytest.raises(SettingsError, match=r"latency_ms is 12\.0, but the baseline takes 10 ms already"):
        goals_of(Target(latency_ms=12.0), WHOLE, 10.0)
    with pytest.raises(SettingsError, match=r"size_bytes is 2,500, but the baseline takes 2,000 bytes already"):
        goals_of(Target(size_bytes=2500), WHOLE, None)


def test_what_is_measured_within_the_tolerance_counts_as_asked() -> None:
    assert targets.LatencyEstimate(1.0, 0.5, 1.01).reduction(0.5) == 0.5
    assert targets.LatencyEstimate(1.0, 0.5, 1.1).reduction(0.5) == pytest.approx(0.45)
    assert targets.LatencyEstimate(1.0, 0.4, None).reduction(0.5) == pytest.approx(0.6)


def test_benchmark_stands_beside_the_prediction_and_warns_where_it_is_far_off(
    loop: Callable[..., Project], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    project = loop("here.json", target={"mac_reduction": 0.5}, iterations=1)
    for name in ("transform", "export", "quantize"):
        project.run(name)

    def measured(files: Mapping[str, Path], *, batch_sizes: tuple[int, ...], **_: Any) -> tuple[Latency, ...]:
        times = {"baseline": 1.0, "dense": 0.9}
        return tuple(Latency(name, size, times[name], 0.5, 1.5, 1) for size in batch_sizes for name in files)

    monkeypatch.setattr(benchmark, "measure_latency", measured)
    project.run("benchmark")
    rows = project.json("latency", "latency.json")["latencies"]
    cases = [(row["model"], row["batch_size"], row["threads"]) for row in rows[:2]]
    assert cases == [("baseline", 1, 1), ("dense", 1, 1)]
    whole_ms = json.loads(Path("here.json").read_text(encoding="utf-8"))["profiles"][0]["whole_ms"]
    assert rows[0]["predicted_ms"] == pytest.approx(whole_ms)
    assert rows[1]["predicted_ms"] < 0.7 * whole_ms
    assert rows[2]["predicted_ms"] is None, "nothing was profiled with this batch size"
    assert "the dense model takes 0.90 of the baseline's latency where 0." in caplog.text
    first, second = compare_latency(project.workspace)
    assert first.change == second.change == "1.11 × as fast"
    assert first.remark.startswith("predicted: ")
    assert "predicted" not in second.remark


def test_report_says_what_rounding_cost_and_brought(loop: Callable[..., Project]) -> None:
    project = loop("here.json", target={"mac_reduction": 0.4}, iterations=1)
    for name in ("transform", "export", "quantize", "benchmark", "report"):
        project.run(name)
    found = project.json("report", "summary.json")["rounding"]
    assert all(width % 8 == 0 for width in _widths(project))
    assert 0.4 <= found["unrounded_mac_reduction"] < found["mac_reduction"]
    assert found["predicted_ms"] < found["unrounded_ms"] < found["baseline_ms"]
    page = (project.workspace.folder("report") / "report.html").read_text(encoding="utf-8")
    assert "Widths are rounded to those that the runtime is fast at" in page
