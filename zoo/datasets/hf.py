"""Tables of Hugging Face's `datasets`, saved in a folder or as Parquet files: read by number, without that package."""

from __future__ import annotations

import glob
import json
import os
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from io import BytesIO
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from zoo.datasets.splits import DataModule
from zoo.datasets.tokenized import Prepared

_STATE, _INFO = "state.json", "dataset_info.json"
_KEPT = 4  # row groups of Parquet files that are kept in memory, by each process


def hf(
    train: str | Sequence[str],
    validation: str | Sequence[str],
    test: str | Sequence[str],
    inputs: str | Sequence[str] = "image",
    targets: str | None = "label",
    transform: str | None = None,
    pretrained: str | None = None,
    length: int = 128,
) -> DataModule:
    """Read rows of tables; each is read when it is asked for.

    Without a transform a sample is (the column `inputs`, the column `targets`): images as float32 [3, H, W] in [0, 1],
    lists of numbers as tensors, numbers as they are. Arrow files are mapped into memory; of Parquet files, in which
    samples can't be found without their whole row group, a few groups are kept: give such files small row groups.

    With `pretrained` a sample is a dict of the inputs of a transformer by name, and `labels`: texts go through the
    folder's tokenizer, images through its image processor. See `zoo.datasets.tokenized`.

    Source: the layout that `datasets.Dataset.save_to_disk` writes, version 5, and Parquet.

    Args:
        train: The folder of a split as `save_to_disk` writes it ("saved/train"), or paths or globs of Parquet files.
        validation: Likewise.
        test: Likewise.
        inputs: Name of a column; with `pretrained` also of two columns of texts that belong together.
        targets: Name of a column; the names of its classes are taken, where it has any. None, with `pretrained`: the
            tokens themselves, for a language model.
        transform: Import string of a function: a dict of the row's values by their columns -> a sample.
        pretrained: A Hugging Face folder with a tokenizer or an image processor.
        length: Tokens in a sample, with `pretrained`.

    Raises:
        FileNotFoundError: A path or glob matches nothing.
        ValueError: A file can't be read, a table lacks a column, the transform is no function, or the folder has no
            tokenizer.
    """
    columns = [inputs] if isinstance(inputs, str) else list(inputs)
    if transform and pretrained:
        raise ValueError("transform and pretrained both say how a sample is made of a row; give one")
    if not pretrained and (len(columns) > 1 or targets is None):
        raise ValueError("several inputs, or no targets, go with pretrained or a transform alone")
    wanted = [*columns, *([] if targets is None else [targets])]
    change: Callable[[dict[str, Any]], Any] | None = _imported(transform) if transform else None
    prepared = Prepared(pretrained, columns, targets, length) if pretrained else None
    parts = [
        Rows(place, [] if transform else wanted, targets, prepared or change) for place in (train, validation, test)
    ]
    sources = [path for part in parts for path in part.paths]
    tokens = prepared.vocabulary if prepared else []
    classes = parts[0].classes if targets is not None else tokens
    return DataModule(parts[0], parts[1], parts[2], sources=sources, classes=classes, tokens=tokens or None)


