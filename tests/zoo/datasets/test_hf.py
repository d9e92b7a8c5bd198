from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from pruning.task import Task
from tasks.data_factory import as_splits
from tests.zoo.datasets.reading import digests
from zoo.datasets import hf

FEATURES = {"image": {"_type": "Image"}, "label": {"names": ["a", "b", "c"], "_type": "ClassLabel"}}


def table(numbers: range) -> pa.Table:
    images = []
    for number in numbers:
        stream = io.BytesIO()
        Image.new("RGB", (6, 4), (number, 0, 255)).save(stream, "PNG")
        images.append({"bytes": stream.getvalue(), "path": None})
    found = {"image": images, "label": [n % 3 for n in numbers], "row": [[float(n), 1.0] for n in numbers]}
    return pa.table(found, metadata={"huggingface": json.dumps({"info": {"features": FEATURES}})})


def save(folder: Path, *shards: range) -> None:
    """Write a split as `datasets.Dataset.save_to_disk` does."""
    folder.mkdir()
    names = [f"data-{number:05d}-of-{len(shards):05d}.arrow" for number in range(len(shards))]
    for name, numbers in zip(names, shards, strict=True):
        found = table(numbers)
        with pa.OSFile(str(folder / name), "wb") as file, pa.ipc.new_stream(file, found.schema) as writer:
            writer.write_table(found, max_chunksize=2)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
    (folder / "dataset_info.json").write_text(json.dumps({"features": FEATURES}))


@pytest.fixture
def places(tmp_path: Path) -> dict[str, dict[str, Any]]:
    save(tmp_path / "train", range(5), range(5, 8))
    save(tmp_path / "validation", range(3))
    save(tmp_path / "test", range(4))
    for name, numbers in (
        ("train-0", range(5)),
        ("train-1", range(5, 8)),
        ("validation", range(3)),
        ("test", range(4)),
    ):
        pq.write_table(table(numbers), tmp_path / f"{name}.parquet", row_group_size=2)
    names = ("train", "validation", "test")
    return {
        "folders": {name: str(tmp_path / name) for name in names},
        "parquet": {name: str(tmp_path / f"{name}*.parquet") for name in names},
    }


@pytest.mark.parametrize("kind", ["folders", "parquet"])
def test_rows_are_read_by_number(places: dict[str, dict[str, Any]], kind: str) -> None:
    found = hf(**places[kind])
    assert [len(part) for part in (found.train, found.validation, found.test)] == [8, 3, 4]
    assert found.classes == ["a", "b", "c"]
    assert len(found.sources) == 4
    image, label = found.train[6]
    assert (image.shape, image.dtype, label) == (torch.Size([3, 4, 6]), torch.float32, 0)
    assert image[:, 0, 0].tolist() == pytest.approx([6 / 255, 0, 1])
    assert [found.train[number][1] for number in (7, 0, 5, 4)] == [1, 0, 2, 1]
    with pytest.raises(IndexError):
        found.train[8]
    rows = hf(**places[kind], inputs="row")
    assert rows.train[7][0].tolist() == [7, 1]
    splits = as_splits(rows, "zoo.datasets:hf")
    assert splits.train.inputs[:, 0].tolist() == list(range(8))


@pytest.mark.parametrize("kind", ["folders", "parquet"])
def test_workers_read_the_same(places: dict[str, dict[str, Any]], kind: str) -> None:
    train = hf(**places[kind]).train
    assert digests(train, Task(), 3, num_workers=0) == digests(train, Task(), 3, num_workers=2)


OWN = """
def sample(row):
    return row["image"].mean((1, 2)), row["label"] + int(row["row"][1])
"""


def test_a_transform_is_given_the_whole_row(
    places: dict[str, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_rows.py").write_text(OWN, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    pixels, label = hf(**places["folders"], transform="own_rows:sample").train[5]
    assert (pixels.tolist(), label) == (pytest.approx([5 / 255, 0, 1]), 3)


def test_what_is_missing_is_named(places: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    def refused(error: type[Exception], message: str, **more: Any) -> None:
        with pytest.raises(error, match=message):
            hf(**places["parquet"] | more)

    refused(FileNotFoundError, "nowhere' matches no file; expected the folder", test=str(tmp_path / "nowhere"))
    refused(ValueError, "has no column 'pixels'; it has image, label, row", inputs="pixels")
    (tmp_path / "bad.parquet").write_bytes(b"no table" * 100)
    refused(ValueError, r"bad\.parquet can't be read", test=str(tmp_path / "bad.parquet"))
    refused(ValueError, "'math:nothing' names no function", transform="math:nothing")
    (tmp_path / "test" / "data-00000-of-00001.arrow").unlink()
    with pytest.raises(ValueError, match=r"00001\.arrow can't be read"):
        hf(**places["folders"])
