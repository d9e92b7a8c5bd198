"""Calibrate only: a trained model and inputs without labels go through the whole pipeline."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from pruning.errors import DataError
from tasks.data import ANSWERS, read_description, read_split
from tasks.models import example_inputs, load_model
from tasks.reporting.tables import as_text, compare
from tasks.stage_table import NAMES
from tests.tasks.test_pipeline import Project, make

pytestmark = pytest.mark.thorough

Writer = Callable[..., Path]


def _without_labels(settings: dict[str, Any]) -> None:
    settings["data"]["factory"] = "own_project:inputs_alone"
    settings["model"]["weights"] = "trained/weights.safetensors"
    settings["baseline"]["recipe"] = None
    settings["analyze"]["rates"] = []
    settings["prune"] = {
        "target": {"mac_reduction": 0.5},
        "min_channels": 1,
        "iterations": 1,
        "max_accuracy_drop": 0.5,
        "allocation": {"strategy": "local"},
        "recover": {"method": "reconstruct", "num_samples": 200},
        "recipes": [],
    }


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory: pytest.TempPathFactory, project_writer: Writer) -> Iterator[Project]:
    root = tmp_path_factory.mktemp("calibrated")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        trained = make(root, project_writer)
        for name in ("prepare", "baseline"):
            trained.run(name)
        trained.workspace.root.joinpath("baseline").rename(root / "trained")
        trained.workspace.root.rename(root / "labelled")
        project = make(root, project_writer, _without_labels)
        for name in NAMES:
            project.run(name)
        yield project


def test_a_model_is_pruned_without_labels_and_training(calibrated: Project) -> None:
    summary = calibrated.json("report", "summary.json")
    assert summary["mac_reduction"] >= 0.5 - 1e-6
    assert summary["baseline"]["score"] == 1.0  # it agrees with itself
    assert summary["dense"]["score"] > 0.8
    assert "agreement with the baseline (test)" in as_text(compare(summary))


def test_the_answers_of_the_baseline_stand_for_labels(calibrated: Project) -> None:
    data = read_description(calibrated.workspace)
    assert not data.labelled
    model, _, _ = load_model(
        calibrated.workspace.folder("baseline"),
        calibrated.settings,
        data,
        example_inputs(calibrated.workspace, calibrated.settings),
    )
    validation = read_split(calibrated.settings, calibrated.workspace, "validation").loaded()
    with torch.no_grad():
        assert torch.equal(validation.targets, model.eval()(validation.inputs).argmax(1))


def test_answers_that_were_changed_are_refused(calibrated: Project) -> None:
    path = calibrated.workspace.folder("baseline") / ANSWERS
    content = path.read_bytes()
    path.write_bytes(content[:-1] + b"\x07")
    with pytest.raises(DataError, match="changed after it was written"):
        read_split(calibrated.settings, calibrated.workspace, "test")
    path.write_bytes(content)


def test_nothing_is_trained_without_labels(calibrated: Project, project_writer: Writer) -> None:
    def with_recipe(settings: dict[str, Any]) -> None:
        _without_labels(settings)
        settings["baseline"]["recipe"] = {"name": "baseline", "epochs": 1}

    project = make(calibrated.root, project_writer, with_recipe)
    with pytest.raises(DataError, match="gives no labels, so no baseline can be trained"):
        project.run("baseline")
