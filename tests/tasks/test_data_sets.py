"""Data sets as users have them become splits, or are refused in one message that names split, sample and line."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from pruning.embedding import Embedding
from pruning.errors import DataError
from pruning.task import Classification, MultiLabel, Regression, Segmentation, Task, TokenClassification
from tasks.data import save_splits
from tasks.data_factory import as_splits
from zoo.datasets.splits import Samples, Splits

INPUTS, TARGETS = torch.randn(90, 3, generator=torch.Generator().manual_seed(0)), torch.arange(90) % 4


class Listed(Dataset[Any]):
    """Samples that are made as they are asked for."""

    def __init__(self, first: int, count: int, make: Any = lambda x, y: (x, y)) -> None:
        self._first, self._count, self._make = first, count, make

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Any:
        return self._make(INPUTS[self._first + index], int(TARGETS[self._first + index]))


def parts(make: Any = lambda x, y: (x, y)) -> dict[str, Any]:
    return {"train": Listed(0, 50, make), "validation": Listed(50, 20, make), "test": Listed(70, 20, make)}


def shuffled() -> dict[str, Any]:
    return {name: DataLoader(part, batch_size=7, shuffle=True, drop_last=True) for name, part in parts().items()}


def joined(samples: list[Any]) -> tuple[Tensor, Tensor]:
    return torch.stack([sample["x"] for sample in samples]), torch.tensor([sample["y"] for sample in samples])


WANTED = Splits(
    Samples(INPUTS[:50], TARGETS[:50]),
    Samples(INPUTS[50:70], TARGETS[50:70]),
    Samples(INPUTS[70:], TARGETS[70:]),
    ("0", "1", "2", "3"),
)


class Stream(IterableDataset[Any]):
    """Samples one after the other: all of a split, in an order that may change, without end, or with a fault."""

    def __init__(self, name: str = "train", flaw: str = "") -> None:
        self.part, self.flaw, self.passes = dict(WANTED.named())[name], flaw, 0

    def __iter__(self) -> Iterator[Any]:
        self.passes += 1
        numbers = torch.randperm(len(self.part)) if self.flaw == "shuffled" else torch.arange(len(self.part))
        for number in numbers.tolist()[: -1 if self.flaw == "shorter" and self.passes > 1 else None]:
            yield self.part.inputs[number], self.part.targets[number]
        if self.flaw == "longer" and self.passes > 1:
            yield self.part.inputs[0], self.part.targets[0]
        if self.flaw == "raises":
            raise OSError("shard 3 is gone")
        while self.flaw == "endless":
            yield torch.zeros(1 << 20), 0


class Picks(Regression):
    def unpack(self, batch: Any) -> tuple[Any, Any]:
        return batch["x"], batch["count"]


@pytest.mark.parametrize(
    ("make", "task"),
    [
        (lambda x, y: x, Classification()),
        (lambda x, y: x, Embedding()),
        (lambda x, y: (x,), Embedding()),
        (lambda x, y: {"pixels": x}, Embedding()),
        (lambda x, y: x, None),
    ],
)
def test_samples_of_inputs_alone_have_no_labels(make: Any, task: Task | None) -> None:
    found = as_splits({**parts(make), "classes": ("a", "b")}, "data:load", task)
    assert not found.labelled
    assert torch.equal(found.validation.inputs, WANTED.validation.inputs)


NUMBERS = {"train": range(50), "validation": range(50, 70), "test": range(70, 90)}


@pytest.mark.parametrize("kind", ["subset", "batches", "own", "weights"])
def test_sampler_that_reads_a_part_gives_that_part(kind: str) -> None:
    """As where one data set is divided by the samplers of its loaders; the order is the pipeline's."""

    def loader(numbers: range) -> DataLoader[Any]:
        dataset, own = Listed(0, 90), list(numbers)
        if kind == "weights":
            weights = [float(number in numbers) for number in range(90)]
            return DataLoader(dataset, sampler=WeightedRandomSampler(weights, len(own), replacement=False))
        if kind == "batches":
            return DataLoader(dataset, batch_sampler=BatchSampler(SubsetRandomSampler(own), 7, drop_last=True))
        return DataLoader(dataset, sampler=SubsetRandomSampler(own) if kind == "subset" else own[::-1])

    found = as_splits({name: loader(numbers) for name, numbers in NUMBERS.items()}, "data:load", Classification())
    for (_, expected), (_, one) in zip(WANTED.named(), found.named(), strict=True):
        assert torch.equal(one.inputs, expected.inputs)
        assert torch.equal(one.targets, expected.targets)


