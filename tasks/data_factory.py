"""What the function that `data.factory` names returned: tensors, or data sets that are opened.

Splits, or splits with inputs and targets      ─► Splits      in memory already
torch data sets, loaders, a DataModule         ─► DataSets    opened; read whole below a bound, else by every stage
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, cast

from torch import Tensor
from torch.utils._pytree import tree_flatten
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    default_collate,
)

from pruning.batches import DatasetBatches, Unpack, generators_seeded
from pruning.errors import DataError, NotFiniteError, describe_user_fault, pass_on
from pruning.streams import StreamBatches
from pruning.task import MultiLabel, Task
from tasks.data_sets import AT_ONCE, GIVES_OTHERS, PARTLY_LABELLED, SPLITS, DataSets, Source, Split, malformed
from tasks.unpacking import takes
from zoo.datasets.splits import Samples, Splits

log = logging.getLogger("secateur")


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
    """See that all targets are those of the task, and, where they are classes, that there is something to learn.

    Raises:
        DataError: They aren't.
    """
    for name, samples in splits.named() if splits.labelled else ():
        try:
            task.check_targets(samples.targets, splits.classes)
        except NotFiniteError as fault:
            raise NotFiniteError(f"{reference!r}: {name}: {fault}") from fault
        except DataError as fault:
            raise DataError(f"{reference!r}: {name}: {fault}. {takes(task)}") from fault
        if task.by_class and name != "test":
            _check_several(samples.targets, splits.classes, task, f"{reference!r}: {name}")


def _check_several(targets: Tensor, classes: Sequence[str], task: Task, where: str) -> None:
    """See that targets are of more than one class, or a model that always says the same would be right."""
    counted = targets[targets != getattr(task, "ignore_index", -1)]
    if not counted.numel() or bool((counted != counted.flatten()[0]).any()):
        return
    number = int(counted.flatten()[0])
    raise DataError(
        f"{where}: all targets are class {number} ({classes[number]!r}) of {len(classes)}: a model that always says so "
        "is right everywhere, so nothing can be learned or judged; look for sorted data that were cut into splits"
    )


def opened(
    found: Any,
    reference: str,
    task: Task | None = None,
    *,
    num_workers: int = 0,
    most_bytes: int = 2**30,
    lengths: Mapping[Split, int] | None = None,
) -> Splits | DataSets:
    """Check what a user's data function returned, and read the first batch of each data set.

    Accepted are `Splits`; and any object or mapping with train, validation and test, each with inputs and targets, or a
    torch `Dataset`, or a `DataLoader`, of which dataset, `collate_fn` and batch size are taken, and the part that its
    sampler gives, such as a `DataModule`. A stream (`IterableDataset`) is read whole, or in passes if it is larger.

    Args:
        found: What it returned.
        reference: Its import string.
        task: Takes samples apart; None for the usual pairs.
        num_workers: Processes that make samples.
        most_bytes: Of a stream that is read whole.
        lengths: Of streams that are larger, those that are known; others are counted. None: they are refused.

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
                found,
                dict(zip(SPLITS, parts, strict=True)),
                reference,
                task or Task(),
                num_workers,
                most_bytes,
                lengths,
            )
        for name, part in zip(SPLITS, parts, strict=True):
            if isinstance(part, Iterator):
                raise DataError(
                    f"{reference!r}: {name} is a {type(part).__name__}, which can be read only once; expected a torch "
                    "Dataset, an IterableDataset or a DataLoader, from which samples can be read again"
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
    found: Any,
    parts: Mapping[Split, Any],
    reference: str,
    task: Task,
    num_workers: int,
    most_bytes: int,
    lengths: Mapping[Split, int] | None,
) -> DataSets:
    def named(name: str) -> Any:
        return found.get(name) if isinstance(found, Mapping) else getattr(found, name, None)

    collate = named("collate_fn")
    known = None if lengths is None else {f"{reference!r}: {name}": length for name, length in lengths.items()}
    given = {
        name: _source(part, collate, task, f"{reference!r}: {name}", most_bytes, known) for name, part in parts.items()
    }
    names = named("classes")
    if names is None:
        names = _classes_of(given["train"].dataset)
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
        tokens=tuple(map(str, named("tokens") or ())),
    )


def _classes_of(dataset: Any) -> Any:
    """Return the names that a data set has, or the one that it is a part of; None if neither has."""
    while not hasattr(dataset, "classes") and isinstance(dataset, Subset):
        dataset = dataset.dataset
    return getattr(dataset, "classes", None)


