from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pruning.errors import DataError
from pruning.task import CausalLM
from tasks.data_factory import as_splits
from tests.zoo.datasets.reading import digests
from zoo.datasets import text_lines

OWN = '''
def letters(text):
    """a: 1, b: 2, …"""
    return [ord(letter) - 96 for letter in text if letter.isalpha()]


nothing = 3
'''


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    (tmp_path / "own_letters.py").write_text(OWN, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "a.txt").write_bytes(b"abc\n\n  \nde fg\r\nabcdefgh")
    (tmp_path / "b.txt").write_bytes(b"z\n")
    first, second = str(tmp_path / "a.txt"), str(tmp_path / "b.txt")
    return {
        "train": [first, second],
        "validation": first,
        "test": second,
        "tokenizer": "own_letters:letters",
        "length": 5,
        "vocabulary": 27,
    }


def test_a_line_is_a_sample_cut_or_filled(files: dict[str, Any]) -> None:
    found = text_lines(**files)
    assert [len(part) for part in (found.train, found.validation, found.test)] == [4, 3, 1]
    rows = [[part.tolist() for part in found.train[number]] for number in range(4)]
    assert rows == [
        [[1, 2, 3, 0, 0], [1, 2, 3, -100, -100]],
        [[4, 5, 6, 7, 0], [4, 5, 6, 7, -100]],
        [[1, 2, 3, 4, 5], [1, 2, 3, 4, 5]],
        [[26, 0, 0, 0, 0], [26, -100, -100, -100, -100]],
    ]
    splits = as_splits(found, "zoo.datasets:text_lines", CausalLM())
    assert (len(splits.classes), splits.train.inputs.shape) == (27, (4, 5))
    assert [Path(path).name for path in found.sources] == ["a.txt", "b.txt", "a.txt", "b.txt"]


def test_workers_read_the_same(files: dict[str, Any]) -> None:
    train = text_lines(**files).train
    assert digests(train, CausalLM(), 2, num_workers=0) == digests(train, CausalLM(), 2, num_workers=2)


@pytest.mark.parametrize(
    ("content", "more", "message"),
    [
        (b"abc\n123\n", {}, r"train: sample 1: ValueError: .*a.txt, the line at byte 4: the tokenizer gave no token"),
        (b"abc", {"vocabulary": 3}, r"gave tokens from 1 to 3; expected some in \[0, 2\]"),
        (b"ab\xff", {}, "the line at byte 0: not UTF-8"),
    ],
)
def test_a_line_that_is_no_sample_is_named(
    files: dict[str, Any], content: bytes, more: dict[str, Any], message: str
) -> None:
    Path(files["validation"]).write_bytes(content)
    with pytest.raises(DataError, match=message):
        as_splits(text_lines(**files | more), "zoo.datasets:text_lines", CausalLM())


def test_what_is_missing_is_named(files: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.txt"):
        text_lines(**{**files, "test": str(tmp_path / "nowhere.txt")})
    with pytest.raises(ValueError, match="'own_letters:nothing' names no function"):
        text_lines(**{**files, "tokenizer": "own_letters:nothing"})
    with pytest.raises(
        FileNotFoundError, match=r"nowhere\.json' is no file; expected a tokenizer.json, or MODULE:NAME"
    ):
        text_lines(**{**files, "tokenizer": "nowhere.json"})


def test_a_tokenizer_of_hugging_face_is_read(files: dict[str, Any], tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({"abc": 3, "?": 1}, unk_token="?"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.save(str(tmp_path / "tokenizer.json"))
    found = text_lines(**{**files, "tokenizer": str(tmp_path / "tokenizer.json")})
    assert found.train[0][0].tolist() == [3, 0, 0, 0, 0]
    assert found.train[1][0].tolist() == [1, 1, 0, 0, 0]
    assert str(tmp_path / "tokenizer.json") in found.sources
    assert found.tokens == found.classes
    assert list(found.tokens or ())[:4] == ["0", "?", "2", "abc"]
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(ValueError, match=r"bad\.json' can't be read"):
        text_lines(**{**files, "tokenizer": str(tmp_path / "bad.json")})
