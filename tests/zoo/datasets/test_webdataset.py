from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pruning.errors import DataError
from pruning.task import Task
from tasks.data_factory import as_splits
from tests.zoo.datasets.reading import digests
from zoo.datasets import webdataset


def png(grey: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (6, 4), (grey, 0, 255 - grey)).save(stream, "PNG")
    return stream.getvalue()


def write(path: Path, samples: Sequence[Mapping[str, bytes]], begin: int = 0, mode: str = "w:") -> None:
    with tarfile.open(path, mode) as file:  # type: ignore[call-overload]
        for number, parts in enumerate(samples, begin):
            for extension, content in parts.items():
                member = tarfile.TarInfo(f"some/{number:04d}.{extension}")
                member.size = len(content)
                file.addfile(member, io.BytesIO(content))


@pytest.fixture
def shards(tmp_path: Path) -> dict[str, Any]:
    for name, numbers in (("train-0", range(5)), ("train-1", range(5, 8)), ("val", range(3)), ("test", range(4))):
        write(tmp_path / f"{name}.tar", [{"png": png(n), "cls": b"%d" % (n % 3)} for n in numbers], numbers[0])
    return {
        "train": str(tmp_path / "train-*.tar"),
        "validation": [str(tmp_path / "val.tar")],
        "test": str(tmp_path / "test.tar"),
    }


def test_samples_are_read_by_number_in_the_order_of_the_shards(shards: dict[str, Any]) -> None:
    found = webdataset(**shards, classes=["a", "b", "c"])
    assert [len(part) for part in (found.train, found.validation, found.test)] == [8, 3, 4]
    image, label = found.train[6]
    assert (image.shape, image.dtype, label) == (torch.Size([3, 4, 6]), torch.float32, 0)
    assert image[:, 0, 0].tolist() == pytest.approx([6 / 255, 0, 249 / 255])
    assert [Path(path).name for path in found.sources] == ["train-0.tar", "train-1.tar", "val.tar", "test.tar"]
    splits = as_splits(found, "zoo.datasets:webdataset")
    assert splits.train.targets.tolist() == [n % 3 for n in range(8)]
    assert splits.classes == ("a", "b", "c")


def test_workers_read_the_same(shards: dict[str, Any]) -> None:
    train = webdataset(**shards).train
    assert digests(train, Task(), 3, num_workers=0) == digests(train, Task(), 3, num_workers=2)


OWN = """
import torch


def pair(parts):
    return torch.from_numpy(parts["npy"]), len(parts["txt"]) + parts["json"]["more"] + len(parts["bin"])
"""


def test_a_transform_is_given_all_parts_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.BytesIO()
    np.save(stream, np.arange(3, dtype=np.float32))
    parts = {"npy": stream.getvalue(), "txt": "Ärger".encode(), "json": json.dumps({"more": 10}).encode(), "bin": b"12"}
    write(tmp_path / "a.tar", [parts])
    place = str(tmp_path / "a.tar")
    (tmp_path / "own_transform.py").write_text(OWN, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    values, total = webdataset(place, place, place, transform="own_transform:pair").train[0]
    assert (values.tolist(), total) == ([0, 1, 2], 17)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"png": b"no image", "cls": b"1"}, r"train: sample 0: ValueError: .*a.tar: some/0000.png can't be decoded"),
        ({"png": png(1), "cls": b"one"}, r"0000.cls can't be decoded \(invalid literal"),
        ({"png": png(1)}, "a sample has the parts png; expected one image"),
        ({"png": png(1), "jpg": png(1), "cls": b"1"}, "a sample has the parts png, jpg, cls; expected one image"),
    ],
)
def test_a_sample_that_is_none_is_named(tmp_path: Path, parts: dict[str, bytes], message: str) -> None:
    write(tmp_path / "a.tar", [parts])
    place = str(tmp_path / "a.tar")
    with pytest.raises(DataError, match=message):
        as_splits(webdataset(place, place, place), "zoo.datasets:webdataset")


def test_shards_that_are_none_are_refused(tmp_path: Path, shards: dict[str, Any]) -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing-\*\.tar' matches no file"):
        webdataset(**{**shards, "test": str(tmp_path / "nothing-*.tar")})
    (tmp_path / "bad.tar").write_bytes(b"no tar file at all" * 100)
    with pytest.raises(ValueError, match=r"bad\.tar can't be read as a tar file without compression"):
        webdataset(**{**shards, "test": str(tmp_path / "bad.tar")})
    write(tmp_path / "packed.tar.gz", [{"cls": b"1"}], mode="w:gz")
    with pytest.raises(ValueError, match="without compression"):
        webdataset(**{**shards, "test": str(tmp_path / "packed.tar.gz")})
    with tarfile.open(tmp_path / "twice.tar", "w:") as file:
        for _ in range(2):
            file.addfile(tarfile.TarInfo("1.cls"))
    with pytest.raises(ValueError, match=r"holds 1\.cls twice"):
        webdataset(**{**shards, "test": str(tmp_path / "twice.tar")})
    with pytest.raises(ValueError, match="'math:nothing' names no function"):
        webdataset(**shards, transform="math:nothing")
