"""Samples as everything takes them, a batch at a time: from tensors, or from a data set of any size.

    numbers of samples ──► Batches.read ──► Batch (inputs, targets), on the CPU

Which samples make a batch is said by their numbers, so that order and subset are the caller's, and the same whatever
the samples come from. A sample that a data set makes at random is a function of (seed, epoch, number): before it is
made, the generators of torch, NumPy and Python are seeded by the three, so that it is the same in this process and in
any number of workers, wherever a run is taken up again.
"""

from __future__ import annotations

import random
import signal
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, NamedTuple, Protocol, Self

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten
from torch.utils.data import DataLoader, Dataset, default_collate
from torch.utils.data._utils import signal_handling

from pruning.containers import Inputs, check_count, count_samples, take, with_tensors
from pruning.errors import DataError, describe_user_fault, pass_on

Numbers = slice | Tensor
"""Of samples: a range, or int64 [N]."""

Unpack = Callable[[Any], tuple[Inputs, Any]]
"""What `collate_fn` gives -> (inputs, targets), such as `pruning.task.Task.unpack`."""


class Samples(Protocol):
    """Inputs and their targets, both with the samples on axis 0, in memory."""

    @property
    def inputs(self) -> Inputs:
        """What the model is given: a tensor [N, ...], or a tuple or dict of several."""

    @property
    def targets(self) -> Any:
        """What the loss and the metric compare with: a tensor [N, ...], or a tuple or dict of several."""