@pytest.mark.parametrize(
    ("sampler", "message"),
    [
        (WeightedRandomSampler([1.0] * 50, 120), "WeightedRandomSampler, gives some samples more than once"),
        (WeightedRandomSampler([1.0] * 50, 20, replacement=False), "WeightedRandomSampler, gives other samples each"),
        (RandomSampler(range(50), replacement=True), "RandomSampler, gives some samples more than once"),
        (RandomSampler(range(50), num_samples=20), "RandomSampler, gives other samples each"),
        (itertools.repeat(3), "repeat, gives some samples more than once, or has no end"),
        ([3, 50], "gives the number 50; the data set has 0 to 49"),
        ([[3], [4]], r"gives \[3\]; expected numbers of samples"),
        ([], "gives no samples"),
    ],
)
def test_sampler_whose_samples_arent_a_part_is_refused(sampler: Any, message: str) -> None:
    """How often a sample is seen would be lost without a word."""
    given = {**parts(), "train": DataLoader(Listed(0, 50), sampler=sampler)}
    with pytest.raises(DataError, match=f"'data:load': train: the DataLoader's sampler.*{message}"):
        as_splits(given, "data:load", Classification())


@pytest.mark.parametrize(
    "found",
    [
        {name: Stream(name) for name in ("train", "validation", "test")},
        {**parts(), "test": DataLoader(Stream("test"), batch_size=3)},
        parts(),
        SimpleNamespace(**parts()),
        parts(lambda x, y: {"image": x, "label": y}),
        parts(lambda x, y: (x.numpy(), y)),
        shuffled(),
        {
            name: DataLoader(part, batch_size=9, collate_fn=joined)
            for name, part in parts(lambda x, y: {"x": x, "y": y}).items()
        },
        {name: TensorDataset(part.inputs, part.targets) for name, part in WANTED.named()},
        {**dict(WANTED.named()), "classes": WANTED.classes},
    ],
)
def test_the_same_samples_however_they_come(found: Any) -> None:
    assert as_splits(found, "my:data", Classification()).fingerprint() == WANTED.fingerprint()


def test_names_of_classes_are_the_data_set_s_own() -> None:
    found = parts()
    found["train"].classes = ["a", "b", "c", "d"]
    assert as_splits(found, "my:data", Classification()).classes == ("a", "b", "c", "d")
    assert as_splits(parts(lambda x, y: (x, float(y))), "my:data", Regression()).classes == ()


def test_a_task_takes_samples_apart() -> None:
    class Own(Classification):
        def unpack(self, batch: Any) -> tuple[Any, Any]:
            return batch["pixels"], batch["species"]["id"]

    found = as_splits(parts(lambda x, y: {"pixels": x, "species": {"id": y}}), "my:data", Own())
    assert found.fingerprint() == WANTED.fingerprint()


def raising(x: Tensor, y: int) -> Any:
    if y == 3:
        raise OSError("cat.jpg is truncated")
    return x, y


class ReadOnce:
    """A sample that can't be read a second time."""

    def __init__(self) -> None:
        self.seen = 0

    def __call__(self, x: Tensor, y: int) -> Any:
        self.seen += 1
        if self.seen > 50:  # a split has so many, and they are one batch
            raise ValueError("the file is closed")
        return x, y


def random(x: Tensor, y: int) -> Any:
    return x + torch.rand(3), y


