"""The stage `quantize`, and what benchmark and report make of it, on a small project that has been exported."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import onnx
import pytest
from torch import ones

from pruning.errors import ExportError, SettingsError
from pruning.metrics import ACCURACY
from tasks import data
from tasks.intervals import compare_pairs
from tasks.quantization import FILE, FOLDER, ONNX, REASONS, Quantization, Reason, read_quantization
from tasks.reporting.quantized import reasons_against
from tasks.stages import benchmark
from tasks.stages import quantize as stage
from tasks.workspace import Workspace
from tests.shop import Shop
from tests.tasks.reporting.test_tables import row


@pytest.fixture
def project(finished_project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shop:
    """A copy of the finished project, in which nothing was quantised."""
    root = tmp_path / "project"
    shutil.copytree(finished_project, root)
    monkeypatch.chdir(root)
    return Shop(root, Workspace(Path("artifacts")))


def quantized(project: Shop, **chosen: Any) -> Quantization:
    project.change(lambda settings: settings.update(quantize=chosen))
    stage.quantize(project.settings, project.workspace)
    project.seal("quantize")
    found = read_quantization(project.workspace)
    assert found is not None
    return found


def files(project: Shop) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in project.workspace.folder(FOLDER).iterdir()}


def test_without_a_profile_nothing_is_written_but_that(project: Shop) -> None:
    assert read_quantization(project.workspace) is None
    assert set(files(project)) == {FILE, "stage.json"}


def test_the_file_and_how_it_compares(project: Shop) -> None:
    found = quantized(project, profile="cpu")
    assert (found.profile, found.reduce_range, found.calibrator) == ("cpu", True, "minmax")
    assert not found.faults(ACCURACY)
    assert found.size_bytes == len(files(project)[ONNX])
    assert found.num_layers == 3
    assert not found.left
    assert found.num_samples == data.read_description(project.workspace).num_samples["validation"]
    assert found.outputs["output"].snr_db > 25
    assert {node.op_type for node in onnx.load_from_string(files(project)[ONNX]).graph.node} >= {"QuantizeLinear"}


def test_the_same_bytes_again_and_others_with_another_profile(project: Shop) -> None:
    quantized(project, profile="cpu")
    before = files(project)
    stage.quantize(project.settings, project.workspace)
    project.seal("quantize")
    assert files(project) == before
    quantized(project, profile="cpu_vnni")
    assert files(project)[ONNX] != before[ONNX]


def test_no_test_sample_is_read(project: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    for name in ("read_split", "read_inputs"):
        whole: Callable[..., Any] = getattr(stage, name)

        def watched(settings: Any, workspace: Any, split: Any, whole: Callable[..., Any] = whole) -> Any:
            read.append(split)
            return whole(settings, workspace, split)

        monkeypatch.setattr(stage, name, watched)
    quantized(project, profile="cpu", calibration_samples=20)
    assert sorted(read) == ["train", "validation"]


def test_what_the_user_names_stays_in_float(project: Shop) -> None:
    found = quantized(project, profile="cpu", ignore=["8"])
    assert found.left_because("ignored") == ("8",)
    model = onnx.load_from_string(files(project)[ONNX])
    assert "8.weight" in {one.name for one in model.graph.initializer}


def test_a_name_that_is_no_layer_is_refused_with_those_that_are(project: Shop) -> None:
    with pytest.raises(SettingsError, match=r"quantize\.ignore names 'conv1', which is no layer.*0, 3, 8"):
        quantized(project, profile="cpu", ignore=["conv1"])


def test_a_profile_that_suits_nothing_is_refused(project: Shop) -> None:
    with pytest.raises(ExportError, match="profile dynamic quantises layers of the operators Gemm, MatMul"):
        quantized(project, profile="dynamic", ignore=["8"])


@pytest.mark.parametrize("profile", ["dynamic", "fp16", "bf16", "tensorrt", "cpu_vnni"])
def test_other_profiles(project: Shop, profile: str) -> None:
    found = quantized(project, profile=profile)
    assert not found.faults(ACCURACY)
    assert found.left_because("other operator") == (("0", "3") if profile == "dynamic" else ())
    assert found.outputs["output"].snr_db > 20


def test_layers_go_back_to_float_until_the_gate_is_passed(project: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gate asks for more than int8 gives, until the two worst of three layers are in float."""
    passing = stage._Gate.try_out

    def strict(gate: Any, model: Any, made: Any, num_left: int) -> Any:
        found = passing(gate, model, made, num_left)
        tried = found.tried.model_copy(update={"passed": num_left >= 2})
        return stage._Candidate(found.content, tried, found.pairs, found.differences)

    monkeypatch.setattr(stage._Gate, "try_out", strict)
    found = quantized(project, profile="cpu")
    ways = [(name, corrected) for name in ("minmax", "entropy") for corrected in (True, False)]
    assert [(one.calibrator, one.corrected) for one in found.tried][:4] == ways
    assert [one.num_left for one in found.tried] == [0, 0, 0, 0, 1, 2]
    noise = list(found.noise.items())
    assert len(noise) == 3
    assert found.left_because("accuracy") == tuple(name for name, _ in sorted(noise, key=lambda one: one[1])[:2])
    float_weights = {one.name for one in onnx.load_from_string(files(project)[ONNX]).graph.initializer}
    assert {f"{name}.weight" for name in found.left_because("accuracy")} <= float_weights