class Rows(Dataset[Any]):
    """Rows of a table by number.

    Attributes:
        paths: Of the files.
        classes: Names in the column of the targets; None where it has none.
    """

    def __init__(
        self,
        place: str | Sequence[str],
        columns: Sequence[str],
        targets: str | None,
        transform: Callable[[dict[str, Any]], Any] | None,
    ) -> None:
        """Read how many rows there are, and which columns.

        Args:
            place: A folder, or paths or globs of Parquet files.
            columns: Names of the columns that are read; all of them if there are none.
            targets: The one that may name its classes.
            transform: Makes a sample of a row.

        Raises:
            FileNotFoundError: A path or glob matches nothing.
            ValueError: A file can't be read, or lacks a column.
        """
        folder = Path(place).expanduser() if isinstance(place, str) else None
        self._arrow = folder is not None and (folder / _STATE).is_file()
        self._columns, self._transform = list(columns), transform
        features: Any = {}
        if self._arrow:
            assert folder is not None, "it has been looked into"
            state = json.loads((folder / _STATE).read_text(encoding="utf-8"))
            self.paths = [str(folder / one["filename"]) for one in state["_data_files"]]
            if (folder / _INFO).is_file():
                features = json.loads((folder / _INFO).read_text(encoding="utf-8")).get("features")
        else:
            self.paths = _expanded(place)
        self._open: OrderedDict[Any, Any] = OrderedDict()
        self._process = os.getpid()
        counts = []
        for number, path in enumerate(self.paths):
            try:
                sizes, names, found = self._described(number)
            except (OSError, ValueError) as error:  # pyarrow's own faults are of these
                raise ValueError(f"{path} can't be read ({error})") from error
            features = features or found
            lacking = [one for one in self._columns if one not in names]
            if lacking:
                raise ValueError(f"{path} has no column {lacking[0]!r}; it has {', '.join(names)}")
            counts += [(number, group, size) for group, size in enumerate(sizes)]
        self._groups = [(number, group) for number, group, _ in counts]
        self._ends = list(accumulate(size for *_, size in counts))
        classes = features.get(targets, {}).get("names") if isinstance(features, Mapping) else None
        self.classes: list[str] | None = None if classes is None else list(classes)

    def __len__(self) -> int:
        """Count the rows."""
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> Any:
        """Read a row and make a sample of it.

        Raises:
            IndexError: There is no such row.
            ValueError: An image can't be decoded.
        """
        if not 0 <= index < len(self):
            raise IndexError(index)
        at = bisect_right(self._ends, index)
        table = self._table(*self._groups[at])
        first = self._ends[at - 1] if at else 0
        wanted = table.select(list(dict.fromkeys(self._columns))) if self._columns else table
        (row,) = wanted.slice(index - first, 1).to_pylist()
        decoded = {name: _decoded(value, name) for name, value in row.items()}
        if self._transform is not None:
            return self._transform(decoded)
        return tuple(decoded[name] for name in self._columns)

    def _described(self, number: int) -> tuple[list[int], list[str], Any]:
        """Return the rows of each group of a file, its columns, and what `datasets` says of them."""
        if self._arrow:
            table = self._table(number, 0)
            return [table.num_rows], list(table.column_names), {}
        file = self._file(number)
        metadata = (file.schema_arrow.metadata or {}).get(b"huggingface", b"{}")
        sizes = [file.metadata.row_group(group).num_rows for group in range(file.metadata.num_row_groups)]
        return sizes, list(file.schema_arrow.names), json.loads(metadata).get("info", {}).get("features")

    def _table(self, number: int, group: int) -> Any:
        if self._arrow:
            return self._kept(("table", number), lambda: _mapped(self.paths[number]), len(self.paths))
        return self._kept((number, group), lambda: self._file(number).read_row_group(group), _KEPT)

    def _file(self, number: int) -> Any:
        return _library("pyarrow.parquet").ParquetFile(self.paths[number], memory_map=True)

    def _kept(self, key: Any, make: Callable[[], Any], most: int) -> Any:
        if self._process != os.getpid():  # a worker shares no open file with its parent
            self._open, self._process = OrderedDict(), os.getpid()
        if key not in self._open:
            self._open[key] = make()
            while len(self._open) > most:
                self._open.popitem(last=False)
        self._open.move_to_end(key)
        return self._open[key]


def _library(name: str) -> Any:
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        raise ValueError("tables need the package pyarrow: pip install pyarrow") from error


def _mapped(path: str) -> Any:
    arrow = _library("pyarrow")
    return arrow.ipc.open_stream(arrow.memory_map(path)).read_all()


def _expanded(place: str | Sequence[str]) -> list[str]:
    found = []
    for one in [place] if isinstance(place, str) else place:
        paths = [path for path in sorted(glob.glob(str(Path(one).expanduser()))) if Path(path).is_file()]  # noqa: PTH207
        if not paths:
            raise FileNotFoundError(
                f"{one!r} matches no file; expected the folder of a split that datasets saved (with {_STATE}), or "
                "paths or globs of Parquet files"
            )
        found += paths
    return found


def _decoded(value: Any, name: str) -> Any:
    if isinstance(value, Mapping) and set(value) == {"bytes", "path"}:
        from PIL import Image  # comes with the extra `pipeline`

        try:
            image = Image.open(BytesIO(value["bytes"]) if value["bytes"] is not None else value["path"]).convert("RGB")
        except (OSError, SyntaxError) as error:
            raise ValueError(f"the image in column {name!r} can't be decoded ({error})") from error
        return torch.from_numpy(np.array(image, dtype=np.float32) / 255).permute(2, 0, 1).contiguous()
    if isinstance(value, list):
        try:
            return torch.tensor(value)
        except (TypeError, ValueError):
            return value  # of texts, or of lists of several lengths: for a transform
    return value


def _imported(reference: str) -> Callable[[dict[str, Any]], Any]:
    module, _, name = reference.partition(":")
    found: Any = getattr(import_module(module), name, None)
    if not callable(found):
        raise ValueError(f"transform {reference!r} names no function; expected MODULE:NAME")
    made: Callable[[dict[str, Any]], Any] = found
    return made