WRONG: list[tuple[Any, Task, str]] = [
    (
        parts(raising),
        Classification(),
        r"'my:data': train: sample 3: OSError: cat.jpg is truncated \(.*test_data_sets.py, line",
    ),
    (
        parts(ReadOnce()),
        Classification(),
        r"'my:data': validation: sample 0: ValueError: the file is closed \(.*test_data_sets.py, line",
    ),
    (parts(random), Classification(), "train gives other samples each time it is read.*training.augment"),
    (
        parts(lambda x, y: (x, x, y)),
        Classification(),
        "samples 0 to 49 can't be unpacked: DataError: a sample is 3 values",
    ),
    (
        parts(lambda x, y: (x[: 1 + y % 2], y)),
        Classification(),
        "samples 0 to 49 can't be joined to a batch without a collate_fn of your own: RuntimeError: stack",
    ),
    (parts(lambda x, y: (object(), y)), Classification(), "of your own: TypeError: default_collate"),
    (
        parts(lambda x, y: {"a": x, "b": "words", "label": y}),
        Classification(),
        "input 'b' is a list",
    ),
    (parts(lambda x, y: (x, "cat")), Classification(), "targets are texts, such as 'cat'; expected numbers"),
    (parts(lambda x, y: (x[: 1 + y % 2], y)), Classification(), "joined to a batch without a collate_fn of your own: "),
    (parts(lambda x, y: {"x": x, "y": y}), Picks(), r"can't be unpacked \(keys: x, y\): KeyError: 'count'"),
    (parts(lambda x, y: {"a": x}), Classification(), "has the keys a; expected exactly one of labels"),
    (parts(lambda x, y: (x, {"boxes": x, "labels": x})), Classification(), "targets are dict of boxes, labels"),
    (parts(lambda x, y: ((x * 255).byte(), y)), Classification(), "inputs are torch.uint8, expected"),
    (parts(lambda x, y: (x, float(y))), Classification(), "float32; expected the index of each sample's class"),
    (parts(lambda x, y: (x, y)), Regression(), "train: targets are a tensor .* of int64; expected floating-point"),
    (parts(lambda x, y: (x, y)), Segmentation(), "expected masks of class indices.*set task.name"),
    (parts(lambda x, y: (x, torch.tensor([y, 1]))), MultiLabel(), r"targets lie in \[0, 3\]; expected 0 or 1"),
    (parts(lambda x, y: (x * float("nan"), y)), Classification(), "not finite"),
    (
        {**parts(), "validation": [(INPUTS[i] / (i != 53), int(TARGETS[i])) for i in range(50, 70)]},
        Classification(),
        "validation: 1 of 20 inputs hold values that are not finite, the first of them number 3,",
    ),
    (
        {name: [(INPUTS[i], INPUTS[i, :1] / (i != 7)) for i in range(20)] for name in ("train", "validation", "test")},
        Regression(),
        "train: targets of 1 of 20 samples hold .* the first of them number 7, counted from 0; clean the data$",
    ),
    (
        {**parts(), "validation": Listed(50, 20, lambda x, y: (x, 2))},
        Classification(),
        "validation: all targets are class 2 \\('2'\\) of 4: .* nothing can be learned or judged",
    ),
    (
        {
            **parts(lambda x, y: (x, torch.tensor([y, -100]))),
            "train": Listed(0, 9, lambda x, y: (x, torch.tensor([1, -100]))),
        },
        TokenClassification(),
        "train: all targets are class 1 ",
    ),
    ({**parts(), "test": Listed(0, 0)}, Classification(), "test holds no samples"),
    ({**parts(), "test": None}, Classification(), "test is a NoneType; expected a torch Dataset or DataLoader"),
    (
        {name: iter([]) for name in ("train", "validation", "test")},
        Classification(),
        "train is a list_iterator, which can be read only once; expected a torch Dataset, an IterableDataset",
    ),
    (
        {**parts(), "test": (x for x in range(0))},
        Classification(),
        "test is a generator; expected a torch Dataset or DataL",
    ),
    ({"train": Listed(0, 9), "test": Listed(0, 9)}, Classification(), "returned a dict \\('validation'\\)"),
    *(
        (
            {**parts(), "train": Stream(flaw=flaw)},
            Classification(),
            "train is a stream that gives other samples each time",
        )
        for flaw in ("shuffled", "shorter", "longer")
    ),
    ({**parts(), "train": Stream(flaw="raises")}, Classification(), "train: sample 50: OSError: shard 3 is gone"),
    (
        {**parts(), "train": Stream(flaw="endless")},
        Classification(),
        r"train is a stream, a Stream, of more than 1,073,741,824 bytes .*Give a map-style data set",
    ),
    ({**parts(), "classes": ["only"]}, Classification(), "expected at least two different names"),
    ({**parts(), "classes": ["a", "b"]}, Classification(), r"targets of train lie in \[0, 3\], expected \[0, 1\]"),
    (Splits(WANTED.train, WANTED.validation, WANTED.test, ()), Classification(), "the data have no classes"),
]


@pytest.mark.parametrize(("found", "task", "message"), WRONG)
def test_what_is_wrong_is_said_once(found: Any, task: Task, message: str) -> None:
    with pytest.raises(DataError, match=message):
        as_splits(found, "my:data", task)


def test_data_beyond_the_memory_are_refused_before_they_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=1000))
    with pytest.raises(DataError, match=r"train holds 50 samples of 20 bytes, 0.0 GiB as tensors"):
        as_splits(parts(), "my:data", Classification())


def test_inputs_that_are_their_own_targets_are_written_as_both(tmp_path: Path) -> None:
    tokens = torch.randint(7, (12, 5))
    parts = [Samples(tokens[some], tokens[some]) for some in (slice(6), slice(6, 9), slice(9, 12))]
    save_splits(Splits(parts[0], parts[1], parts[2], tuple("abcdefg")), tmp_path)
    for name, part in zip(("train", "validation", "test"), parts, strict=True):
        found = load_file(tmp_path / f"{name}.safetensors")
        assert found.keys() == {"inputs", "targets"}
        assert all(torch.equal(one, part.inputs) for one in found.values())
