"""Boxes from a data set to the report: whole runs with a detector that computes its own losses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch

from pruning.batches import DatasetBatches
from pruning.detection import Detection
from pruning.evaluation import evaluate
from pruning.scoring import Scorer
from tasks.data import read_description
from tasks.models import example_inputs, load_model
from tasks.quantization import read_quantization
from tasks.stage_table import NAMES
from tests import rendered
from tests.tasks.test_pipeline import Project, made

SIZES = {"train": 96, "validation": 24, "test": 25}


def project(
    tmp: Path, writer: Callable[..., Path], *, epochs: tuple[int, int], names: Any = NAMES, **sections: Any
) -> Project:
    code = Path(rendered.__file__).read_text(encoding="utf-8")
    (tmp / "shapes.py").write_text(code, encoding="utf-8")

    def change(settings: dict[str, Any]) -> None:
        settings["data"] = {"factory": "shapes:scenes", "kwargs": SIZES}
        settings["task"] = {"name": "detection"}
        settings["model"] = {"factory": "shapes:Detector", "kwargs": {}}
        recipe = {"learning_rate": 0.003, "optimizer": "adamw", "batch_size": 16}
        settings["baseline"] = {"recipe": {**recipe, "epochs": epochs[0]}}
        settings["analyze"].update(for_report=True, rates=[0.5])
        settings["prune"] = {
            "target": {"mac_reduction": 0.5},
            "iterations": 1,
            "max_attempts": 3,
            "max_drop": {"relative": 0.9},
            "recipes": [{"name": "distil", "distillation": 0.2, **recipe, "epochs": epochs[1]}],
        }
        settings["promote"]["max_drop"] = {"relative": 0.9}
        settings["benchmark"]["rounds"] = 2
        settings["quantize"] = {"profile": "cpu"}
        settings["training"] = {}
        for name, section in sections.items():
            settings[name] = {**settings.get(name, {}), **section}

    return made(tmp, writer, names, change)


@pytest.mark.thorough
def test_a_detector_runs_from_its_data_set_to_the_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, project_writer: Callable[..., Path]
) -> None:
    finished = project(tmp_path, project_writer, epochs=(6, 2))
    monkeypatch.chdir(tmp_path)
    summary = finished.json("report", "summary.json")
    assert (summary["measure"], summary["higher_is_better"], summary["is_share"]) == ("mAP", True, True)
    assert summary["mac_reduction"] >= 0.5 - 1e-6
    assert summary["parity"]["onnx_vs_torch"] < 1e-4

    settings, workspace = finished.settings, finished.workspace
    example = example_inputs(workspace, settings)
    model, _, _ = load_model(workspace.folder("dense"), settings, read_description(workspace), example)
    task = Detection()
    test = DatasetBatches(rendered.Scenes(2, SIZES["test"]), task.unpack, collate_fn=task.collate)
    found = evaluate(
        model, test, loss=task, metric=Scorer(task.metric(), task.predict, None, task.wanted), batch_size=7
    )
    assert summary["dense"]["score"] == pytest.approx(found.score, rel=1e-6)
    assert found.score > 0.05

    session = onnxruntime.InferenceSession(workspace.folder("onnx") / "model.onnx")
    parity = finished.json("onnx", "parity.json")["dense"]
    names = [output.name for output in session.get_outputs()]
    assert sorted(parity.get("outputs", names[:1])) == sorted(names), "each is compared; one alone needs no name"
    assert parity["max_relative_difference"] < 1e-4
    images = test.first(5).inputs
    with torch.no_grad():
        heads = model.eval()(images)
    exported = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    for one, expected in zip(exported, heads.values(), strict=False):
        torch.testing.assert_close(torch.from_numpy(one), expected, rtol=1e-3, atol=1e-4)

    quantized = read_quantization(workspace)
    assert quantized is not None
    assert quantized.left_because("head"), "what gives boxes and classes stays in float"
    assert quantized.outputs.keys() == set(names)
    assert summary["quantized"]["score"] == pytest.approx(summary["dense"]["score"], abs=0.05)


HALVES: dict[str, dict[str, Any]] = {
    "mAP": {},
    "mean IoU": {
        "data": {"kwargs": {"train": 384, "validation": 128, "test": 256, "what": "masks"}},
        "task": {"name": "segmentation"},
        "model": {"factory": "shapes:UNet"},
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("measure", HALVES)
def test_half_of_the_macs_go_within_two_percent_of_the_score(
    measure: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, project_writer: Callable[..., Path]
) -> None:
    recipe = {"learning_rate": 0.003, "optimizer": "adamw", "batch_size": 16, "epochs": 12}
    sections = {
        "data": {"kwargs": {"train": 384, "validation": 128, "test": 256}},
        "analyze": {"for_report": False},
        "prune": {
            "max_drop": {"relative": 0.02},
            "recipes": [{"name": "distil", "distillation": 0.3, **recipe}, {"name": "plain", **recipe}],
        },
        **HALVES[measure],
    }
    finished = project(tmp_path, project_writer, epochs=(20, 12), **sections)
    monkeypatch.chdir(tmp_path)
    summary = finished.json("report", "summary.json")
    assert summary["measure"] == measure
    assert summary["mac_reduction"] >= 0.5 - 1e-6
    assert summary["baseline"]["score"] > 0.8
    assert summary["dense"]["score"] >= 0.98 * summary["baseline"]["score"]
