"""What the function that `data.factory` names returned: tensors, or data sets that are opened.

Splits, or splits with inputs and targets      ─► Splits      in memory already
torch data sets, loaders, a DataModule         ─► DataSets    opened; read whole below a bound, else by every stage
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_flatten
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate

from pruning.batches import DatasetBatches, Unpack, generators_seeded
from pruning.errors import DataError, describe_user_fault, pass_on
from pruning.task import MultiLabel, Task
from tasks.data_sets import AT_ONCE, PARTLY_LABELLED, SPLITS, DataSets, Source, Split, malformed, takes
from zoo.datasets.splits import Samples, Splits


def as_splits(found: Any, reference: str, task: Task | None = None) -> Splits:
    """Check what a user's data function returned, and read it where it is data sets and not tensors yet.

    Args:
        found: What it returned, see `opened`.
        reference: Its import string.
        task: Takes samples apart, and says what targets have to be; None for the usual pairs, unchecked.

    Raises:
        DataError: Something is missing or malformed.
    """
    parts = opened(found, reference, task)
    splits = parts.read() if isinstance(parts, DataSets) else parts
    if task is not None:
        check_targets(splits, reference, task)
    return splits


def check_targets(splits: Splits, reference: str, task: Task) -> None:
    """See that all targets are those of the task.

    Raises:
        DataError: They aren't.
    """
    for name, samples in splits.named() if splits.labelled else ():
        try:
            task.check_targets(samples.targets, splits.classes)
        except DataError as fault:
            raise DataError(f"{reference!r}: {name}: {fault}. {takes(task)}") from fault


def opened(
    found: Any, reference: str, task: Task | None = None, *, num_workers: int = 0, most_bytes: int = 2**30
) -> Splits | DataSets:
    """Check what a user's data function returned, and read the first batch of each data set.

    Accepted are `Splits`; and any object or mapping with train, validation and test, each with inputs and targets, or a
    torch `Dataset`, or a `DataLoader`, of which dataset, `collate_fn` and batch size are taken, such as a `DataModule`.
    A stream (`IterableDataset`) is read whole.

    Args:
        found: What it returned.
        reference: Its import string.
        task: Takes samples apart; None for the usual pairs.
        num_workers: Processes that make samples.
        most_bytes: Of a stream, which is read whole.

    Raises:
        DataError: Something is missing or malformed.
    """
    if isinstance(found, Splits):
        return found
    get = found.get if isinstance(found, Mapping) else partial(getattr, found)
    try:
        parts = [_given(found, name) for name in SPLITS]
        if any(is_data_set(part) for part in parts):
            return _data_sets(
                found, dict(zip(SPLITS, parts, strict=True)), reference, task or Task(), num_workers, most_bytes
            )
        needed = task is None or task.by_class or isinstance(task, MultiLabel)
        classes = tuple(_given(found, "classes") if needed else get("classes", None) or ())
        bare = [name for name, part in zip(SPLITS, parts, strict=True) if getattr(part, "targets", None) is None]
        if bare and len(bare) < len(SPLITS):
            raise DataError(PARTLY_LABELLED.format(reference, bare[0]))
        if bare:
            train, validation, test = (part.inputs for part in parts)
            return Splits.unlabelled(train, validation, test, classes)
        labelled = [Samples(part.inputs, part.targets) for part in parts]
        return Splits(labelled[0], labelled[1], labelled[2], classes)
    except (AttributeError, KeyError) as error:
        raise DataError(
            f"{reference!r} returned a {type(found).__name__} ({error}); expected zoo.datasets.Splits, or an object "
            "with train, validation and test, each a torch Dataset, or with inputs and targets (or all without), and "
            "classes"
        ) from error
    except ValueError as error:
        raise malformed(reference, error) from error


def _given(found: Any, name: str) -> Any:
    return found[name] if isinstance(found, Mapping) else getattr(found, name)


def is_data_set(part: Any) -> bool:
    """Say whether samples are asked for one by one, as of torch's data sets and those that only look alike."""
    has_samples = hasattr(part, "__getitem__") and hasattr(part, "__len__") and not hasattr(part, "inputs")
    return isinstance(part, Dataset | DataLoader) or (has_samples and not isinstance(part, str | Mapping | Tensor))


