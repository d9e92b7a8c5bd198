"""Data sets that a user's function gave: read a batch at a time, checked, probed, or read whole into memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256
from typing import Any, Literal

import psutil
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten

from pruning.batches import Batch, DatasetBatches, TensorBatches
from pruning.errors import DataError
from pruning.streams import StreamBatches, spread_over
from pruning.task import MultiLabel, Task
from tasks.unpacking import Unpack
from zoo.datasets.splits import (
    Samples,
    Shape,
    Splits,
    common_shapes,
    inputs_of,
    shapes_of,
    shown_shapes,
    tensors_of,
)

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")

_MOST_KEPT, _MOST_KEPT_BYTES = 1024, 2**28

AT_ONCE = 64
"""Samples that are read at once where no loader says how many."""

PARTLY_LABELLED = "{!r}: {} has no targets, other splits have; expected all or none with them"


GIVES_OTHERS = (
    "{} is a stream that gives other samples each time it is read: every stage has to see the same, in one order. Take "
    "shuffling and random transforms out of it; name transforms as training.augment"
)


def malformed(reference: str, error: ValueError) -> DataError:
    """Return the fault of a function whose samples are none."""
    return DataError(f"{reference!r} returned malformed data: {error}")


@dataclass(frozen=True)
class Source:
    """A data set as its user gave it.

    Attributes:
        dataset: Map-style, or a stream.
        collate_fn: Joins samples to a batch.
        batch_size: How many are read at once.
        length: Of a stream that is read in passes, how many samples it gives; None: it is map-style.
    """

    dataset: Any
    collate_fn: Callable[[list[Any]], Any]
    batch_size: int
    length: int | None = None


@dataclass(frozen=True)
class DataSets:
    """Data sets that have been opened, and what their first batches show.

    Attributes:
        given: The data set of each split.
        reference: The import string of the user's function.
        task: What takes samples apart.
        classes: Their names, where the function or a data set says them; else None.
        sources: The files, folders, globs and URLs that samples are read from, where the function says so.
        declared: What the function says that stands for their content.
        num_workers: Processes that make samples.
        pin_memory: Whether batches go to memory that a GPU copies from faster.
        input_shape: Of one sample, where each is to be checked against it; None in it for a size that may differ.
        kept: Training samples of a stream that are asked for all over again.
        tokens: The text of each token id, where the function says it.
    """

    given: Mapping[Split, Source]
    reference: str
    task: Task
    classes: tuple[str, ...] | None
    sources: tuple[str, ...]
    declared: str | None
    num_workers: int = 0
    pin_memory: bool = False
    input_shape: Mapping[str, Shape] | None = None
    kept: TensorBatches | None = None
    tokens: tuple[str, ...] = ()

    @cached_property
    def parts(self) -> Mapping[Split, DatasetBatches | StreamBatches]:
        """The samples of each split."""
        unpack = Unpack(self.task, self.classes or (), self.input_shape)
        return {name: self._part(name, source, unpack) for name, source in self.given.items()}

    def _part(
        self, name: Split, source: Source, unpack: Callable[[Any], tuple[Any, Any]]
    ) -> DatasetBatches | StreamBatches:
        where = f"{self.reference!r}: {name}"
        if source.length is not None:
            kept, collate = self.kept if name == "train" else None, source.collate_fn
            return StreamBatches(
                source.dataset, unpack, length=source.length, collate_fn=collate, kept=kept, name=where
            )
        return DatasetBatches(
            source.dataset,
            unpack,
            collate_fn=source.collate_fn,
            num_workers=self.num_workers,
            pin_memory=self.pin_memory,
            name=where,
        )

    @property
    def input_name(self) -> str | None:
        """The key of the only input, where samples give it by name, though models are given it by position."""
        part = self._part("validation", self.given["validation"], self.task.unpack)
        inputs = part.first(1).inputs
        return next(iter(inputs)) if isinstance(inputs, Mapping) and len(inputs) == 1 else None

    @property
    def streams(self) -> tuple[Split, ...]:
        """The splits that are read in passes."""
        return tuple(name for name in SPLITS if self.given[name].length is not None)

    def calibration(self) -> TensorBatches | None:
        """Read what is kept of a training stream, spread over it: at most 1,024 samples and 256 MiB; else None."""
        if "train" not in self.streams:
            return None
        part, of_each = self.parts["train"], max(1, int(_bytes_of_each(self.first["train"])))
        return part.take(spread_over(len(part), max(1, min(_MOST_KEPT, _MOST_KEPT_BYTES // of_each)))).loaded()

    @cached_property
    def first(self) -> Mapping[Split, Batch]:
        """The first samples of each split.

        Raises:
            DataError: A split is empty or can't be read.
        """
        found = {}
        for name, part in self.parts.items():
            if not len(part):
                raise DataError(f"{self.reference!r}: {name} holds no samples")
            found[name] = part.first(self.given[name].batch_size)
        return found

    @property
    def labelled(self) -> bool:
        """Whether samples have targets.

        Raises:
            DataError: Those of some splits have.
        """
        bare = [name for name, batch in self.first.items() if batch.targets is None]
        if bare and len(bare) < len(SPLITS):
            raise DataError(PARTLY_LABELLED.format(self.reference, bare[0]))
        return not bare

    @property
    def num_bytes(self) -> float:
        """What all splits would take as tensors, if each sample is as large as the first ones."""
        return sum(self._bytes_of(name) for name in SPLITS)

    def _bytes_of(self, name: Split) -> float:
        return _bytes_of_each(self.first[name]) * len(self.parts[name])

    def varies(self, name: Split) -> bool:
        """Say whether a split gives other samples in another epoch, as one with random transforms does.

        Raises:
            DataError: It does even if the global generators are seeded alike.
        """
        part, first = self.parts[name], self.first[name]
        here = [slice(0, first.size)]
        if next(part.read(here)).digest() != first.digest():
            raise DataError(
                f"{self.reference!r}: {name} gives other samples each time it is read, though the generators of torch, "
                "NumPy and Python are seeded before each sample; every stage has to see the same. Let its transforms "
                "draw from those, or take them out of the data set and name them as training.augment"
            )
        return next(part.read(here, epoch=1)).digest() != first.digest()

    def read(self) -> Splits:
        """Read all samples into memory.

        Raises:
            DataError: One can't be read, or they don't fit.
        """
        samples = [self._read(name) for name in SPLITS]
        try:
            if not self.labelled:
                train, validation, test = (part.inputs for part in samples)
                return Splits.unlabelled(train, validation, test, self.classes or ())
            if len({part.targets.shape[1:] for part in samples}) > 1:  # boxes: as many for each image
                joined = self.task.join([part.targets for part in samples])
                parts = torch.split(joined, [len(part) for part in samples])
                samples = [Samples(one.inputs, targets) for one, targets in zip(samples, parts, strict=True)]
            classes = self.classes if self.classes is not None else _numbered(samples, self.task)
            return Splits(samples[0], samples[1], samples[2], classes)
        except ValueError as error:
            raise malformed(self.reference, error) from error

    def _read(self, name: Split) -> Samples:
        where, part = f"{self.reference!r}: {name}", self.parts[name]
        needed, free = self._bytes_of(name), psutil.virtual_memory().available
        if needed > free / 2:
            raise DataError(
                f"{where} holds {len(part):,} samples of {_bytes_of_each(self.first[name]):,.0f} bytes, "
                f"{needed / 2**30:.1f} GiB as tensors; this machine has {free / 2**30:.1f} GiB free, and twice as much "
                "is needed to join them. Lower data.copy_below_bytes, so that every stage reads them again"
            )
        if self.varies(name):
            raise DataError(
                f"{where} gives other samples each time it is read: every stage has to see the same. Take random "
                "transforms out of the data set, and name them as training.augment"
            )
        batches = list(part.ordered(self.given[name].batch_size))
        labelled = self.labelled
        try:
            parts = [tensors_of(batch.inputs) for batch in batches]
            inputs = inputs_of({key: torch.cat([one[key] for one in parts]) for key in _same_keys(parts)})
            labels = self.task.join([batch.targets for batch in batches]) if labelled else torch.zeros(len(part)).long()
        except RuntimeError as fault:
            raise SizesError(
                f"{where}: samples differ in shape from batch to batch ({fault}); give each the same"
            ) from fault
        try:
            return Samples(inputs, labels)
        except ValueError as error:
            raise DataError(f"{where}: {error}") from error

    def checking(self, input_shape: Mapping[str, Shape]) -> DataSets:
        """Return the same for stages that read samples a batch at a time: each batch is checked.

        Args:
            input_shape: Of one sample, by the names of `tensors_of`; None in it for a size that may differ.

        Raises:
            DataError: The classes aren't known.
        """
        if self.classes is None and (self.task.by_class or isinstance(self.task, MultiLabel)):
            raise DataError(
                f"{self.reference!r} doesn't name the classes; they can be counted only where all samples are copied, "
                "which these aren't. Return classes beside the splits, or give the training data set an attribute of "
                "that name"
            )
        return replace(self, classes=self.classes or (), input_shape=input_shape)

    def probe(self, name: Split, numbers: Sequence[int]) -> list[str]:
        """Return a hash of each of these samples as it is read: decoded, transformed, in a batch of its own."""
        found = self.parts[name].read([torch.tensor([number]) for number in numbers])
        return [batch.digest()[:16] for batch in found]

    def shape(self, numbers: Mapping[Split, Sequence[int]]) -> dict[str, Shape]:
        """Return the shape of one sample of each input, None for a size that differs from batch to batch.

        Args:
            numbers: Of samples of each split that are looked at, beside the first ones.

        Raises:
            DataError: Samples differ in more than sizes, or those that differ can't be joined to a batch.
        """
        joined = shapes_of(self.first["validation"].inputs)
        for name, part in self.parts.items():
            asked = [torch.tensor([number]) for number in numbers[name]]
            alone = [shapes_of(batch.inputs) for batch in part.read(asked)]
            for one in (shapes_of(self.first[name].inputs), *alone):
                if (both := common_shapes(joined, one)) is None:
                    raise DataError(
                        f"{self.reference!r}: inputs of {name} have the shape {shown_shapes(one)}, others "
                        f"{shown_shapes(joined)}; give each the same number of axes and the same names"
                    )
                joined = both
            if (other := next((at for at, one in enumerate(alone) if one != alone[0]), None)) is not None:
                self._join(name, (numbers[name][0], numbers[name][other]), (alone[0], alone[other]))
        return joined

    def _join(self, name: Split, numbers: Sequence[int], shapes: Sequence[Mapping[str, Shape]]) -> None:
        """See that samples of two shapes can be joined to a batch."""
        try:
            next(self.parts[name].read([torch.tensor(list(numbers))]))
        except DataError as fault:
            raise DataError(
                f"{fault}. The samples differ in shape, {' and '.join(map(shown_shapes, shapes))}: give each the same, "
                "or pad those of a batch in collate_fn"
            ) from fault

    def content(self, name: Split) -> str:
        """Return a hash of all samples of a split, read a batch at a time."""
        digest = sha256()
        for batch in self.parts[name].ordered(AT_ONCE):
            digest.update(batch.digest().encode())
        return digest.hexdigest()


class SizesError(DataError):
    """Samples can't be joined to one tensor, since their sizes differ from batch to batch."""


