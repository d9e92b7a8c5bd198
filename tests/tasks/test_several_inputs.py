"""Models of several inputs and outputs go through every stage, by position and by name, to a server's check."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch.utils.data import TensorDataset

from pruning.errors import DataError, ModelError, SecateurError
from pruning.task import Classification, Task
from tasks.data import read_description, read_inputs
from tasks.data_factory import opened
from tasks.data_sets import SPLITS, DataSets
from tasks.quantization import read_quantization
from tasks.registry.mlflow_models import at, find
from tasks.registry.promote import measure_side_by_side
from tasks.registry.register import register
from tasks.registry.restore import restore
from tasks.stage_table import NAMES
from tasks.workspace import Workspace
from tests.tasks.test_pipeline import Project, made
from zoo.datasets.splits import Samples, Splits

CODE = '''
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.data import Dataset

SIZES = {"train": 192, "validation": 61, "test": 67}


class Pairs(Dataset):
    """An image of noise with a bright or dark middle, and four numbers; the class is told by both."""

    def __init__(self, number, count):
        generator = torch.Generator().manual_seed(number)
        self.images = torch.randn(count, 1, 8, 8, generator=generator)
        self.numbers = torch.randn(count, 4, generator=generator)
        self.labels = torch.randint(4, (count,), generator=generator)
        self.images[:, :, 2:6, 2:6] += 3.0 * (self.labels % 2)[:, None, None, None]
        self.numbers[:, 1] += 4.0 * (self.labels // 2)

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return (self.images[index], self.numbers[index]), self.labels[index]


def pairs():
    parts = {name: Pairs(number, count) for number, (name, count) in enumerate(SIZES.items())}
    return {**parts, "classes": tuple("abcd")}


class TwoInputs(nn.Module):
    """Gives the logits, and what was seen of the image: a tuple."""

    def __init__(self, width=16):
        super().__init__()
        self.look = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1), nn.ReLU(),
            nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * width, 16), nn.ReLU())
        self.read = nn.Sequential(nn.Linear(4, 24), nn.ReLU(), nn.Linear(24, 16), nn.ReLU())
        self.join = nn.Sequential(nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 4))

    def forward(self, image, numbers):
        seen = self.look(image)
        return self.join(torch.cat([seen, self.read(numbers)], 1)), seen


class Sentences(Dataset):
    """Token ids of 5 to 12 places; the class is the commoner of two kinds of tokens."""

    def __init__(self, number, count, padded):
        generator = torch.Generator().manual_seed(number)
        self.padded, self.ids, self.labels = padded, [], []
        for _ in range(count):
            length = int(torch.randint(5, 13, (), generator=generator))
            label = int(torch.randint(2, (), generator=generator))
            kind = (torch.rand(length, generator=generator) < 0.8).long() * label
            kind += (torch.rand(length, generator=generator) < 0.2).long() * (1 - label)
            self.ids.append(2 + 10 * kind + torch.randint(10, (length,), generator=generator))
            self.labels.append(label)

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        sample = {"input_ids": self.ids[index], "labels": self.labels[index]}
        return pad([sample], 12, one=True) if self.padded else sample


def pad(samples, length=None, one=False):
    length = length or max(len(sample["input_ids"]) for sample in samples)
    ids = torch.zeros(len(samples), length, dtype=torch.int64)
    for row, sample in zip(ids, samples):
        row[: len(sample["input_ids"])] = sample["input_ids"]
    labels = torch.tensor([sample["labels"] for sample in samples])
    found = {"input_ids": ids, "attention_mask": (ids > 0).long(), "labels": labels}
    return {name: tensor[0] for name, tensor in found.items()} if one else found


def sentences(padded=True):
    parts = {name: Sentences(number, count, padded) for number, (name, count) in enumerate(SIZES.items())}
    return {**parts, "classes": ("dull", "bright"), "collate_fn": None if padded else pad}


@dataclass
class Answer:
    logits: torch.Tensor
    loss: torch.Tensor = None
    states: tuple = ()


class Attention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x, mask):
        query, key, value = (
            part(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.query, self.key, self.value))
        scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
        scores = scores.masked_fill(mask[:, None, None] == 0, -1e4)
        return self.out((scores.softmax(-1) @ value).transpose(1, 2).flatten(2))


class Layer(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.attention = Attention(width, heads)
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x, mask):
        x = self.first(x + self.attention(x, mask))
        return self.second(x + self.down(nn.functional.gelu(self.up(x))))


class TinyBert(nn.Module):
    """Tokens, places and kinds; two layers; the first token is classified, as in BERT."""

    def __init__(self, num_classes=2, width=16, heads=2):
        super().__init__()
        self.words, self.places, self.kinds = nn.Embedding(32, width), nn.Embedding(24, width), nn.Embedding(2, width)
        self.norm = nn.LayerNorm(width)
        self.layers = nn.ModuleList(Layer(width, heads) for _ in range(2))
        self.pool, self.head = nn.Linear(width, width), nn.Linear(width, num_classes)

    def forward(self, input_ids, attention_mask=None, token_type_ids=None):
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        if token_type_ids is None:
            token_type_ids = torch.zeros_like(input_ids)
        places = torch.arange(input_ids.shape[1], device=input_ids.device)
        x = self.norm(self.words(input_ids) + self.places(places) + self.kinds(token_type_ids))
        states = (x,)
        for layer in self.layers:
            x = layer(x, attention_mask)
            states += (x,)
        return Answer(self.head(self.pool(x[:, 0]).tanh()), states=states)
'''


def project(tmp: Path, writer: Callable[..., Path], names: Any = NAMES, **sections: Any) -> Project:
    (tmp / "several.py").write_text(CODE, encoding="utf-8")

    def change(settings: dict[str, Any]) -> None:
        settings["baseline"]["recipe"].update(epochs=12, learning_rate=0.005, optimizer="adamw")
        settings["profile"] = {"batch_sizes": [1]}
        settings["analyze"].update(for_report=True, rates=[0.5])
        recipe = {"distillation": 0.5, "epochs": 1, "learning_rate": 0.003, "optimizer": "adamw"}
        settings["prune"] = {
            "target": {"mac_reduction": 0.4},
            "iterations": 1,
            "max_attempts": 3,
            "max_accuracy_drop": 0.3,
            "recipes": [{"name": "distil", **recipe}],
        }
        settings["benchmark"]["rounds"] = 2
        settings["quantize"] = {"profile": "cpu"}
        settings["training"] = {}
        for name, section in sections.items():
            settings[name] = {**settings.get(name, {}), **section}

    return made(tmp, writer, names, change)


def served(found: Project) -> tuple[str, Any]:
    """Register the finished project, and load it as a server does."""
    params = Path("params.yaml")
    number = register(found.settings, found.workspace, params, params.read_bytes(), code=lambda: None)
    assert number is not None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MLflow's own, of its type hints
        import mlflow.pyfunc

    mlflow.set_tracking_uri(found.settings.tracking.uri)
    return number, mlflow.pyfunc.load_model(f"models:/{found.settings.tracking.model_name}/{number}")


def shapes(session: onnxruntime.InferenceSession) -> dict[str, list[Any]]:
    return {one.name: one.shape for one in (*session.get_inputs(), *session.get_outputs())}


def check_quantized(found: Project, session: onnxruntime.InferenceSession) -> None:
    """The quantised file takes and gives what the float one does, and nearly the same."""
    path, compared = found.workspace.folder("quantized") / "quantized.onnx", read_quantization(found.workspace)
    assert shapes(onnxruntime.InferenceSession(path)) == shapes(session)
    assert compared is not None
    assert compared.outputs.keys() == {one.name for one in session.get_outputs()}
    assert min(one.snr_db for one in compared.outputs.values()) > 15
    assert compared.num_layers > len(compared.left)


@pytest.mark.thorough
def test_two_inputs_by_position_go_through_every_stage_and_to_a_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, project_writer: Callable[..., Path]
) -> None:
    found = project(tmp_path, project_writer, data={"factory": "several:pairs"}, model={"factory": "several:TwoInputs"})
    monkeypatch.chdir(tmp_path)
    assert read_description(found.workspace).input_shape == ((1, 8, 8), (4,))
    summary = found.json("report", "summary.json")
    assert summary["mac_reduction"] >= 0.4 - 1e-6
    assert summary["baseline"]["score"] > 0.5
    session = onnxruntime.InferenceSession(found.workspace.folder("onnx") / "model.onnx")
    assert shapes(session) == {
        "image": ["batch", 1, 8, 8],
        "numbers": ["batch", 4],
        "output_0": ["batch", 4],
        "output_1": ["batch", 16],
    }
    parity = found.json("onnx", "parity.json")["dense"]
    assert parity["outputs"].keys() == {"output_0", "output_1"}
    assert max(parity["outputs"].values()) == parity["max_relative_difference"] < 1e-4
    assert all(row["predicted_ms"] for row in found.json("latency", "latency.json")["latencies"][:2])
    check_quantized(found, session)

    number, server = served(found)
    images, numbers = read_inputs(found.settings, found.workspace, "test").first(3).inputs
    answers = server.predict({"image": images.numpy(), "numbers": numbers.numpy()})
    expected = session.run(None, {"image": images.numpy(), "numbers": numbers.numpy()})
    for name, one in zip(("output_0", "output_1"), expected, strict=True):
        np.testing.assert_array_equal(answers[name], one)
    with pytest.raises(Exception, match="numbers"):
        server.predict({"image": images.numpy()})
    new, _, pairs = measure_side_by_side(found.settings, found.workspace, find(found.settings, number=number), None)
    assert (new.parity, new.answer_difference) == (1.0, 0.0)
    assert pairs is not None


@pytest.mark.thorough
@pytest.mark.parametrize("padded", [True, False], ids=["copied", "padded to the longest of a batch, only named"])
def test_a_network_of_token_ids_and_masks_goes_through_every_stage(
    padded: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, project_writer: Callable[..., Path]
) -> None:
    data = {"factory": "several:sentences", "kwargs": {"padded": padded}}
    task = {"name": "sequence_classification"}
    found = project(tmp_path, project_writer, data=data, task=task, model={"factory": "several:TinyBert"})
    monkeypatch.chdir(tmp_path)
    length = 12 if padded else None
    description = read_description(found.workspace)
    assert description.input_shape == {"attention_mask": (length,), "input_ids": (length,)}
    assert description.copied == padded
    assert found.json("report", "summary.json")["mac_reduction"] >= 0.4 - 1e-6

    session = onnxruntime.InferenceSession(found.workspace.folder("onnx") / "model.onnx")
    hidden = {f"states.{place}": ["batch", "sequence", 16] for place in range(3)}
    assert shapes(session) == {
        "input_ids": ["batch", "sequence"],
        "attention_mask": ["batch", "sequence"],
        "logits": ["batch", 2],
        **hidden,
    }
    parity = found.json("onnx", "parity.json")["dense"]
    assert list(parity["outputs"]) == sorted(["logits", *hidden])
    assert parity["max_relative_difference"] < 1e-4
    check_quantized(found, session)

    number, server = served(found)
    for length in (5, 9, 20):  # beyond what the data hold
        ids = torch.randint(2, 22, (3, length)).numpy()
        feed = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
        np.testing.assert_array_equal(server.predict(feed)["logits"], session.run(["logits"], feed)[0])
    with pytest.raises(Exception, match="int64"):
        server.predict({"input_ids": ids.astype(np.float32), "attention_mask": np.ones_like(ids)})
    version = find(found.settings, number=number)
    new, _, _ = measure_side_by_side(found.settings, found.workspace, version, None)
    assert (new.parity, new.answer_difference) == (1.0, 0.0)

    elsewhere = Workspace(tmp_path / "nothing")  # of data that are only named, MLflow has what is needed
    if padded:
        with pytest.raises(SecateurError, match="data/"):
            restore(found.settings, version, tmp_path / "copy", elsewhere)
    else:
        assert set(restore(found.settings, version, tmp_path / "copy", elsewhere).sources.values()) == {"MLflow"}
    assert at(found.settings, "candidate") == version


@pytest.mark.thorough
@pytest.mark.parametrize("pooled", [True, False])
def test_height_and_width_are_dynamic_where_the_model_allows_it(
    pooled: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, project_writer: Callable[..., Path]
) -> None:
    more = """

