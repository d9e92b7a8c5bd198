"""Rows of tables as a transformer's inputs: texts through the tokenizer of a Hugging Face folder, images likewise."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

IGNORED = -100
"""The target of a token that fills up a text."""


class Prepared:
    """Makes a sample of a row: a dict of the model's inputs by name, and `labels`.

    Texts become `input_ids`, `attention_mask` and whatever else the tokenizer gives, all int64 [length]; an image
    becomes `pixel_values`. Without a column of targets the labels are the tokens themselves, −100 where the text has
    ended: a language model predicts each from those before it.
    """

    def __init__(self, folder: str, columns: Sequence[str], targets: str | None, length: int) -> None:
        """Load the folder's tokenizer, or its image processor where it has no tokenizer; nothing is downloaded.

        Args:
            folder: A Hugging Face folder.
            columns: One of texts or images, or two of texts that belong together.
            targets: A column of numbers; None for those of a language model.
            length: Tokens in a sample: longer texts are cut, shorter ones filled.

        Raises:
            ValueError: There is no such folder, or it has neither; or transformers isn't installed.
        """
        try:
            from transformers import AutoImageProcessor, AutoTokenizer
        except ModuleNotFoundError as error:
            raise ValueError(f"{folder!r} is read by transformers: pip install 'secateur[hf]'") from error
        if not Path(folder).is_dir():
            raise ValueError(f"there is no folder {folder!r} with a tokenizer; nothing is downloaded")
        self._columns, self._targets, self._length, self._folder = tuple(columns), targets, length, folder
        self._tokenizer: Any = None
        self._processor: Any = None
        held = {path.name for path in Path(folder).iterdir()}
        try:
            if "preprocessor_config.json" in held and not held & {"tokenizer.json", "tokenizer_config.json"}:
                self._processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
            else:
                self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except Exception as error:
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ValueError(
                f"{folder!r} has no tokenizer that can be loaded ({first}); bring tokenizer.json and "
                "tokenizer_config.json along, or name another folder"
            ) from error
        if self._tokenizer is not None and self._tokenizer.pad_token is None:
            if self._tokenizer.eos_token is None:
                raise ValueError(f"the tokenizer of {folder!r} has neither a pad token nor an end to fill texts with")
            self._tokenizer.pad_token = self._tokenizer.eos_token

    @property
    def vocabulary(self) -> list[str]:
        """The text of each token id; empty where there is no tokenizer."""
        if self._tokenizer is None:
            return []
        return [str(one) for one in self._tokenizer.convert_ids_to_tokens(range(len(self._tokenizer)))]

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Return the sample of a row.

        Raises:
            ValueError: A value is no text, or no image, or no number.
        """
        values = [row[column] for column in self._columns]
        found = {"pixel_values": self._image(values[0])} if self._tokenizer is None else self._tokens(values)
        if self._targets is None:
            ids = found["input_ids"]
            return {**found, "labels": ids.masked_fill(found["attention_mask"] == 0, IGNORED)}
        return {**found, "labels": row[self._targets]}

    def _tokens(self, values: Sequence[Any]) -> dict[str, Tensor]:
        for column, value in zip(self._columns, values, strict=True):
            if not isinstance(value, str):
                raise ValueError(f"column {column!r} holds a {type(value).__name__}; {self._folder!r} takes texts")
        made = self._tokenizer(*values, truncation=True, padding="max_length", max_length=self._length)
        return {name: torch.tensor(one, dtype=torch.int64) for name, one in made.items()}

    def _image(self, value: Any) -> Tensor:
        if not isinstance(value, Tensor) or value.ndim != 3:
            held = type(value).__name__
            raise ValueError(f"column {self._columns[0]!r} holds a {held}; {self._folder!r} takes images")
        pixels = (value.permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
        made = self._processor(np.ascontiguousarray(pixels), return_tensors="np", input_data_format="channels_last")
        return torch.from_numpy(np.ascontiguousarray(made["pixel_values"][0], dtype=np.float32))
