"""Embeddings without labels: the baseline's outputs are the targets, and the cosine similarity to them is the score."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from sklearn.metrics.pairwise import paired_cosine_distances
from torch import Tensor
from torch.nn import functional

from pruning.embedding import CosineSimilarity, Embedding
from pruning.errors import DataError, ModelError
from tasks.data import read_description
from tasks.models import example_inputs, load_model
from tasks.stage_table import NAMES
from tests.tasks.test_pipeline import made

CODE = """
import torch
from torch import nn

import zoo.datasets


class Inputs:
    def __init__(self, inputs):
        self.inputs = inputs


def scans():
    whole = zoo.datasets.digits()
    return {name: Inputs(part.inputs[:300]) for name, part in whole.named()}


def embedder():
    torch.manual_seed(7)
    first, second = nn.Conv2d(1, 24, 3, padding=1), nn.Conv2d(24, 32, 3, padding=1)
    pooled = nn.Sequential(nn.MaxPool2d(2), nn.Flatten())
    return nn.Sequential(first, nn.ReLU(), nn.MaxPool2d(2), second, nn.ReLU(), pooled, nn.Linear(128, 16))
"""


@pytest.mark.thorough
def test_an_embedder_is_pruned_without_labels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, project_writer: Callable[..., Path]
) -> None:
    (tmp_path / "own_embedder.py").write_text(CODE, encoding="utf-8")
    scope: dict[str, Any] = {}
    exec(CODE, scope)
    torch.save(scope["embedder"]().state_dict(), tmp_path / "embedder.pt")

    def change(settings: dict[str, Any]) -> None:
        settings["data"] = {"factory": "own_embedder:scans"}
        settings["task"] = {"name": "embedding"}
        settings["model"] = {"factory": "own_embedder:embedder", "weights": "embedder.pt"}
        settings["baseline"] = {"recipe": None}
        settings["training"] = {}
        settings["analyze"].update(for_report=True, rates=[0.5])
        settings["benchmark"]["rounds"] = 2
        settings["quantize"] = {"profile": "cpu"}
        settings["prune"] = {
            "target": {"mac_reduction": 0.5},
            "iterations": 1,
            "max_drop": {"absolute": 0.2},
            "recipes": [{"name": "plain", "epochs": 3, "learning_rate": 0.001, "optimizer": "adamw"}],
        }

    finished = made(tmp_path, project_writer, NAMES, change)
    monkeypatch.chdir(tmp_path)
    summary = finished.json("report", "summary.json")
    assert summary["measure"] == "cosine similarity against the baseline"
    assert summary["baseline"]["score"] == pytest.approx(1.0)
    assert 0.8 < summary["dense"]["score"] < 1
    assert summary["mac_reduction"] >= 0.5 - 1e-6

    settings, workspace = finished.settings, finished.workspace
    data, example = read_description(workspace), example_inputs(workspace, settings)
    dense, _, _ = load_model(workspace.folder("dense"), settings, data, example)
    inputs = scope["scans"]()["test"].inputs
    with torch.no_grad():
        wanted, outputs = scope["embedder"]()(inputs), dense.eval()(inputs)
    assert summary["dense"]["score"] == pytest.approx(1 - paired_cosine_distances(wanted, outputs).mean(), abs=1e-6)
    session = onnxruntime.InferenceSession(workspace.folder("onnx") / "model.onnx")
    parity = finished.json("onnx", "parity.json")["dense"]
    names = [output.name for output in session.get_outputs()]
    assert sorted(parity.get("outputs", names[:1])) == sorted(names), "each is compared; one alone needs no name"
    assert parity["max_relative_difference"] < 1e-4
    (exported,) = session.run(None, {session.get_inputs()[0].name: inputs.numpy()})
    np.testing.assert_allclose(exported, outputs.numpy(), rtol=1e-3, atol=1e-4)
    assert summary["quantized"]["score"] == pytest.approx(summary["dense"]["score"], abs=0.01)


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape)))


@pytest.mark.parametrize("size", [7, 64, 509])
def test_batches_of_any_size_give_what_the_whole_gives(size: int) -> None:
    wanted = randn(509, 12)
    found = wanted + randn(509, 12, 1)[..., 0]
    metric = CosineSimilarity()
    for one, other in zip(torch.split(found, size), torch.split(wanted, size), strict=True):
        metric.update(one, other)
    assert metric.compute() == pytest.approx(1 - paired_cosine_distances(wanted, found).mean(), abs=1e-6)


def test_loss_and_distillation_are_one_minus_the_similarity() -> None:
    task, outputs, targets = Embedding(), randn(5, 3, 8), randn(5, 3, 8).flip(0)
    expected = 1 - functional.cosine_similarity(outputs, targets, dim=-1).mean()
    assert torch.allclose(task(outputs, targets), expected)
    assert torch.allclose(task.distillation({"out": outputs}, targets, 4.0), expected)


def test_what_is_no_embedding_is_refused() -> None:
    with pytest.raises(DataError, match=r"targets are a tensor \[4\] of int64; expected embeddings .*leave labels out"):
        Embedding().check_targets(torch.arange(4), ())
    with pytest.raises(DataError, match="not finite"):
        Embedding().check_targets(torch.full((2, 2), float("nan")), ())
    with pytest.raises(ModelError, match=r"of shape \[4, 8\] for targets \[4, 6\]"):
        Embedding().check_outputs(randn(4, 8), randn(4, 6), ())
    with pytest.raises(ModelError, match="has seen no batch"):
        CosineSimilarity().compute()
