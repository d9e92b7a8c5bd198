"""Tasks other than classification, from a data set as users have it to the report; each on rendered shapes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from sklearn.metrics import f1_score, jaccard_score

from pruning.containers import main_output
from tasks.data import read_description, read_split
from tasks.loop.ledger import read_ledger
from tasks.models import example_inputs, load_model
from tasks.quantization import read_quantization
from tasks.reporting.tables import as_text, compare
from tasks.stage_table import NAMES
from tests.tasks.test_pipeline import Project, made

pytestmark = pytest.mark.thorough

CODE = '''
from dataclasses import dataclass
from types import SimpleNamespace

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

SIZES = {"train": 192, "validation": 61, "test": 67}


class Shapes(Dataset):
    """Discs and squares of three colours and any size, 16 by 16."""

    def __init__(self, number, count, what, as_dict=False):
        generator = torch.Generator().manual_seed(number)
        y, x = torch.meshgrid(torch.arange(16), torch.arange(16), indexing="ij")
        widest, least = (torch.tensor(limits).reshape(3, 1, 1, 1) for limits in ([10, 10, 3], [3, 3, 2]))
        across, down, size = torch.rand(3, count, 1, 1, generator=generator) * widest + least
        kind = torch.randint(2, (count, 1, 1), generator=generator)
        disc = (x - across) ** 2 + (y - down) ** 2 <= size**2
        square = torch.maximum((x - across).abs(), (y - down).abs()) <= size
        inside = torch.where(kind == 0, disc, square)
        noise = 0.1 * torch.randn(count, 3, 16, 16, generator=generator)
        self.inputs = inside[:, None] * torch.tensor([1.0, 0.5, 0.2])[:, None, None] + noise
        masks = (inside * (1 + kind)).to(torch.uint8)
        masks[:, 0] = 255  # of the first row nothing is known
        flat = kind.flatten()
        self.targets = {"masks": masks, "size": size.flatten().double(), "clean": inside[:, None].float(),
                        "labels": torch.stack([flat, 1 - flat, (size.flatten() > 3.5).long()], 1)}[what]
        self.as_dict = as_dict

    def __len__(self):
        return len(self.inputs)

    def __getitem__(self, index):
        pair = self.inputs[index], self.targets[index]
        return dict(zip(("image", "label"), pair)) if self.as_dict else pair


def of(what, **more):
    return {name: Shapes(number, count, what, **more) for number, (name, count) in enumerate(SIZES.items())}


def multi_label():
    return {**of("labels"), "classes": ("square", "disc", "large")}


def regression():
    return SimpleNamespace(**of("size", as_dict=True))


def segmentation():
    loaders = {name: DataLoader(part, batch_size=16, shuffle=True) for name, part in of("masks").items()}
    return SimpleNamespace(**loaders, classes=("ground", "disc", "square"))


def image_to_image():
    return of("clean")


class Words(Dataset):
    """Sequences of ten numbers below 12, each of which is the last one plus one or two."""

    def __init__(self, number, count, next_too=False):
        generator = torch.Generator().manual_seed(number)
        steps = torch.randint(1, 3, (count, 10), generator=generator)
        self.ids = steps.cumsum(1) % 12
        self.labels = self.ids.clone() if next_too else (self.ids % 3).where(torch.arange(10) < 8, torch.tensor(-100))

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, index):
        return {"input_ids": self.ids[index], "labels": self.labels[index]}


def words(next_too=False):
    parts = {name: Words(number, count, next_too) for number, (name, count) in enumerate(SIZES.items())}
    return {**parts, "classes": tuple(map(str, range(12 if next_too else 3)))}


def trunk(width=16):
    return [nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, padding=1), nn.BatchNorm2d(2 * width), nn.ReLU()]


def pooled(outputs):
    return nn.Sequential(*trunk(), nn.AdaptiveMaxPool2d(2), nn.Flatten(), nn.Linear(128, outputs))


class Dense(nn.Module):
    def __init__(self, outputs, as_dict):
        super().__init__()
        self.body, self.as_dict = nn.Sequential(*trunk(), nn.Conv2d(32, outputs, 1)), as_dict

    def forward(self, x):
        found = self.body(x)
        return {"out": found, "aux": 2 * found} if self.as_dict else found


def dense(outputs, as_dict=False):
    return Dense(outputs, as_dict)


@dataclass
class Out:
    logits: torch.Tensor


class Tagger(nn.Module):
    def __init__(self, outputs):
        super().__init__()
        self.embed, self.first, self.second, self.head = (
            nn.Embedding(12, 32), nn.Linear(32, 48), nn.Linear(48, 32), nn.Linear(32, outputs))

    def forward(self, ids):
        return Out(self.head(self.second(self.first(self.embed(ids)).relu()).relu()))


def tagger(outputs):
    return Tagger(outputs)


def smooth(outputs, targets):
    each = nn.functional.smooth_l1_loss(outputs.flatten(), targets, reduction="none")
    return each.sum(), len(targets)


class WorstCase:
    """A metric in torchmetrics' manner that falls when it gets better and is no mean."""

    higher_is_better = False

    def __init__(self):
        self.reset()

    def reset(self):
        self.worst = torch.zeros(())

    def update(self, predictions, targets):
        self.worst = torch.maximum(self.worst, (predictions.flatten() - targets).abs().max())

    def compute(self):
        return {"worst": self.worst, "nothing": 0}
