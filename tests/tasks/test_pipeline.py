"""All stages on a small project, in one process, through the functions that DVC's commands call."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch

import pruning
from pruning.allocation.sensitivity import Sensitivity
from pruning.errors import VerificationError
from pruning.metrics import ACCURACY
from pruning.plan.narrow import expand
from tasks.config.schema import Settings, load
from tasks.data import read_description, read_split
from tasks.fingerprint import fingerprint, trajectory_fingerprint
from tasks.loop.ledger import read_ledger
from tasks.loop.loop import Loop, describe, prune
from tasks.loop.measurements import read_curves
from tasks.models import example_inputs, load_model, make_factory, size_bytes
from tasks.reporting import report
from tasks.reporting.tables import as_markdown, as_text, compare, compare_latency
from tasks.stage_table import NAMES, body_of, find_stage
from tasks.stages import transform
from tasks.workspace import Workspace, is_current, seal

BEFORE_THE_LOOP = NAMES[: NAMES.index("prune")]

WILD = {"name": "wild", "epochs": 2, "learning_rate": 1000.0, "weight_decay": 1000.0, "batch_size": 32}
"""A recipe that diverges."""


class _InterruptedError(Exception):
    """Ends the loop in mid-run, as a kill would."""


@dataclass(frozen=True)
class Project:
    root: Path
    settings: Settings
    workspace: Workspace

    def run(self, name: str) -> None:
        body_of(name)(self.settings, self.workspace)
        stage = find_stage(name)
        seal(self.workspace.folder(stage.folder), fingerprint(stage, self.settings, self.workspace))

    def prune(self, most: int = 99) -> None:
        """Run the loop, which is interrupted after so many attempts."""

        def watch(loop: Loop, _row: object) -> None:
            if len(loop.ledger.rows) == most:
                raise _InterruptedError

        with suppress(_InterruptedError):
            prune(self.settings, self.workspace, watch=watch)

    def bytes_of(self, name: str) -> dict[str, bytes]:
        folder = self.workspace.folder(name)
        return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    def json(self, folder: str, name: str) -> Any:
        return json.loads((self.workspace.folder(folder) / name).read_text(encoding="utf-8"))


def make(root: Path, writer: Callable[..., Path], change: Callable[[dict[str, Any]], object] | None = None) -> Project:
    return Project(root, load(writer(root, change)), Workspace(Path("artifacts")))


def made(
    root: Path,
    writer: Callable[..., Path],
    names: Iterable[str] = NAMES,
    change: Callable[[dict[str, Any]], object] | None = None,
) -> Project:
    """Make a project and run these of its stages; the working directory is the same afterwards."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        project = make(root, writer, change)
        for name in names:
            project.run(name)
    return project


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, project_writer: Callable[..., Path]) -> Project:
    return made(tmp_path_factory.mktemp("finished"), project_writer)


@pytest.fixture
def inside(finished: Project, monkeypatch: pytest.MonkeyPatch) -> Project:
    """The finished project as the current folder; it is not to be changed."""
    monkeypatch.chdir(finished.root)
    return finished