def _data_sets(
    found: Any, parts: Mapping[Split, Any], reference: str, task: Task, num_workers: int, most_bytes: int
) -> DataSets:
    def named(name: str) -> Any:
        return found.get(name) if isinstance(found, Mapping) else getattr(found, name, None)

    collate = named("collate_fn")
    given = {name: _source(part, collate, task, f"{reference!r}: {name}", most_bytes) for name, part in parts.items()}
    names = named("classes")
    if names is None:
        names = getattr(given["train"].dataset, "classes", None)
    sources, declared = named("sources"), named("fingerprint")
    if isinstance(sources, str | Path):
        sources = [sources]
    return DataSets(
        given,
        reference,
        task,
        None if names is None else tuple(names),
        tuple(map(str, sources or ())),
        None if declared is None else str(declared),
        num_workers,
    )


def _source(part: Any, collate: Any, task: Task, where: str, most_bytes: int) -> Source:
    loader = part if isinstance(part, DataLoader) else None
    dataset = part if loader is None else loader.dataset
    if not is_data_set(dataset):
        raise DataError(f"{where} is a {type(part).__name__}; expected a torch Dataset or DataLoader, as other splits")
    size = AT_ONCE if loader is None else loader.batch_size or AT_ONCE
    if loader is not None and loader.collate_fn is not default_collate:
        collate = loader.collate_fn
    source = Source(dataset, collate or task.collate or default_collate, size)
    return _listed(source, task.unpack, where, most_bytes) if is_stream(dataset) else source


def is_stream(dataset: Any) -> bool:
    """Say whether samples come one after the other, without numbers."""
    return isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__")


def _listed(stream: Source, unpack: Unpack, where: str, most_bytes: int) -> Source:
    """Read a stream into a list, twice, so that one that doesn't repeat itself is found.

    Raises:
        DataError: It gives other samples the second time, holds more than may be kept, or raises.
    """
    samples, num_bytes = list[Any](), 0
    for number, sample in enumerate(_one_by_one(stream, where, seed=0)):
        samples.append(sample)
        num_bytes += _bytes_in(sample)
        if num_bytes > most_bytes:
            raise DataError(
                f"{where} is a stream, a {type(stream.dataset).__name__}, of more than {number:,} samples and "
                f"{most_bytes:,} bytes (data.copy_below_bytes): a stream can be read from its beginning alone, so "
                "it is read whole. Give a map-style data set, with __len__ and __getitem__, such as "
                "zoo.datasets:webdataset makes of shards"
            )
    listed = Source(samples, stream.collate_fn, stream.batch_size)
    again = _one_by_one(stream, where, seed=1)  # what is drawn at random then differs
    parts = DatasetBatches(samples, unpack, collate_fn=stream.collate_fn, name=where)
    for expected in parts.ordered(stream.batch_size):
        some = list(islice(again, expected.size))
        found = None
        if len(some) == expected.size:
            found = DatasetBatches(some, unpack, collate_fn=stream.collate_fn, name=where).first(expected.size)
        if found is None or found.digest() != expected.digest():
            break
    else:
        if next(again, again) is again:
            return listed
    raise DataError(
        f"{where} is a stream that gives other samples each time it is read: every stage has to see the same, in one "
        "order. Take shuffling and random transforms out of it; name transforms as training.augment"
    )


def _one_by_one(stream: Source, where: str, seed: int) -> Iterator[Any]:
    number, given = 0, None
    while True:
        try:
            with generators_seeded(seed + number):
                given = iter(stream.dataset) if given is None else given
                sample = next(given)
        except StopIteration:
            return
        except Exception as fault:
            pass_on(fault)
            raise DataError(f"{where}: sample {number}: {describe_user_fault(fault)}") from fault
        yield sample
        number += 1


def _bytes_in(sample: Any) -> int:
    """Return about how much memory a sample takes."""
    return sum(
        int(getattr(leaf, "nbytes", 0)) or (len(leaf) if isinstance(leaf, bytes | str) else sys.getsizeof(leaf))
        for leaf in tree_flatten(sample)[0]
    )
