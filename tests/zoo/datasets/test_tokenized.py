"""Columns of texts and images, prepared by the tokenizer or the image processor of a Hugging Face folder."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from tests.zoo.datasets.test_hf import table
from zoo.datasets import hf

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "small", "model", "is", "quick"]


@pytest.fixture
def folder(tmp_path: Path) -> str:
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({word: n for n, word in enumerate(WORDS)}, "[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]")
    fast.save_pretrained(tmp_path / "folder")
    return str(tmp_path / "folder")


@pytest.fixture
def places(tmp_path: Path) -> dict[str, Any]:
    found = pa.table(
        {"text": ["a small model", "quick model is a small model"], "other": ["is", "odd"], "label": [0, 1]}
    )
    for name in ("train", "validation", "test"):
        pq.write_table(found, tmp_path / f"{name}.parquet")
    return {name: str(tmp_path / f"{name}.parquet") for name in ("train", "validation", "test")}


def test_texts_become_the_inputs_of_a_model_by_name(folder: str, places: dict[str, Any]) -> None:
    data: Any = hf(**places, inputs="text", pretrained=folder, length=6)
    first, second = data.train[0], data.train[1]
    assert first["input_ids"].tolist() == [2, 4, 5, 6, 3, 0]
    assert first["attention_mask"].tolist() == [1, 1, 1, 1, 1, 0]
    assert second["input_ids"].tolist() == [2, 8, 6, 7, 4, 3], "a longer text is cut"
    assert (first["labels"], second["labels"]) == (0, 1)
    assert {tensor.dtype for name, tensor in first.items() if name != "labels"} == {torch.int64}
    assert list(data.tokens) == WORDS
    again = pickle.loads(pickle.dumps(data.train))
    assert again[1]["input_ids"].tolist() == second["input_ids"].tolist(), "a worker reads the same"


def test_two_columns_belong_together(folder: str, places: dict[str, Any]) -> None:
    data: Any = hf(**places, inputs=["text", "other"], pretrained=folder, length=8)
    assert data.test[1]["input_ids"].tolist() == [2, 8, 6, 7, 4, 3, 1, 3]


def test_without_targets_a_language_model_predicts_the_tokens(folder: str, places: dict[str, Any]) -> None:
    data: Any = hf(**places, inputs="text", targets=None, pretrained=folder, length=6)
    assert data.train[0]["labels"].tolist() == [2, 4, 5, 6, 3, -100]
    assert list(data.classes) == WORDS


def test_images_go_through_the_folders_processor(tmp_path: Path) -> None:
    kind = {"image_processor_type": "ViTImageProcessor", "size": {"height": 8, "width": 8}, "do_resize": True,
            "do_normalize": True, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}  # fmt: skip
    folder = tmp_path / "vit"
    folder.mkdir()
    (folder / "preprocessor_config.json").write_text(json.dumps(kind))
    for name in ("train", "validation", "test"):
        pq.write_table(table(range(2)), tmp_path / f"{name}.parquet")
    places: dict[str, Any] = {name: str(tmp_path / f"{name}.parquet") for name in ("train", "validation", "test")}
    data: Any = hf(**places, pretrained=str(folder))
    pixels = data.train[1]["pixel_values"]
    assert (pixels.shape, pixels.dtype) == ((3, 8, 8), torch.float32)
    assert pixels[2].min() == 1, "the image is blue"
    assert pixels[1].max() == -1


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"pretrained": "nowhere"}, "there is no folder 'nowhere' with a tokenizer; nothing is downloaded"),
        ({"pretrained": "."}, r"'\.' has no tokenizer that can be loaded"),
        ({"transform": "json:loads"}, "give one"),
        ({"pretrained": None, "targets": None}, "go with pretrained"),
        ({"inputs": "txt"}, "no column 'txt'; it has text, other, label"),
    ],
)
def test_what_can_not_be_prepared_is_refused(
    folder: str,
    places: dict[str, Any],
    change: dict[str, Any],
    text: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=text):
        hf(**{**places, "inputs": "text", "pretrained": folder, **change})


def test_a_column_that_holds_no_texts_is_named(folder: str, places: dict[str, Any]) -> None:
    data: Any = hf(**places, inputs="label", pretrained=folder)
    with pytest.raises(ValueError, match="column 'label' holds a int"):
        data.train[0]
