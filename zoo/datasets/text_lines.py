"""Lines of text files as token ids, for language models."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from zoo.datasets.splits import DataModule

IGNORED = -100
"""The target where a line is shorter than the others: the tasks of tokens leave it out."""

Tokenizer = Callable[[str], Sequence[int]]
"""A line -> its token ids."""


def text_lines(
    train: str | Sequence[str],
    validation: str | Sequence[str],
    test: str | Sequence[str],
    tokenizer: str,
    length: int,
    vocabulary: int,
    pad: int = 0,
) -> DataModule:
    """Read UTF-8 text files, a sample a line; lines without text are passed over.

    A sample is (ids, targets), both int64 [length]: longer lines are cut, shorter ones filled with `pad`, whose targets
    are −100. For the task `causal_lm`, which predicts each token from those before it.

    Args:
        train: Path of a file, or several.
        validation: Likewise.
        test: Likewise.
        tokenizer: Import string of a function, text -> token ids; or the path of a `tokenizer.json` of Hugging Face's
            `tokenizers`, which then has to be installed.
        length: Tokens in a sample.
        vocabulary: Number of different tokens; the model's factory is offered it as num_classes. They are the classes,
            by the texts that a `tokenizer.json` gives them, else by their numbers.
        pad: Token id that fills short lines.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: The tokenizer can't be made, or, when a line is asked for, it gives no token, or one outside the
            vocabulary.
    """
    made, texts = _tokenizer(tokenizer)
    parts = [
        Lines([files] if isinstance(files, str) else files, made, length, vocabulary, pad)
        for files in (train, validation, test)
    ]
    sources = [path for part in parts for path in part.paths]
    if ":" not in tokenizer:
        sources.append(tokenizer)
    classes = [texts(token) or str(token) for token in range(vocabulary)]
    return DataModule(parts[0], parts[1], parts[2], sources=sources, classes=classes, tokens=classes)


class Lines(Dataset[tuple[Tensor, Tensor]]):
    """Lines by number; where each begins is kept in memory, nothing else.

    Attributes:
        paths: Of the files.
    """

    def __init__(self, paths: Sequence[str], tokenizer: Tokenizer, length: int, vocabulary: int, pad: int) -> None:
        """Find where lines begin.

        Args:
            paths: Of the files.
            tokenizer: A line -> its token ids.
            length: Tokens in a sample.
            vocabulary: Number of different tokens.
            pad: Token id that fills short lines.
        """
        self.paths = [str(Path(path).expanduser()) for path in paths]
        self._tokenizer, self._length, self._vocabulary, self._pad = tokenizer, length, vocabulary, pad
        self._file, self._starts, self._sizes = array("i"), array("q"), array("q")
        for number, path in enumerate(self.paths):
            start = 0
            with Path(path).open("rb") as file:
                for line in file:
                    if line.strip():
                        self._file.append(number)
                        self._starts.append(start)
                        self._sizes.append(len(line))
                    start += len(line)

    def __len__(self) -> int:
        """Count the lines that hold text."""
        return len(self._starts)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Read a line: its token ids and its targets, int64 [length].

        Raises:
            ValueError: It isn't UTF-8, or the tokenizer gives no token or one outside the vocabulary.
        """
        path, start = self.paths[self._file[index]], self._starts[index]
        with Path(path).open("rb") as file:
            file.seek(start)
            content = file.read(self._sizes[index])
        where = f"{path}, the line at byte {start:,}"
        try:
            text = content.decode().rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise ValueError(f"{where}: not UTF-8 ({error})") from error
        ids = list(self._tokenizer(text))[: self._length]
        if not ids or min(ids) < 0 or max(ids) >= self._vocabulary:
            found = f"tokens from {min(ids)} to {max(ids)}" if ids else "no token"
            raise ValueError(f"{where}: the tokenizer gave {found}; expected some in [0, {self._vocabulary - 1}]")
        fill = self._length - len(ids)
        return torch.tensor(ids + [self._pad] * fill), torch.tensor(ids + [IGNORED] * fill)


def _tokenizer(reference: str) -> tuple[Tokenizer, Callable[[int], str | None]]:
    """Return what makes token ids of a text, and what says the text of one of them, where that is known."""
    if ":" in reference:
        module, _, name = reference.partition(":")
        found: Any = getattr(import_module(module), name, None)
        if not callable(found):
            raise ValueError(f"tokenizer {reference!r} names no function; expected MODULE:NAME")
        made: Tokenizer = found
        return made, lambda _: None
    if not Path(reference).is_file():
        raise FileNotFoundError(f"tokenizer {reference!r} is no file; expected a tokenizer.json, or MODULE:NAME")
    try:
        loaded: Any = import_module("tokenizers").Tokenizer.from_file(reference)
    except ModuleNotFoundError as error:
        raise ValueError(f"tokenizer {reference!r} needs the package tokenizers: pip install tokenizers") from error
    except Exception as error:  # the package raises Exception itself
        raise ValueError(f"tokenizer {reference!r} can't be read ({error})") from error
    return lambda text: list(loaded.encode(text).ids), loaded.id_to_token