def _same_keys(parts: Sequence[Mapping[str, Tensor]]) -> list[str]:
    """Return the names of the inputs, which are the same in each batch.

    Raises:
        DataError: They aren't.
    """
    for one in parts:
        if one.keys() != parts[0].keys():
            raise DataError(f"a batch has {', '.join(one)}, the first {', '.join(parts[0])}; give the same in each")
    return list(parts[0])


def _numbered(samples: Sequence[Samples], task: Task) -> tuple[str, ...]:
    """Return the numbers of the classes, where nobody names them."""
    if isinstance(task, MultiLabel):
        return tuple(map(str, range(samples[0].targets.shape[1] if samples[0].targets.ndim > 1 else 0)))
    if (not task.by_class and type(task) is not Task) or samples[0].targets.is_floating_point():
        return ()
    ignored = getattr(task, "ignore_index", -1)
    return tuple(str(number) for number in range(max(_largest(part.targets, ignored) for part in samples) + 1))


def _largest(targets: Tensor, ignored: int) -> int:
    counted = targets[targets != ignored]
    return int(counted.max()) if counted.numel() else 0


def _bytes_of_each(batch: Batch) -> float:
    tensors = [leaf for leaf in tree_flatten((batch.inputs, batch.targets))[0] if isinstance(leaf, Tensor)]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors) / batch.size