class Batch(NamedTuple):
    """Some of the samples.

    Attributes:
        inputs: What the model is given: a tensor [N, ...], a tuple of arguments, or a dict of arguments by name.
        targets: What the loss and the metric compare with, in any container; None where there are none.
        size: N.
    """

    inputs: Any
    targets: Any
    size: int

    def to(self, device: torch.device) -> Batch:
        """Return it with its tensors on a device."""
        inputs, targets = (
            with_tensors(part, lambda one: one.to(device, non_blocking=one.is_pinned())) for part in self[:2]
        )
        return Batch(inputs, targets, self.size)

    def digest(self) -> str:
        """Return a sha256 over containers, types, shapes and values."""
        leaves, structure = tree_flatten((self.inputs, self.targets))
        found = sha256(str(structure).encode())
        for leaf in leaves:
            if isinstance(leaf, Tensor):
                found.update(f"{leaf.dtype} {list(leaf.shape)}".encode())
                found.update(leaf.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
            else:
                found.update(repr(leaf).encode())
        return found.hexdigest()


class Batches(ABC):
    """Samples that can be asked for by their numbers, 0 … len − 1, as often as one likes."""

    window: int | None = None
    """Within how many samples their order may be shuffled; None: within all."""

    @abstractmethod
    def __len__(self) -> int:
        """Count the samples."""

    @abstractmethod
    def read(self, batches: Sequence[Numbers], *, seed: int = 0, epoch: int = 0) -> Iterator[Batch]:
        """Yield a batch for each of these, in their order.

        Args:
            batches: The numbers of each batch's samples.
            seed: Of what is drawn while a sample is made: with the epoch and its number, it makes the sample.
            epoch: Likewise.

        Raises:
            DataError: A sample can't be read or joined to others.
        """

    @abstractmethod
    def take(self, numbers: Tensor) -> Batches:
        """Return some of the samples, in this order, which then have numbers of their own; none is read yet."""

    def ordered(self, batch_size: int) -> Iterator[Batch]:
        """Yield all samples in their order, the last batch of what is left.

        Raises:
            DataError: A sample can't be read or joined to others.
        """
        return self.read([slice(start, start + batch_size) for start in range(0, len(self), batch_size)])

    def spread(self, count: int) -> Batches:
        """Return this many of the samples, spread evenly; all of them if there are no more."""
        return self if count >= len(self) else self.take(torch.arange(count) * len(self) // count)

    def first(self, count: int) -> Batch:
        """Read the first so many samples, or all."""
        return next(iter(self.read([slice(0, min(count, len(self)))])))

    @abstractmethod
    def with_targets(self, targets: Any) -> Batches:
        """Return the same samples with other targets: tensors in any container, [N, ...] each."""

    def loaded(self) -> TensorBatches:
        """Read all samples into memory: for few.

        Raises:
            DataError: Their tensors can't be joined along axis 0.
        """
        whole = self.first(len(self))
        return TensorBatches(whole.inputs, whole.targets)


@dataclass(frozen=True, eq=False)
class TensorBatches(Batches):
    """Samples in memory.

    Attributes:
        inputs: A tensor [N, ...], or a tuple or dict of several.
        targets: Likewise, in any container; None where there are none.

    Raises:
        DataError: They differ in number.
    """

    inputs: Any
    targets: Any = None

    def __post_init__(self) -> None:
        if self.targets is not None and len(self) != (num_targets := count_samples(self.targets)):
            raise DataError(f"{len(self)} inputs but {num_targets} targets; each input needs one target")

    def __len__(self) -> int:
        """Count the samples."""
        return count_samples(self.inputs)

    def read(self, batches: Sequence[Numbers], *, seed: int = 0, epoch: int = 0) -> Iterator[Batch]:  # noqa: ARG002
        """Yield a batch for each of these, in their order; nothing is drawn."""
        for numbers in batches:
            inputs = take(self.inputs, numbers)
            yield Batch(inputs, None if self.targets is None else take(self.targets, numbers), count_samples(inputs))

    def take(self, numbers: Tensor) -> TensorBatches:
        """Return some of the samples, in this order."""
        return TensorBatches(take(self.inputs, numbers), None if self.targets is None else take(self.targets, numbers))

    def with_targets(self, targets: Any) -> TensorBatches:
        """Return the same samples with other targets."""
        return TensorBatches(self.inputs, targets)


class NumberedBatches(Batches):
    """Samples of a source, all or some by their numbers in it, with the source's own targets or others in memory."""

    _length: int  # of the source
    _numbers: Tensor | None = None
    _targets: Any = None

    def __len__(self) -> int:
        """Count the samples."""
        return self._length if self._numbers is None else len(self._numbers)

    def take(self, numbers: Tensor) -> Self:
        """Return some of the samples, in this order, which then have numbers of their own; none is read yet."""
        targets = None if self._targets is None else take(self._targets, numbers)
        return self._changed(_numbers=self._own(numbers), _targets=targets)

    def with_targets(self, targets: Any) -> Self:
        """Return the same samples with other targets, in memory; a DataError says where they differ in number."""
        if count_samples(targets) != len(self):
            raise DataError(f"{len(self)} samples but {count_samples(targets)} targets; each needs one")
        return self._changed(_targets=targets)

    def _changed(self, **fields: Any) -> Self:
        other = object.__new__(type(self))
        vars(other).update(vars(self), **fields)
        return other

    def _own(self, numbers: Numbers) -> Tensor:
        """Return the numbers in the source."""
        if isinstance(numbers, slice):
            numbers = torch.arange(*numbers.indices(len(self)))
        elif numbers.dtype == torch.bool:
            numbers = numbers.nonzero().flatten()
        return numbers if self._numbers is None else self._numbers[numbers]


class DatasetBatches(NumberedBatches):
    """Samples of a map-style data set, each made when it is asked for; memory holds a few batches."""

    def __init__(
        self,
        dataset: Any,
        unpack: Unpack,
        *,
        collate_fn: Callable[[list[Any]], Any] = default_collate,
        num_workers: int = 0,
        pin_memory: bool = False,
        name: str = "the data set",
    ) -> None:
        """Read nothing yet.

        Args:
            dataset: With `__len__` and `__getitem__`, such as a `torch.utils.data.Dataset`.
            unpack: Divides what `collate_fn` gives into inputs and targets.
            collate_fn: Joins the samples of a batch.
            num_workers: Processes that make samples ahead; 0 makes them in this one. The samples are the same.
            pin_memory: Whether batches go to memory that a GPU copies from faster.
            name: What messages call it.
        """
        self._made = _Made(dataset, unpack, collate_fn, name)
        self._length, self._num_workers, self._pin_memory = len(dataset), num_workers, pin_memory

    def read(self, batches: Sequence[Numbers], *, seed: int = 0, epoch: int = 0) -> Iterator[Batch]:
        """Yield a batch for each of these, in their order.

        Raises:
            DataError: A sample can't be read, or a batch can't be joined or unpacked; the text names it, and the line.
        """
        made = self._read(_Asked(self, batches, (seed, epoch)), len(batches))
        for numbers, one in zip(batches, made, strict=True):
            if isinstance(one, _Fault):
                raise DataError(one.text)
            yield one if self._targets is None else one._replace(targets=take(self._targets, numbers))

    def _read(self, asked: _Asked, num_batches: int) -> Iterator[Batch | _Fault]:
        if not self._num_workers or num_batches == 1:
            yield from (self._made[one] for one in asked)
            return
        loader = DataLoader(
            self._made,
            batch_size=None,
            sampler=asked,  # a batch is one sample to it
            collate_fn=_as_it_is,
            num_workers=min(self._num_workers, num_batches),
            pin_memory=self._pin_memory,
            generator=torch.Generator(),  # else it would draw from the generator that training draws from
        )
        try:
            yield from _begun(loader)
        except RuntimeError as fault:  # its own, since ours come as values
            reason = str(fault).strip().partition("\n")[0]
            raise DataError(
                f"{self._made.name}: a worker process ended ({reason}); memory, or shared memory in /dev/shm, may be "
                "short: take fewer workers or smaller batches"
            ) from fault


@dataclass(frozen=True)
class _Asked:
    """The batches that are to be made, each as a loader's worker is told of it."""

    source: DatasetBatches
    batches: Sequence[Numbers]
    draw: tuple[int, int]

    def __iter__(self) -> Iterator[Any]:
        return ((self.source._own(numbers).tolist(), *self.draw) for numbers in self.batches)

    def __len__(self) -> int:
        return len(self.batches)


class _Fault(NamedTuple):
    """Why a batch could not be made: an exception would come from a worker in a text of many lines."""

    text: str


@dataclass(frozen=True)
class _Made(Dataset[Any]):
    """Batches by (numbers, seed, epoch), made here or in a worker."""

    dataset: Any
    unpack: Unpack
    collate_fn: Callable[[list[Any]], Any]
    name: str

    def __getitem__(self, asked: tuple[list[int], int, int]) -> Batch | _Fault:
        numbers, seed, epoch = asked
        doing = f"{self.name}: sample"
        try:
            with generators_seeded(0):
                samples = []
                for number in numbers:
                    doing = f"{self.name}: sample {number}"
                    _seed(sample_seed(seed, epoch, number))
                    samples.append(self.dataset[number])
                which = f"{self.name}: samples {numbers[0]} to {numbers[-1]}"
                own = "" if self.collate_fn is not default_collate else " without a collate_fn of your own"
                doing = f"{which} can't be joined to a batch{own}"
                _seed(sample_seed(seed, epoch, numbers[0]))
                joined = self.collate_fn(samples)
                keys = f" (keys: {', '.join(map(str, joined))})" if isinstance(joined, Mapping) else ""
                doing = f"{which} can't be unpacked{keys}"
                inputs, targets = self.unpack(joined)
                doing = f"{which}: the inputs"
                return Batch(inputs, targets, check_count(inputs, len(numbers)))
        except Exception as fault:  # noqa: BLE001 - the user's code raises what it likes
            pass_on(fault)
            return _Fault(f"{doing}: {describe_user_fault(fault)}")


def _as_it_is(made: Any) -> Any:
    return made


def _begun(loader: DataLoader[Any]) -> Iterator[Any]:
    """Begin without torch's handler, which raises wherever this process is when a worker ends; the loader tells it."""
    before, made, now = signal.getsignal(signal.SIGCHLD), iter(loader), signal.getsignal(signal.SIGCHLD)
    if getattr(now, "__module__", "") == signal_handling.__name__:
        with suppress(ValueError):  # in another thread than the main one, where torch sets none either
            signal.signal(signal.SIGCHLD, signal.SIG_DFL if before in (now, None) else before)
    return made


def sample_seed(seed: int, epoch: int, number: int) -> int:
    """Return the seed of what is drawn for one sample."""
    return int.from_bytes(sha256(f"{seed} {epoch} {number}".encode()).digest()[:8], "big")


def _seed(seed: int) -> None:
    torch.default_generator.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


@contextmanager
def generators_seeded(seed: int) -> Iterator[None]:
    """Run a user's code on data as a worker does: with one thread, and generators that are seeded; they are restored.

    Args:
        seed: Of torch's generator of the CPU, NumPy's and Python's.
    """
    states, threads = (torch.get_rng_state(), np.random.get_state(), random.getstate()), torch.get_num_threads()
    if threads > 1:
        torch.set_num_threads(1)
    _seed(seed)
    try:
        yield
    finally:
        if threads > 1:
            torch.set_num_threads(threads)
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])


def as_batches(samples: Batches | Samples | Inputs) -> Batches:
    """Return samples of any kind as batches: what has inputs and targets, or inputs alone.

    Raises:
        DataError: They are something else, or inputs and targets differ in number.
    """
    if isinstance(samples, Batches):
        return samples
    if isinstance(samples, Tensor | tuple | Mapping):
        return TensorBatches(samples)
    if isinstance(samples, Sequence):
        raise DataError(f"the samples are a {type(samples).__name__}; give several inputs as a tuple or a dict")
    return TensorBatches(samples.inputs, samples.targets)


def checked_batches(samples: Batches | Samples | Inputs) -> Batches:
    """Return samples of any kind as batches.

    Raises:
        DataError: There are none, or inputs and targets differ in number.
    """
    found = as_batches(samples)
    if len(found) == 0:
        raise DataError("no samples; at least one is needed")
    return found