@pytest.fixture
def copied(finished: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of its folder as the current folder, to be changed."""
    shutil.copytree(finished.root, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_summary_has_the_agreed_keys_and_says_what_the_files_say(inside: Project) -> None:
    summary = inside.json("report", "summary.json")
    assert set(summary) == {
        *("measure", "higher_is_better", "is_share"),
        *("test_samples", "kind", "baseline", "dense", "mac_reduction", "parameter_reduction"),
        *("score_drop", "pairs", "per_class", "validation", "floor", "parity", "proven"),
        *("attempts", "accepted", "stopped_because"),
    }
    data, example = read_description(inside.workspace), example_inputs(inside.workspace, inside.settings)
    for name in ("baseline", "dense"):
        model, _, _ = load_model(inside.workspace.folder(name), inside.settings, data, example)
        found = summary[name]
        assert set(found) == {"score", "score_interval", "macs", "parameters", "size_bytes"}
        assert found["macs"] == pruning.count_macs(pruning.find_groups(model, example))
        assert found["parameters"] == sum(parameter.numel() for parameter in model.parameters())
        assert found["size_bytes"] == size_bytes(model)
        test = read_split(inside.settings, inside.workspace, "test").loaded()
        hits = (model(test.inputs).argmax(1) == test.targets).float().mean().item()
        assert found["score"] == pytest.approx(hits)
        for label, of_class in enumerate(data.classes):
            here = test.targets == label
            right = (model(test.inputs[here]).argmax(1) == label).float().mean().item()
            assert summary["per_class"][of_class][name == "dense"] == pytest.approx(right)
    assert summary["mac_reduction"] == pytest.approx(1 - summary["dense"]["macs"] / summary["baseline"]["macs"])
    assert summary["mac_reduction"] >= 0.6
    assert summary["stopped_because"] == "target reached"
    ledger = read_ledger(inside.workspace.folder("iterations"))
    assert (summary["attempts"], summary["accepted"]) == (len(ledger.rows), len(ledger.accepted))
    differences = ("dense_vs_masked", "onnx_vs_torch")
    assert set(summary["parity"]) == {*differences, "onnx_close", "num_samples"}
    assert (summary["parity"]["onnx_close"], summary["parity"]["num_samples"]) == (
        1.0,
        len(read_split(inside.settings, inside.workspace, "validation")),
    )
    assert summary["proven"] is True
    assert all(0 <= summary["parity"][name] < 1e-4 for name in differences)


def test_dense_model_is_the_factory_model_narrowed_by_the_plan(inside: Project) -> None:
    data, example = read_description(inside.workspace), example_inputs(inside.workspace, inside.settings)
    dense, plan, _ = load_model(inside.workspace.folder("dense"), inside.settings, data, example)
    whole = pruning.find_groups(make_factory(inside.settings, data)(), example)
    assert pruning.count_macs(whole, plan) == pruning.count_macs(pruning.find_groups(dense, example))
    inputs = read_split(inside.settings, inside.workspace, "validation").loaded().inputs
    masked = pruning.apply_masks(expand(dense, plan, whole), plan, groups=whole).eval()
    assert [p.shape for p in masked.parameters()] == [p.shape for p in whole.model.parameters()]
    torch.testing.assert_close(masked(inputs), dense(inputs), rtol=1e-4, atol=1e-5)
    narrowed = pruning.narrow(masked, plan, example)
    for name, tensor in dense.state_dict().items():
        assert torch.equal(narrowed.state_dict()[name], tensor), name


def test_dense_model_that_differs_from_the_masked_one_is_refused(copied: Path, finished: Project) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transform, "TOLERANCE", 0.0)
        with pytest.raises(VerificationError, match="differs from the masked one"):
            transform.transform(finished.settings, finished.workspace)


def test_onnx_file_takes_any_batch_and_agrees(inside: Project) -> None:
    data, example = read_description(inside.workspace), example_inputs(inside.workspace, inside.settings)
    dense, _, _ = load_model(inside.workspace.folder("dense"), inside.settings, data, example)
    session = onnxruntime.InferenceSession(str(inside.workspace.folder("onnx") / "model.onnx"))
    inputs = read_split(inside.settings, inside.workspace, "test").loaded().inputs
    for count in (1, 3, 7):
        (found,) = session.run(None, {session.get_inputs()[0].name: inputs[:count].numpy()})
        torch.testing.assert_close(torch.from_numpy(found), dense(inputs[:count]), rtol=1e-4, atol=1e-5)


def test_ledger_names_checkpoints_that_are_there_and_recipes_that_were_tried(inside: Project) -> None:
    ledger = read_ledger(inside.workspace.folder("iterations"))
    assert [row.attempt for row in ledger.rows] == list(range(len(ledger.rows)))
    for row in ledger.rows:
        assert set(row.recipes) == {"distil", "plain"}
        assert row.measured is not None
        assert row.measured.score == max(row.recipes.values())
        assert row.reached == pytest.approx(1 - row.measured.macs / ledger.baseline.macs)
        assert row.goal <= row.reached + 1e-12
    for row in ledger.accepted:
        assert row.checkpoint is not None
        meta = inside.json("iterations", f"{row.checkpoint}/meta.json")
        assert meta["weights_sha256"] == row.weights_sha256


def test_outputs_that_others_read_hold_no_time_and_no_place(inside: Project) -> None:
    for name in ("data", "baseline", "analysis", "iterations", "dense", "onnx", "report"):
        for path, content in inside.bytes_of(name).items():
            assert str(inside.root).encode() not in content, f"{name}/{path}"


def test_report_holds_pictures_figures_and_nothing_from_outside(inside: Project) -> None:
    page = (inside.workspace.folder("report") / "report.html").read_text(encoding="utf-8")
    page, pictures = re.subn(r"data:image/\w+;base64,[^\"]+", "", page)
    assert page.count("<svg") == len(report.PICTURES) + pictures
    assert len(report.PICTURES) == 4
    assert page.count('class="sample"') == pictures == 8
    assert page.index("Ready to ship") < page.index("Gained and lost"), "the verdict comes first"
    assert not re.search(r"\b(dense|masked|goal)\b", page.partition("<body>")[2].partition("Words on this page")[0])
    assert "http" not in page.replace("http-equiv", "")
    summary = inside.json("report", "summary.json")
    assert f"{summary['dense']['macs']:,}" in page
    assert "latency, batch 4" in page
    for name in report.PICTURES:
        assert (inside.workspace.folder("report") / name).stat().st_size > 5000


def test_comparison_shows_accuracy_size_macs_and_latency_together(inside: Project) -> None:
    lines = [*compare(inside.json("report", "summary.json")), *compare_latency(inside.workspace)]
    quantities = [line.quantity for line in lines]
    expected = ["accuracy (test)", "size", "MACs", "parameters", "latency, batch 1", "latency, batch 4"]
    assert quantities == expected
    assert max(map(len, as_text(lines).splitlines())) <= 80
    assert as_markdown(lines).count("\n") == len(lines) + 1


def test_curves_cover_every_group_at_every_rate(inside: Project) -> None:
    data, example = read_description(inside.workspace), example_inputs(inside.workspace, inside.settings)
    model, _, _ = load_model(inside.workspace.folder("baseline"), inside.settings, data, example)
    curves = read_curves(inside.workspace)
    assert [curve.group for curve in curves] == [group.name for group in pruning.find_groups(model, example)]
    assert all([point.rate for point in curve.points] == [0.3, 0.6] for curve in curves)
    rows = (inside.workspace.folder("analysis") / "curves.csv").read_text(encoding="utf-8").splitlines()
    assert len(rows) == 1 + sum(len(curve.points) for curve in curves)


def test_analysis_takes_over_what_a_killed_run_had_measured(
    copied: Path, finished: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = finished.bytes_of("analysis")
    shutil.rmtree("artifacts/analysis")
    measured: list[str] = []
    whole = Sensitivity.curve

    def killed_in_the_second(self: Sensitivity, name: str) -> Any:
        if measured:
            raise KeyboardInterrupt
        measured.append(name)
        return whole(self, name)

    monkeypatch.setattr(Sensitivity, "curve", killed_in_the_second)
    with pytest.raises(KeyboardInterrupt):
        finished.run("analyze")

    def counted(self: Sensitivity, name: str) -> Any:
        measured.append(name)
        return whole(self, name)

    monkeypatch.setattr(Sensitivity, "curve", counted)
    finished.run("analyze")
    assert len(measured) == len(set(measured)) == len(read_curves(finished.workspace))
    assert finished.bytes_of("analysis") == written


def test_loop_that_was_interrupted_writes_what_an_uninterrupted_one_writes(copied: Path, finished: Project) -> None:
    written = finished.bytes_of("iterations")
    shutil.rmtree("artifacts/iterations")
    finished.prune(most=1)
    assert not Path("artifacts/iterations/outcome.json").exists()
    assert len(read_ledger(Path("artifacts/iterations")).rows) == 1
    finished.run("prune")
    assert finished.bytes_of("iterations") == written


def test_longer_loop_continues_the_shorter_one(
    copied: Path, finished: Project, project_writer: Callable[..., Path]
) -> None:
    first = Path("artifacts/iterations/01/weights.safetensors")
    short = make(copied, project_writer, lambda s: s["prune"].update(max_attempts=1))
    assert trajectory_fingerprint(short.settings, short.workspace) == trajectory_fingerprint(
        finished.settings, finished.workspace
    )
    short.run("prune")
    assert json.loads(Path("artifacts/iterations/outcome.json").read_text())["stopped_because"] == "attempts used up"
    stamp = first.stat().st_mtime_ns
    finished.run("prune")
    assert first.stat().st_mtime_ns == stamp
    assert len(read_ledger(Path("artifacts/iterations")).accepted) > 1


@pytest.mark.parametrize(
    "change",
    [
        lambda s: s["prune"].update(criterion="l1_norm"),
        lambda s: s["prune"]["recipes"][0].update(epochs=3),
        lambda s: s["run"].update(seed=1),
        lambda s: s["model"].update(kwargs={"width": 8}),
    ],
)
def test_setting_that_shapes_the_trajectory_changes_its_fingerprint(
    copied: Path, finished: Project, project_writer: Callable[..., Path], change: Callable[[dict[str, Any]], object]
) -> None:
    other = make(copied, project_writer, change)
    assert trajectory_fingerprint(other.settings, other.workspace) != trajectory_fingerprint(
        finished.settings, finished.workspace
    )


def test_own_code_that_changes_makes_its_stages_run_again(copied: Path, finished: Project) -> None:
    def stale() -> list[str]:
        names = ("prepare", "baseline", "benchmark")
        found = {name: fingerprint(find_stage(name), finished.settings, finished.workspace) for name in names}
        return [
            name for name in names if not is_current(finished.workspace.folder(find_stage(name).folder), found[name])
        ]

    assert stale() == []
    Path("beside.py").write_text("# nothing names this file\n", encoding="utf-8")
    with Path("own_project.py").open("a", encoding="utf-8") as source:
        source.write("\n# another line\n")
    assert stale() == []
    with Path("own_project.py").open("a", encoding="utf-8") as source:
        source.write("\nANOTHER = 1\n")
    assert stale() == ["prepare", "baseline", "benchmark"]


def test_greedy_first_step_is_undone_and_halved_until_a_model_is_inside_the_floor(
    copied: Path, project_writer: Callable[..., Path]
) -> None:
    def greedy(settings: dict[str, Any]) -> None:
        settings["prune"].update(
            target={"mac_reduction": 0.98}, first_step=0.95, max_accuracy_drop=0.02, max_attempts=6, min_channels=1
        )
        settings["prune"]["recipes"] = settings["prune"]["recipes"][:1]

    project = make(copied, project_writer, greedy)
    project.run("prune")
    rows = read_ledger(Path("artifacts/iterations")).rows
    assert not rows[0].accepted
    assert rows[0].goal == pytest.approx(0.95)
    assert rows[1].goal == pytest.approx(0.95 / 2)
    outcome = json.loads(Path("artifacts/iterations/outcome.json").read_text())
    accepted = [row for row in rows if row.accepted and row.measured]
    assert accepted, "no attempt was accepted"
    assert all(row.measured.score >= outcome["floor"] - 1e-9 for row in accepted if row.measured)
    assert outcome["checkpoint"] == accepted[-1].checkpoint
    assert outcome["stopped_because"] in ("smallest step reached", "attempts used up")


def test_size_in_bytes_is_a_target_too(copied: Path, finished: Project, project_writer: Callable[..., Path]) -> None:
    whole = read_ledger(Path("artifacts/iterations")).baseline.size_bytes
    project = make(copied, project_writer, lambda s: s["prune"].update(target={"size_bytes": whole // 2}, iterations=1))
    project.run("prune")
    last = read_ledger(Path("artifacts/iterations")).accepted[-1].measured
    assert last is not None
    assert 0.9 * whole / 2 <= last.size_bytes <= whole / 2


def test_limits_give_way_to_a_target_and_the_report_says_which(
    copied: Path, finished: Project, project_writer: Callable[..., Path]
) -> None:
    def tight(settings: dict[str, Any]) -> None:
        settings["prune"].update(target={"mac_reduction": 0.8}, iterations=1, max_group_rate=0.4, min_channels=8)
        settings["prune"].update(max_accuracy_drop=0.99, recipes=[])

    project = make(copied, project_writer, tight)
    for name in ("prune", "transform", "export", "quantize", "benchmark", "report"):
        project.run(name)
    (row,) = read_ledger(Path("artifacts/iterations")).rows
    assert row.accepted
    assert row.reached >= 0.8
    assert row.relaxed == "max_group_rate 0.85 and min_channels 8"
    assert f"planned within {row.relaxed}" in Path("artifacts/report/report.html").read_text(encoding="utf-8")

    def strict(settings: dict[str, Any]) -> None:
        tight(settings)
        settings["prune"].update(relaxed_limits=[], max_attempts=1)

    make(copied, project_writer, strict).run("prune")
    (row,) = read_ledger(Path("artifacts/iterations")).rows
    assert row.refused is not None
    assert "is the least" in row.refused


def test_a_recipe_that_diverges_has_lost_and_the_others_go_on(
    copied: Path, finished: Project, project_writer: Callable[..., Path]
) -> None:
    def diverging(settings: dict[str, Any]) -> None:
        settings["prune"]["iterations"] = 1
        settings["prune"]["recipes"][0] = WILD

    make(copied, project_writer, diverging).run("prune")
    rows = read_ledger(Path("artifacts/iterations")).rows
    assert rows[0].recipe == "plain"
    assert list(rows[0].recipes) == ["plain"]
    assert list(rows[0].failed) == ["wild"]
    assert "the loss became" in rows[0].failed["wild"]


def test_training_that_only_harms_is_undone_and_the_report_says_so(
    copied: Path, finished: Project, project_writer: Callable[..., Path]
) -> None:
    def harmful(settings: dict[str, Any]) -> None:
        settings["prune"].update(iterations=1, max_attempts=1, max_accuracy_drop=0.9, undo_training=True)
        settings["prune"]["recipes"] = [
            {"name": "harsh", "epochs": 2, "learning_rate": 20.0, "schedule": "constant", "batch_size": 32}
        ]

    project = make(copied, project_writer, harmful)
    for name in NAMES[NAMES.index("prune") :]:
        project.run(name)
    row = read_ledger(Path("artifacts/iterations")).rows[0]
    assert row.kept_epochs == {"harsh": 0}

    assert "harsh: all epochs were undone" in Path("artifacts/report/report.html").read_text(encoding="utf-8")

    def bare(settings: dict[str, Any]) -> None:
        harmful(settings)
        settings["prune"]["recipes"] = []

    make(copied, project_writer, bare).run("prune")
    other = read_ledger(Path("artifacts/iterations")).rows[0]
    assert (row.measured, row.weights_sha256) == (other.measured, other.weights_sha256)


def test_an_attempt_whose_recipes_all_diverge_is_no_missing_plan_but_a_failed_training(
    copied: Path, finished: Project, project_writer: Callable[..., Path]
) -> None:
    def diverging(settings: dict[str, Any]) -> None:
        settings["prune"].update(iterations=1, max_attempts=1)
        settings["prune"]["recipes"] = [WILD]

    make(copied, project_writer, diverging).run("prune")
    row = read_ledger(Path("artifacts/iterations")).rows[0]
    assert (row.accepted, row.refused, row.verdict) == (False, None, "training failed")
    assert re.fullmatch(
        r"attempt 1: goal 60.0%, training failed: wild: .*the loss became (nan|inf).*", describe(row, ACCURACY)
    )