def test_a_gate_that_nothing_passes_is_said_and_the_file_written(
    project: Shop, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "gate_faults", lambda *_: ["agreement 98.00%, expected at least 99.00%"])
    found = quantized(project, profile="cpu")
    assert not any(one.passed for one in found.tried)
    assert ONNX in files(project)
    assert not found.left_because("accuracy")


def test_all_of_it_is_in_the_report(project: Shop) -> None:
    project.change(lambda settings: settings.update(quantize={"profile": "cpu"}))
    project.run()
    summary = json.loads((project.workspace.folder("report") / "summary.json").read_text(encoding="utf-8"))
    assert summary["quantized"]["pairs"]["num_samples"] == summary["test_samples"]
    latencies = benchmark.read_quantized_latencies(project.workspace)
    assert [(one["model"], other["model"], other["batch_size"]) for one, other in latencies] == [
        ("dense", "quantized", 1),
        ("dense", "quantized", 4),
    ]
    page = (project.workspace.folder("report") / "report.html").read_text(encoding="utf-8")
    assert "<h2>Quantised</h2>" in page
    assert "every layer is quantised" in page
    assert "size of the file" in page


def compared(**changed: Any) -> Quantization:
    plain: dict[str, Any] = {
        "profile": "cpu",
        "types": "",
        "reduce_range": True,
        "calibrator": "minmax",
        "corrected": True,
        "num_calibration_samples": 8,
        "num_layers": 3,
        "left": (),
        "tried": (),
        "float_bytes": 100,
        "size_bytes": 30,
        "float_score": 0.9,
        "score": 0.9,
        "limit": 0.897,
        "pairs": compare_pairs(ones(100), ones(100)),
        "agreement": 1.0,
        "min_agreement": 0.99,
        "num_samples": 100,
        "outputs": {},
    }
    return Quantization(**{**plain, **changed})


def test_what_is_slower_here_isnt_to_be_shipped() -> None:
    slower = [(row("dense", 1.0), row("quantized", 1.5))]
    assert reasons_against(compared(), slower, ACCURACY) == [
        "is slower on this machine at batch size 1 (1.50 × the time)"
    ]
    assert not reasons_against(compared(), [(row("dense", 1.0), row("quantized", 0.6))], ACCURACY)
    assert not reasons_against(compared(), [(row("dense", 1.0), row("quantized", 1.05))], ACCURACY), "noise"


@pytest.mark.parametrize(
    ("changed", "fault"),
    [
        ({"score": 0.89}, "accuracy 89.00%, expected at least 89.70%"),
        ({"agreement": 0.98}, "agreement 98.00%, expected at least 99.00%"),
    ],
)
def test_what_fails_the_gate_isnt_to_be_shipped(changed: dict[str, float], fault: str) -> None:
    (found,) = reasons_against(compared(**changed), [], ACCURACY)
    assert fault in found


def test_every_reason_is_explained() -> None:
    assert set(REASONS) == set(get_args(Reason))