'''


def project(tmp: Path, writer: Callable[..., Path], **sections: Any) -> Project:
    (tmp / "any_task.py").write_text(CODE, encoding="utf-8")

    def change(settings: dict[str, Any]) -> None:
        settings["baseline"]["recipe"].update(epochs=4, learning_rate=0.003, optimizer="adamw")
        settings["analyze"].update(for_report=True, rates=[0.5])
        recipe = {"learning_rate": 0.003, "optimizer": "adamw", "batch_size": 32, "epochs": 1}
        settings["prune"] = {
            "target": {"mac_reduction": 0.5},
            "iterations": 1,
            "max_attempts": 3,
            "max_drop": {"relative": 0.5},
            "recipes": [{"name": "distil", "distillation": 0.5, **recipe}, {"name": "plain", **recipe}],
        }
        settings["promote"]["max_drop"] = {"relative": 0.5}
        settings["benchmark"]["rounds"] = 2
        settings["quantize"] = {"profile": "cpu"}
        settings["training"] = {}
        for name, section in sections.items():
            settings[name] = {**settings.get(name, {}), **section}

    return made(tmp, writer, NAMES, change)


CASES: dict[str, tuple[dict[str, Any], str, bool]] = {
    "multi_label": (
        {
            "data": {"factory": "any_task:multi_label"},
            "model": {"factory": "any_task:pooled", "kwargs": {"outputs": 3}},
        },
        "macro F1",
        True,
    ),
    "regression": (
        {"data": {"factory": "any_task:regression"}, "model": {"factory": "any_task:pooled", "kwargs": {"outputs": 1}}},
        "RMSE",
        False,
    ),
    "segmentation": (
        {
            "data": {"factory": "any_task:segmentation"},
            "model": {"factory": "any_task:dense", "kwargs": {"outputs": 3, "as_dict": True}},
            "task": {"kwargs": {"ignore_index": 255}},
        },
        "mean IoU",
        True,
    ),
    "image_to_image": (
        {
            "data": {"factory": "any_task:image_to_image"},
            "model": {"factory": "any_task:dense", "kwargs": {"outputs": 1}},
        },
        "PSNR",
        True,
    ),
    "token_classification": (
        {"data": {"factory": "any_task:words"}, "model": {"factory": "any_task:tagger", "kwargs": {"outputs": 3}}},
        "macro F1",
        True,
    ),
    "causal_lm": (
        {
            "data": {"factory": "any_task:words", "kwargs": {"next_too": True}},
            "model": {"factory": "any_task:tagger", "kwargs": {"outputs": 12}},
        },
        "perplexity",
        False,
    ),
}


def by_hand(name: str, outputs: torch.Tensor, targets: torch.Tensor) -> float:
    """Return the score of the whole test set, worked out without the library."""
    if name == "multi_label":
        return float(f1_score(targets, outputs > 0, average="macro"))
    if name == "regression":
        return float((outputs.flatten() - targets).double().square().mean().sqrt())
    if name == "image_to_image":
        return float(-10 * (outputs - targets).double().square().mean().log10())
    if name == "causal_lm":
        each = torch.nn.functional.cross_entropy(
            outputs[:, :-1].flatten(0, 1), targets[:, 1:].flatten(), reduction="none"
        )
        return float(each.double().mean().exp())
    counts = targets != (255 if name == "segmentation" else -100)
    found = outputs.argmax(1 if name == "segmentation" else 2)[counts]
    score = jaccard_score if name == "segmentation" else f1_score
    return float(score(targets[counts], found, average="macro"))


@pytest.mark.parametrize("name", CASES)
def test_a_task_runs_from_its_data_set_to_the_report(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, project_writer: Callable[..., Path]
) -> None:
    sections, measure, higher_is_better = CASES[name]
    finished = project(tmp_path, project_writer, **{**sections, "task": {"name": name, **sections.get("task", {})}})
    monkeypatch.chdir(tmp_path)
    summary = finished.json("report", "summary.json")
    assert (summary["measure"], summary["higher_is_better"]) == (measure, higher_is_better)
    assert summary["mac_reduction"] >= 0.5 - 1e-6
    assert summary["accepted"] == 1
    assert f"{measure} (test)" in as_text(compare(summary))
    worse = summary["baseline"]["score"] - summary["dense"]["score"]
    assert summary["score_drop"] == pytest.approx(worse if higher_is_better else -worse)
    validation, floor = summary["validation"], summary["floor"]
    assert floor == pytest.approx(validation["baseline"] * (0.5 if higher_is_better else 1.5))
    assert (validation["dense"] >= floor) if higher_is_better else (validation["dense"] <= floor)

    settings, workspace = finished.settings, finished.workspace
    test = read_split(settings, workspace, "test").loaded()
    session = onnxruntime.InferenceSession(workspace.folder("onnx") / "model.onnx")
    exported, *_ = session.run(None, {session.get_inputs()[0].name: test.inputs.numpy()})
    model, _, _ = load_model(
        workspace.folder("dense"), settings, read_description(workspace), example_inputs(workspace, settings)
    )
    with torch.no_grad():
        outputs = main_output(model.eval()(test.inputs))
    torch.testing.assert_close(torch.from_numpy(exported), outputs, rtol=1e-3, atol=1e-4)
    parity = finished.json("onnx", "parity.json")["dense"]
    names = [output.name for output in session.get_outputs()]
    assert sorted(parity.get("outputs", names[:1])) == sorted(names), "each is compared; one alone needs no name"
    assert parity["max_relative_difference"] < 1e-4
    assert summary["dense"]["score"] == pytest.approx(by_hand(name, outputs, test.targets), rel=1e-6)

    quantized = onnxruntime.InferenceSession(workspace.folder("quantized") / "quantized.onnx")
    assert [output.name for output in quantized.get_outputs()] == names
    answers = torch.from_numpy(quantized.run(None, {session.get_inputs()[0].name: test.inputs.numpy()})[0])
    assert summary["quantized"]["score"] == pytest.approx(by_hand(name, answers, test.targets), rel=1e-5)
    found = read_quantization(workspace)
    assert found is not None
    assert found.outputs.keys() == set(names)
    assert found.outputs[names[0]].snr_db > 15

    row = read_ledger(workspace.folder("iterations")).rows[-1]
    scores = row.recipes.values()
    assert row.measured is not None
    assert row.measured.score == (max(scores) if higher_is_better else min(scores))
    page = (workspace.folder("report") / "report.html").read_text(encoding="utf-8")
    assert page.count('class="sample"') >= 4
    of_classes = [two for _, two in summary["per_class"].values()]
    if of_classes:
        assert sum(of_classes) / len(of_classes) == pytest.approx(summary["dense"]["score"])
    assert f"validation {measure} by recipe" in page
    assert "accuracy" not in page.partition("Words on this page")[0].replace("max_accuracy_drop", "")


def test_an_error_that_is_a_mean_over_samples_has_an_interval(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, project_writer: Callable[..., Path]
) -> None:
    finished = project(
        tmp_path,
        project_writer,
        task={"name": "regression"},
        data={"factory": "any_task:regression"},
        model={"factory": "any_task:pooled", "kwargs": {"outputs": 1}},
        training={"metric": "mae"},
    )
    monkeypatch.chdir(tmp_path)
    summary = finished.json("report", "summary.json")
    pairs = summary["pairs"]
    assert (summary["measure"], summary["higher_is_better"]) == ("mean absolute error", False)
    assert pairs["difference"] == pytest.approx(summary["score_drop"])  # an error that rises is a loss
    assert pairs["low"] < pairs["difference"] < pairs["high"]
    assert pairs["num_samples"] == 67 >= pairs["lost"] + pairs["won"]
    low, high = summary["dense"]["score_interval"]
    assert low < summary["dense"]["score"] < high
    page = (finished.workspace.folder("report") / "report.html").read_text(encoding="utf-8")
    assert f"of 67 samples worse, {pairs['won']} better" in page


def test_a_metric_of_torchmetrics_manner_decides_in_its_own_direction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, project_writer: Callable[..., Path]
) -> None:
    finished = project(
        tmp_path,
        project_writer,
        task={"name": "regression"},
        data={"factory": "any_task:regression"},
        model={"factory": "any_task:pooled", "kwargs": {"outputs": 1}},
        training={"loss": "any_task:smooth", "metric": "any_task:WorstCase", "metric_key": "worst"},
        prune={
            "target": {"mac_reduction": 0.3},
            "iterations": 1,
            "max_drop": {"absolute": 2.5},
            "undo_training": True,
            "recipes": [{"name": "plain", "epochs": 1, "learning_rate": 0.001, "optimizer": "adamw"}],
        },
    )
    monkeypatch.chdir(tmp_path)
    summary = finished.json("report", "summary.json")
    assert (summary["measure"], summary["higher_is_better"], summary["pairs"]) == ("WorstCase worst", False, None)
    assert summary["floor"] == pytest.approx(summary["validation"]["baseline"] + 2.5)