def _source(
    part: Any, collate: Any, task: Task, where: str, most_bytes: int, lengths: Mapping[str, int] | None
) -> Source:
    loader = part if isinstance(part, DataLoader) else None
    dataset = part if loader is None else _sampled(loader, where)
    if not is_data_set(dataset):
        raise DataError(f"{where} is a {type(part).__name__}; expected a torch Dataset or DataLoader, as other splits")
    size = AT_ONCE if loader is None else loader.batch_size or AT_ONCE
    if loader is not None and loader.collate_fn is not default_collate:
        collate = loader.collate_fn
    source = Source(dataset, collate or task.collate or default_collate, size)
    if not is_stream(dataset):
        return source
    if lengths and where in lengths:
        return replace(source, length=lengths[where])
    listed = _listed(source, task.unpack, where, most_bytes)
    if listed is not None:
        return listed
    if lengths is None:
        raise DataError(
            f"{where} is a stream, a {type(dataset).__name__}, of more than {most_bytes:,} bytes "
            "(data.copy_below_bytes): here streams are read whole. Give a map-style data set, with __len__ and "
            "__getitem__, such as zoo.datasets:webdataset makes of shards"
        )
    log.info("%s is a stream of more than %s bytes: its samples are counted", where, f"{most_bytes:,}")
    return replace(source, length=sum(1 for _ in _one_by_one(source, where, seed=0)))


def _sampled(loader: DataLoader[Any], where: str) -> Any:
    """Return what a loader reads: its data set, or the part of it that its sampler gives.

    Raises:
        DataError: The sampler gives no part: some samples more than once, or others each time.
    """
    dataset: Any = loader.dataset
    if is_stream(dataset):
        return dataset
    sampler, batches = cast(Any, loader.sampler), cast(Any, loader.batch_sampler)
    if type(batches) is BatchSampler:
        sampler, batches = batches.sampler, None
    once = type(sampler) is RandomSampler and not sampler.replacement and sampler.num_samples == len(dataset)
    if batches is None and (once or type(sampler) is SequentialSampler) and len(sampler.data_source) == len(dataset):
        return dataset
    asked = sampler if batches is None else batches
    what = f"{where}: the DataLoader's {'sampler' if batches is None else 'batch_sampler'}, a {type(asked).__name__},"
    instead = (
        "The pipeline orders samples itself, so a sampler can only say which part of the data set is meant; give the "
        "data set, or a torch.utils.data.Subset, which may name a sample several times"
    )

    def given(seed: int) -> list[Any]:
        """Draw the numbers of all samples, and no more than show that some come again."""
        try:
            with generators_seeded(seed):
                return list(islice(asked if batches is None else chain.from_iterable(asked), len(dataset) + 1))
        except Exception as fault:
            pass_on(fault)
            raise DataError(f"{what} raised {describe_user_fault(fault)}") from fault

    numbers = given(0)
    for number in numbers:
        if isinstance(number, list | tuple) or not hasattr(number, "__index__"):
            raise DataError(f"{what} gives {number!r}; expected numbers of samples. {instead}")
        if not 0 <= number < len(dataset):
            raise DataError(f"{what} gives the number {number}; the data set has 0 to {len(dataset) - 1}")
    numbers = sorted(map(int, numbers))
    if not numbers:
        raise DataError(f"{what} gives no samples")
    if len(set(numbers)) < len(numbers):
        end = ", or has no end" if len(numbers) > len(dataset) else ""
        raise DataError(f"{what} gives some samples more than once{end}. {instead}")
    if sorted(map(int, given(1))) != numbers:
        raise DataError(f"{what} gives other samples each time. {instead}")
    return dataset if len(numbers) == len(dataset) else Subset(dataset, numbers)


def is_stream(dataset: Any) -> bool:
    """Say whether samples come one after the other, without numbers."""
    return isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__")


def _listed(stream: Source, unpack: Unpack, where: str, most_bytes: int) -> Source | None:
    """Read a stream into a list, twice, so that one that doesn't repeat itself is found; None if it is too large.

    Raises:
        DataError: It gives other samples the second time, or raises.
    """
    samples, num_bytes = list[Any](), 0
    for sample in _one_by_one(stream, where, seed=0):
        samples.append(sample)
        num_bytes += _bytes_in(sample)
        if num_bytes > most_bytes:
            return None
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
    raise DataError(GIVES_OTHERS.format(where))


def _one_by_one(stream: Source, where: str, seed: int) -> Iterator[Any]:
    passes = StreamBatches(stream.dataset, Task().unpack, length=0, name=where)
    return (sample for _, sample in passes.one_by_one(seed))


def _bytes_in(sample: Any) -> int:
    """Return about how much memory a sample takes."""
    return sum(
        int(getattr(leaf, "nbytes", 0)) or (len(leaf) if isinstance(leaf, bytes | str) else sys.getsizeof(leaf))
        for leaf in tree_flatten(sample)[0]
    )
