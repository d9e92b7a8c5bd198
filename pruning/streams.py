"""Samples of a stream, which can be read from its beginning alone: in one pass, whatever is asked for.

    stream ──► sample 0, 1, 2, … ──► kept until the batches that ask for it are made ──► Batch

A pass holds what batches still need, so orders that stay near the stream's own take little memory: training shuffles
within a window. What is asked for all over again, such as the samples that criteria look at, is kept once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import default_collate

from pruning.batches import (
    Batch,
    Batches,
    NumberedBatches,
    Numbers,
    TensorBatches,
    Unpack,
    generators_seeded,
    sample_seed,
)
from pruning.containers import check_count, take
from pruning.errors import DataError, describe_user_fault, pass_on

WINDOW = 256
"""Samples within which the order of a stream is shuffled."""


class StreamBatches(NumberedBatches):
    """Samples of a stream: an iterable of samples, such as an `IterableDataset`, that gives the same ones each time."""

    window = WINDOW

    def __init__(
        self,
        stream: Any,
        unpack: Unpack,
        *,
        length: int,
        collate_fn: Callable[[list[Any]], Any] = default_collate,
        kept: TensorBatches | None = None,
        name: str = "the stream",
    ) -> None:
        """Read nothing yet.

        Args:
            stream: It is gone through anew for each pass; `set_epoch(epoch)` is called before, if it has that.
            unpack: Divides what `collate_fn` gives into inputs and targets.
            length: How many samples it gives.
            collate_fn: Joins the samples of a batch.
            kept: Samples of it that are in memory, spread evenly: `spread` gives of these.
            name: What messages call it.
        """
        self._stream, self._unpack, self._collate = stream, unpack, collate_fn
        self._length, self._kept, self._name = length, kept, name

    def take(self, numbers: Tensor) -> StreamBatches:
        """Return some of the samples, in this order, which then have numbers of their own; none is read yet."""
        return super().take(numbers)._changed(_kept=None)

    def with_targets(self, targets: Any) -> StreamBatches:
        """Return the same samples with other targets, in memory, those that are kept among them."""
        found, kept = super().with_targets(targets), self._kept
        if kept is None:
            return found
        return found._changed(_kept=kept.with_targets(take(targets, spread_over(len(self), len(kept)))))

    def spread(self, count: int) -> Batches:
        """Return this many of the samples, spread evenly: of those that are kept, where these are enough."""
        return super().spread(count) if self._kept is None or count > len(self._kept) else self._kept.spread(count)

    def read(self, batches: Sequence[Numbers], *, seed: int = 0, epoch: int = 0) -> Iterator[Batch]:
        """Yield a batch for each of these, in their order, in one pass; what later ones need is held meanwhile.

        Raises:
            DataError: A sample can't be read, a batch can't be joined or unpacked, or the stream ends too early.
        """
        asked = [self._own(numbers).tolist() for numbers in batches]
        left = Counter(number for numbers in asked for number in numbers)
        given, held = self.one_by_one(seed, epoch), dict[int, Any]()
        for numbers, own in zip(batches, asked, strict=True):
            for number in own:
                while number not in held:
                    at, sample = next(given, (-1, None))
                    if at < 0:
                        raise DataError(f"{self._name} ended before sample {number:,} of {self._length:,}")
                    if left[at]:
                        held[at] = sample
            some = [held[number] for number in own]
            left.subtract(own)
            for number in {number for number in own if not left[number]}:
                del held[number]
            batch = self._joined(some, own, sample_seed(seed, epoch, own[0]))
            yield batch if self._targets is None else batch._replace(targets=take(self._targets, numbers))

    def _joined(self, samples: list[Any], numbers: Sequence[int], seed: int) -> Batch:
        doing = f"{self._name}: samples {numbers[0]} to {numbers[-1]} can't be joined to a batch"
        try:
            with generators_seeded(seed):
                joined = self._collate(samples)
                doing = doing.replace("joined to a batch", "unpacked")
                inputs, targets = self._unpack(joined)
                return Batch(inputs, targets, check_count(inputs, len(numbers)))
        except Exception as fault:
            pass_on(fault)
            raise DataError(f"{doing}: {describe_user_fault(fault)}") from fault

    def one_by_one(self, seed: int = 0, epoch: int = 0) -> Iterator[tuple[int, Any]]:
        """Yield number and sample, from the beginning on; what is drawn for one follows from seed, epoch and number.

        Raises:
            DataError: One can't be read.
        """
        number, given = 0, None
        while True:
            try:
                with generators_seeded(sample_seed(seed, epoch, number)):
                    if given is None:
                        if hasattr(self._stream, "set_epoch"):
                            self._stream.set_epoch(epoch)
                        given = iter(self._stream)
                    sample = next(given)
            except StopIteration:
                return
            except Exception as fault:
                pass_on(fault)
                raise DataError(f"{self._name}: sample {number}: {describe_user_fault(fault)}") from fault
            yield number, sample
            number += 1


def spread_over(number: int, count: int) -> Tensor:
    """Return so many of the numbers below another, spread evenly; all of them if there are no more."""
    count = min(count, number)
    return torch.arange(count) * number // max(1, count)
