"""Samples in tar files, as WebDataset lays them out: read by number, so that they need not be streamed."""

from __future__ import annotations

import glob
import json
import os
import tarfile
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from zoo.datasets.splits import DataModule

IMAGES = frozenset({"jpg", "jpeg", "png"})


def webdataset(
    train: str | Sequence[str],
    validation: str | Sequence[str],
    test: str | Sequence[str],
    transform: str | None = None,
    classes: Sequence[str] | None = None,
) -> DataModule:
    """Read samples from tar files, in the order in which they lie there.

        0001.jpg  0001.cls      a sample: the files of one name up to its first dot, one after the other
        0002.jpg  0002.cls

    The tar files are looked through once when they are opened, from header to header; a sample is read when it is asked
    for. Without a transform a sample is (its image, float32 [3, H, W] in [0, 1], its class).

    Source: the format of github.com/webdataset/webdataset; ours reads local tar files without compression.

    Args:
        train: Paths of tar files, or globs such as "shards/train-*.tar".
        validation: Likewise.
        test: Likewise.
        transform: Import string of a function: a dict of the sample's decoded parts by their extensions (jpg, jpeg and
            png as float32 tensors, cls as int, json, txt as str, npy as an array; others as bytes) -> a sample.
        classes: Their names.

    Raises:
        FileNotFoundError: A path or glob matches no file.
        ValueError: A file is no tar file, or compressed, or the samples of a split can't be told apart.
    """
    change = _imported(transform) if transform else _image_and_class
    parts = [TarSamples(_expanded(shards), change) for shards in (train, validation, test)]
    return DataModule(
        train=parts[0],
        validation=parts[1],
        test=parts[2],
        sources=[path for part in parts for path in part.shards],
        classes=None if classes is None else list(classes),
    )


class TarSamples(Dataset[Any]):
    """Samples of tar files by number.

    Attributes:
        shards: Paths of the files.
    """

    def __init__(self, shards: Sequence[str], transform: Callable[[dict[str, Any]], Any]) -> None:
        """Look through the files' headers.

        Args:
            shards: Paths of the files.
            transform: Makes a sample of its decoded parts.

        Raises:
            ValueError: A file is no tar file, or a name occurs twice.
        """
        self.shards, self._transform = list(shards), transform
        # Numbers in arrays: a million samples as dicts would take most of a gigabyte.
        self._shard, self._kind, self._first = array("i"), array("i"), array("q")
        self._starts, self._sizes = array("q"), array("q")
        self._kinds: dict[tuple[str, ...], int] = {}
        for shard, path in enumerate(self.shards):
            key, extensions = None, list[str]()
            for name, start, size in _members(path):
                folder, _, file = name.rpartition("/")
                base, _, extension = file.partition(".")
                if (folder, base) != key:
                    self._end(shard, extensions)
                    key, extensions = (folder, base), []
                if extension.lower() in extensions:
                    raise ValueError(f"{path} holds {name} twice; expected one part of each kind in a sample")
                extensions.append(extension.lower())
                self._starts.append(start)
                self._sizes.append(size)
            self._end(shard, extensions)

    def _end(self, shard: int, extensions: list[str]) -> None:
        if extensions:
            self._shard.append(shard)
            self._kind.append(self._kinds.setdefault(tuple(extensions), len(self._kinds)))
            self._first.append(len(self._starts) - len(extensions))

    def __len__(self) -> int:
        """Count the samples."""
        return len(self._first)

    def __getitem__(self, index: int) -> Any:
        """Read a sample.

        Raises:
            ValueError: One of its parts can't be decoded.
        """
        path, first, decoded = self.shards[self._shard[index]], self._first[index], {}
        for place, extension in enumerate(list(self._kinds)[self._kind[index]], first):
            start, size = self._starts[place], self._sizes[place]
            try:
                decoded[extension] = _decoded(extension, _read(path, start, size))
            except (OSError, ValueError, SyntaxError) as error:
                raise ValueError(f"{path}: {_name(path, start)} can't be decoded ({error})") from error
        return self._transform(decoded)


def _expanded(shards: str | Sequence[str]) -> list[str]:
    found = []
    for one in [shards] if isinstance(shards, str) else shards:
        paths = sorted(glob.glob(str(Path(one).expanduser())))  # noqa: PTH207 - an absolute glob
        if not paths:
            raise FileNotFoundError(
                f"{one!r} matches no file; expected paths of tar files, or globs such as train-*.tar"
            )
        found += paths
    return found


def _members(path: str) -> Iterator[tuple[str, int, int]]:
    """Yield the name of each file, where its bytes begin, and how many they are."""
    try:
        with tarfile.open(path, "r:") as file:
            for one in file:
                if one.isfile():
                    yield one.name, one.offset_data, one.size
                vars(file)["members"] = []  # it would keep them all
    except (tarfile.TarError, OSError) as error:
        raise ValueError(f"{path} can't be read as a tar file without compression ({error})") from error


def _name(path: str, start: int) -> str:
    """Return the name in the header before a file's bytes."""
    return tarfile.TarInfo.frombuf(_read(path, start - tarfile.BLOCKSIZE, tarfile.BLOCKSIZE), "utf-8", "replace").name


def _read(path: str, start: int, size: int) -> bytes:
    handle = os.open(path, os.O_RDONLY)  # opened each time, so that worker processes share no position
    try:
        content = os.pread(handle, size, start)
    finally:
        os.close(handle)
    if len(content) != size:
        raise ValueError(f"{size:,} bytes were expected, {len(content):,} are there")
    return content


def _decoded(extension: str, content: bytes) -> Any:
    last = extension.rpartition(".")[2]
    if last in IMAGES:
        from PIL import Image  # comes with the extra `pipeline`

        pixels = np.array(Image.open(BytesIO(content)).convert("RGB"), dtype=np.float32)
        return torch.from_numpy(pixels / 255).permute(2, 0, 1).contiguous()
    if last == "cls":
        return int(content)
    if last == "json":
        return json.loads(content)
    if last == "txt":
        return content.decode()
    if last == "npy":
        return np.load(BytesIO(content), allow_pickle=False)
    return content


def _image_and_class(parts: Mapping[str, Any]) -> tuple[Tensor, int]:
    images = [value for name, value in parts.items() if name in IMAGES]
    if len(images) != 1 or "cls" not in parts:
        raise ValueError(
            f"a sample has the parts {', '.join(parts)}; expected one image (jpg, jpeg or png) and cls, or a transform "
            "that makes a sample of them"
        )
    return images[0], parts["cls"]


def _imported(reference: str) -> Callable[[dict[str, Any]], Any]:
    module, _, name = reference.partition(":")
    found = getattr(import_module(module), name, None)
    if not callable(found):
        raise ValueError(f"transform {reference!r} names no function; expected MODULE:NAME")
    made: Callable[[dict[str, Any]], Any] = found
    return made