class Pooled(TwoInputs):
    def __init__(self, pooled):
        super().__init__()
        if pooled:
            self.look[4], self.look[6] = nn.AdaptiveAvgPool2d(1), nn.Linear(16, 16)
"""
    monkeypatch.setitem(globals(), "CODE", CODE + more)
    monkeypatch.delitem(sys.modules, "several", raising=False)
    found = project(
        tmp_path,
        project_writer,
        NAMES[: NAMES.index("export") + 1],
        data={"factory": "several:pairs"},
        model={"factory": "several:Pooled", "kwargs": {"pooled": pooled}},
        export={"dynamic_axes": "all"},
    )
    monkeypatch.chdir(tmp_path)
    session = onnxruntime.InferenceSession(found.workspace.folder("onnx") / "model.onnx")
    sides: list[Any] = ["height", "width"] if pooled else [8, 8]
    assert shapes(session)["image"] == ["batch", 1, *sides]
    assert shapes(session)["numbers"] == ["batch", 4]
    if pooled:
        answers = [
            session.run(None, {"image": np.ones((3, 1, *size), np.float32), "numbers": np.ones((3, 4), np.float32)})
            for size in ((8, 8), (5, 11))
        ]
        np.testing.assert_allclose(answers[0][0][0], answers[0][0][1], rtol=1e-4)
        assert answers[1][0].shape == (3, 4)


def batch_of(unpacked: Any) -> DataSets:
    """Open data sets whose every batch is unpacked as this."""

    class Own(Classification):
        def unpack(self, batch: Any) -> tuple[Any, Any]:
            return unpacked, batch[1]

    part = TensorDataset(torch.zeros(6, 2), torch.arange(6) % 2)
    found = opened(dict.fromkeys(SPLITS, part) | {"classes": ("a", "b")}, "mine:data", Own())
    assert isinstance(found, DataSets)
    return found


@pytest.mark.parametrize(
    ("unpacked", "fault"),
    [
        ((torch.zeros(6, 2), torch.zeros(3, 2)), r"first axis of each: input 0 \[6, 2\], input 1 \[3, 2\]"),
        ({"ids": torch.zeros(6, 2), "scale": torch.tensor(2.0)}, r"first axis of each: .* input 'scale' \[\]"),
        (
            {"ids": torch.zeros(6, 2), "text": ["one"] * 6},
            "input 'text' is a list.*Leave out what the model isn't given",
        ),
        ((torch.zeros(6, 2), {"deep": torch.zeros(6, 2)}), "input 1 is a (dict|mapping).*expected a tensor"),
        ((), "inputs are .*expected a tensor, several in a tuple, or a dict"),
        (None, "inputs are .*expected a tensor, several in a tuple, or a dict"),
    ],
)
def test_inputs_that_are_no_tensors_of_one_batch_are_one_message(unpacked: Any, fault: str) -> None:
    with pytest.raises(
        DataError, match=rf"'mine:data': (train|validation): samples 0 to 5 can't be unpacked.*: .*{fault}"
    ):
        _ = batch_of(unpacked).first


def test_a_sample_without_a_key_that_others_have_is_named() -> None:
    whole = [{"ids": torch.zeros(2), "mask": torch.ones(2), "label": 0} for _ in range(5)]
    lacking: list[dict[str, Any]] = [*whole, {"ids": torch.zeros(2), "label": 1}]
    found = opened({"train": lacking, "validation": whole, "test": whole, "classes": ("a", "b")}, "mine:data", Task())
    with pytest.raises(DataError, match=r"'mine:data': train: samples 0 to 5 can't be joined to a batch.*: .*mask"):
        _ = found.first  # type: ignore[union-attr]


def test_splits_with_other_inputs_are_one_message() -> None:
    one = Samples({"ids": torch.zeros(4, 3), "mask": torch.ones(4, 3)}, torch.arange(4) % 2)
    other = Samples({"ids": torch.zeros(4, 3)}, torch.arange(4) % 2)
    wide = Samples({"ids": torch.zeros(4, 5), "mask": torch.ones(4, 3)}, torch.arange(4) % 2)
    with pytest.raises(ValueError, match="validation has inputs:ids, train inputs:ids, inputs:mask; expected the same"):
        Splits(one, other, one, ("a", "b"))
    with pytest.raises(ValueError, match=r"inputs:ids of test have shape \[5\], those of train \[3\]"):
        Splits(one, one, wide, ("a", "b"))
    with pytest.raises(ValueError, match="3 inputs:mask for 4 targets"):
        Samples({"ids": torch.zeros(4, 3), "mask": torch.ones(3, 3)}, torch.arange(4))
    assert Splits(one, one, one, ("a", "b")).input_shape == {"ids": (3,), "mask": (3,)}


def test_sizes_that_differ_are_found_and_samples_that_cannot_be_joined_are_refused() -> None:
    rows = [{"ids": torch.zeros(2 + place % 3).long(), "label": place % 2} for place in range(6)]

    def padded(samples: list[dict[str, Any]]) -> dict[str, Any]:
        ids = torch.nn.utils.rnn.pad_sequence([sample["ids"] for sample in samples], batch_first=True)
        return {"ids": ids, "mask": (ids >= 0), "label": torch.tensor([sample["label"] for sample in samples])}

    parts: dict[str, Any] = {**dict.fromkeys(SPLITS, rows), "classes": ("a", "b")}
    found = opened({**parts, "collate_fn": padded}, "mine:data", Task())
    assert isinstance(found, DataSets)
    assert found.shape(dict.fromkeys(SPLITS, (0, 1))) == {"inputs:ids": (None,), "inputs:mask": (None,)}
    ragged = opened(
        {
            **parts,
            "collate_fn": lambda samples: (torch.stack([s["ids"] for s in samples]), torch.tensor([0] * len(samples))),
        },
        "mine:data",
        Task(),
    )
    assert isinstance(ragged, DataSets)
    vars(ragged)["first"] = {name: part.first(1) for name, part in ragged.parts.items()}
    with pytest.raises(
        DataError, match=r"differ in shape, \[2\] and \[3\]: give each the same, or pad those of a batch"
    ):
        ragged.shape(dict.fromkeys(SPLITS, (0, 1)))


@pytest.mark.parametrize(
    ("data", "model", "fault"),
    [
        (
            "sentences",
            "Other",
            "the data give .*input_ids.*, the model's forward takes ids, attention_mask: missing .*'ids'",
        ),
        ("sentences", "Text", "of type str.*expected tensors|a value of type str|the model returned"),
        (
            "pairs",
            "Lists",
            "output 'words' is a value of type str; expected tensors: return it as one, or leave it out",
        ),
        (
            "embedded",
            "Embedded",
            "the data give 'states' alone, .* by position, where the model's forward takes 'input_ids'",
        ),
    ],
)
def test_what_a_model_cannot_take_or_give_is_said_before_training(
    data: str,
    model: str,
    fault: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    project_writer: Callable[..., Path],
) -> None:
    more = """

class Other(TinyBert):
    def forward(self, ids, attention_mask):
        return super().forward(ids, attention_mask)


class Text(TinyBert):
    def forward(self, input_ids, attention_mask):
        return "dull"


class Embedded(TinyBert):
    def forward(self, input_ids=None, states=None):
        return states.mean(1)[:, :2]


def embedded():
    rows = [{"states": torch.randn(12, 16), "label": place % 2} for place in range(32)]
    return {"train": rows, "validation": rows, "test": rows, "classes": ("dull", "bright")}


class Lists(TwoInputs):
    def forward(self, image, numbers):
        return {"logits": super().forward(image, numbers)[0], "words": "dull"}
"""
    monkeypatch.setitem(globals(), "CODE", CODE + more)
    monkeypatch.delitem(sys.modules, "several", raising=False)
    with pytest.raises(ModelError, match=f"several:{model}.*({fault})"):
        project(
            tmp_path,
            project_writer,
            ("prepare", "baseline"),
            data={"factory": f"several:{data}"},
            model={"factory": f"several:{model}"},
        )
