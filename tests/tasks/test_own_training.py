"""What users bring in place of ours: an evaluation of their task's own, a trainer of a framework's, a rich recipe."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pruning.errors import ModelError, SettingsError
from tasks.loop.ledger import read_ledger
from tasks.stage_table import NAMES
from tests.tasks.test_pipeline import BEFORE_THE_LOOP, Project, made, make

pytestmark = pytest.mark.thorough

CODE = '''
import torch
from torch import nn

import zoo.models
from secateur import Task
from pruning.task import Classification

SEEN = []


class Judged(Classification):
    """The balanced accuracy, worked out over the whole set as an evaluator of a framework does."""

    def metric(self):
        from pruning.metrics import MacroF1

        return MacroF1()

    def evaluate(self, model, loader):
        hits, counts, total = torch.zeros(10), torch.zeros(10), 0.0
        for inputs, targets in loader:
            outputs = model(inputs)
            total += float(nn.functional.cross_entropy(outputs, targets, reduction="sum"))
            counts += torch.bincount(targets, minlength=10)
            hits += torch.bincount(targets[outputs.argmax(1) == targets], minlength=10)
        SEEN.append(int(counts.sum()))
        number = int(counts.sum())
        return {"metric": (hits / counts.clamp(min=1)).mean(), "loss": total / number, "num_samples": number}


class Forgets(Judged):
    def evaluate(self, model, loader):
        return {**super().evaluate(model, loader), "num_samples": 3}


def train(model, samples, loss, recipe, teacher):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    for _ in range(recipe.epochs):
        for batch in samples.ordered(32):
            optimizer.zero_grad()
            loss(model(batch.inputs), batch.targets).backward()
            optimizer.step()


def rebuilds(model, samples, loss, recipe, teacher):
    """As a framework does that makes the model from its configuration."""
    train(teacher, samples, loss, recipe, None)
    return teacher
'''


def project(root: Path, writer: Callable[..., Path], names: Any, **changed: Any) -> Project:
    (root / "own_training.py").write_text(CODE, encoding="utf-8")

    def change(settings: dict[str, Any]) -> None:
        settings["prune"].update(iterations=1, max_attempts=2, max_accuracy_drop=0.3)
        settings["benchmark"]["rounds"] = 2
        settings["training"] = {}
        for section, update in changed.items():
            settings.setdefault(section, {}).update(update)

    return made(root, writer, names, change) if names else make(root, writer, change)


def test_an_evaluation_and_a_trainer_of_the_user_s_own_run_to_the_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, project_writer: Callable[..., Path]
) -> None:
    finished = project(
        tmp_path,
        project_writer,
        NAMES,
        task={"name": "own_training:Judged"},
        baseline={
            "recipe": {
                "epochs": 8,
                "learning_rate": 0.05,
                "batch_size": 32,
                "early_stopping": {"patience": 2, "restore_best": True},
            }
        },
        prune={
            "target": {"mac_reduction": 0.3},
            "iterations": 1,
            "max_accuracy_drop": 0.3,
            "recipes": [
                {"name": "mine", "trainer": "own_training:train", "epochs": 2},
                {
                    "name": "rich",
                    "epochs": 2,
                    "optimizer": "NAdam",
                    "schedule": "OneCycleLR",
                    "precision": "bf16",
                    "gradient_accumulation": 2,
                    "mixup": 0.2,
                    "cutmix": 1.0,
                    "ema": 0.9,
                    "early_stopping": {"patience": 1},
                    "distillation": 0.5,
                },
            ],
        },
    )
    monkeypatch.chdir(tmp_path)
    summary = finished.json("report", "summary.json")
    assert (summary["measure"], summary["pairs"]) == ("macro F1", None)
    assert summary["accepted"] == 1
    row = read_ledger(finished.workspace.folder("iterations")).rows[-1]
    assert row.recipes.keys() == {"mine", "rich"}
    assert not row.failed
    assert all(score > 0.5 for score in row.recipes.values())


def test_a_trainer_that_rebuilds_the_architecture_stops_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, project_writer: Callable[..., Path]
) -> None:
    recipes = [{"name": "mine", "trainer": "own_training:rebuilds", "epochs": 1}]
    begun = project(tmp_path, project_writer, BEFORE_THE_LOOP, prune={"recipes": recipes})
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SettingsError, match=r"'mine': trainer 'own_training:rebuilds' rebuilt the architecture of the"):
        begun.prune()


def test_an_evaluation_that_loses_samples_is_refused_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, project_writer: Callable[..., Path]
) -> None:
    begun = project(tmp_path, project_writer, ("prepare",), task={"name": "own_training:Forgets"})
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match=r"task 'own_training:Forgets': the task's evaluate saw 3 of 16 samples"):
        begun.run("baseline")
    named = project(
        tmp_path,
        project_writer,
        ("prepare",),
        task={"name": "own_training:Judged"},
        training={"metric": "macro_f1"},
    )
    with pytest.raises(SettingsError, match="evaluate` of its own, whose score would be called by training"):
        named.run("baseline")
