"""What a data set is: three splits of samples, in memory or made as they are asked for; and how files are checked."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

INPUT_DTYPES = (torch.float32, torch.int64)


@dataclass(frozen=True, eq=False)
class Samples:
    """Inputs with the target of each.

    Attributes:
        inputs: Tensor [N, ...], float32 (images, features) or int64 (token ids).
        targets: Tensor [N, ...]: int64 [N] for classes; what others tasks take is said in `pruning.task`.

    Raises:
        ValueError: With every fault that was found.
    """

    inputs: Tensor
    targets: Tensor

    def __post_init__(self) -> None:
        faults = []
        if self.inputs.ndim < 2:
            faults.append(f"inputs have shape {list(self.inputs.shape)}, expected [N, ...] with at least two axes")
        if self.inputs.dtype not in INPUT_DTYPES:
            faults.append(f"inputs are {self.inputs.dtype}, expected torch.float32 or torch.int64; convert them")
        if self.targets.ndim < 1:
            faults.append("targets have shape [], expected [N, ...]")
        elif self.inputs.shape[:1] != self.targets.shape[:1]:
            faults.append(f"{self.inputs.shape[:1].numel()} inputs for {self.targets.shape[:1].numel()} targets")
        elif len(self.inputs) == 0:
            faults.append("there are no samples")
        elif self.inputs.is_floating_point():
            broken = _count_broken(self.inputs)
            if broken:
                faults.append(f"{broken} of {len(self.inputs)} inputs hold values that are not finite; clean the data")
        if faults:
            raise ValueError("; ".join(faults))

    def __len__(self) -> int:
        """Count the samples."""
        return len(self.targets)

    def take(self, indices: Tensor) -> Samples:
        """Return the samples at these indices, in this order.

        Args:
            indices: Tensor [M], int64.
        """
        return Samples(self.inputs[indices], self.targets[indices])


def _count_broken(inputs: Tensor) -> int:
    """Count the inputs that hold a NaN or an infinity, without a copy of them all."""
    rows = inputs.reshape(len(inputs), -1)
    suspects = rows[~rows.sum(1).isfinite()]  # the sum of large numbers may overflow: hence the second look
    return int((~suspects.isfinite()).any(1).sum())


@dataclass(frozen=True, eq=False)
class Splits:
    """A data set: what to learn from, what to decide by, what to report on.

    Attributes:
        train: What a model is trained on.
        validation: What every decision is made on.
        test: What the result is reported on, read at the very end.
        classes: The name of each class, in the order of the targets; () where there are none, as in a regression.
        labelled: False where the targets are placeholders, see `unlabelled`.

    Raises:
        ValueError: With every fault that was found.
    """

    train: Samples
    validation: Samples
    test: Samples
    classes: tuple[str, ...]
    labelled: bool = True

    @classmethod
    def unlabelled(cls, train: Tensor, validation: Tensor, test: Tensor, classes: tuple[str, ...]) -> Splits:
        """Make a data set of inputs alone: a model that is trained already can be pruned on it.

        The pipeline takes the baseline's answers for labels, so that accuracy is the agreement with it.

        Args:
            train: Inputs [N, ...] that recovery looks at; a few hundred do.
            validation: Inputs that decisions are made on.
            test: Inputs that the result is reported on.
            classes: The names of the model's outputs.

        Raises:
            ValueError: With every fault that was found.
        """
        parts = [Samples(part, torch.zeros(len(part), dtype=torch.int64)) for part in (train, validation, test)]
        return cls(parts[0], parts[1], parts[2], classes, labelled=False)

    def __post_init__(self) -> None:
        if without := [name for name, part in self.named() if not hasattr(part, "targets")]:
            raise ValueError(
                f"{without[0]} has no targets; give Samples(inputs, targets), or Splits.unlabelled(...) for data "
                "without labels"
            )
        faults = []
        boxes = self.train.targets.is_floating_point()  # of which there may be one class
        if len(set(self.classes)) != len(self.classes) or (len(self.classes) == 1 and not boxes):
            faults.append(f"classes are {self.classes}, expected at least two different names")
        if others := [name for name in self.classes if not isinstance(name, str)]:
            faults.append(f"classes hold {others[0]!r}, expected names: texts, such as str(number)")
        shape = self.train.inputs.shape[1:]
        for name, samples in self.named():
            targets = samples.targets
            if self.classes and self.labelled and targets.ndim == 1 and targets.dtype == torch.int64:
                low, high = int(targets.min()), int(targets.max())
                if low < 0 or high >= len(self.classes):
                    faults.append(f"targets of {name} lie in [{low}, {high}], expected [0, {len(self.classes) - 1}]")
            if targets.shape[1:] != self.train.targets.shape[1:] or targets.dtype != self.train.targets.dtype:
                faults.append(
                    f"targets of {name} are {list(targets.shape)} of {targets.dtype}, those of train "
                    f"{list(self.train.targets.shape)} of {self.train.targets.dtype}"
                )
            if samples.inputs.shape[1:] != shape:
                faults.append(
                    f"inputs of {name} have shape {list(samples.inputs.shape[1:])}, those of train {list(shape)}"
                )
            if samples.inputs.dtype != self.train.inputs.dtype:
                faults.append(f"inputs of {name} are {samples.inputs.dtype}, those of train {self.train.inputs.dtype}")
        if faults:
            raise ValueError("; ".join(faults))

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one input, without the batch axis."""
        return tuple(self.train.inputs.shape[1:])

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return len(self.classes)

    def named(self) -> tuple[tuple[str, Samples], ...]:
        """List the splits with their names, in their fixed order."""
        return ("train", self.train), ("validation", self.validation), ("test", self.test)

    def fingerprint(self) -> str:
        """Compute a sha256 over everything: names, shapes, dtypes, every value, in order.

        Returns:
            64 hexadecimal digits. Two data sets have the same ones if they are equal bit for bit.
        """
        digest = hashlib.sha256(json.dumps(self.classes if self.labelled else [*self.classes, None]).encode())
        for name, samples in self.named():
            for part, tensor in (("inputs", samples.inputs), ("targets", samples.targets)):
                digest.update(json.dumps([name, part, str(tensor.dtype), list(tensor.shape)]).encode())
                digest.update(tensor.detach().cpu().contiguous().numpy().data)
        return digest.hexdigest()


@dataclass(frozen=True)
class DataModule:
    """Data sets of any size, as a data function returns them; an object or a dict with these names will do as well.

    Attributes:
        train: What a model is trained on: a map-style `torch.utils.data.Dataset`, or a `DataLoader` of one. What its
            transforms draw from the generators of torch, NumPy and Python follows from seed, epoch and sample.
        validation: What every decision is made on; the same samples each time.
        test: What the result is reported on; likewise.
        collate_fn: Joins samples to a batch; None: as torch does. A `DataLoader` brings its own.
        sources: Files, folders, globs or URLs that samples are read from: they tell whether the data are the same.
        classes: The name of each class, in the order of the targets; None: the `classes` of `train`, where it has any.
        fingerprint: A text that changes whenever the samples do, such as a version; taken as it is, not verified.
    """

    train: Any
    validation: Any
    test: Any
    collate_fn: Callable[[list[Any]], Any] | None = None
    sources: Sequence[str | Path] = ()
    classes: Sequence[str] | None = None
    fingerprint: str | None = None


def stratified_split(targets: Tensor, fractions: Sequence[float], seed: int) -> tuple[Tensor, ...]:
    """Divide samples at random so that every class is spread over the splits in the same proportion.

    Of n samples of a class a split with fraction f gets ⌊f·n⌋ or ⌈f·n⌉; what the rounding leaves over goes to the
    splits that are furthest behind, so that the totals come out right as well. A class with few samples gives every
    split at least one, which may stretch its proportion.

    Args:
        targets: Tensor [N], int64.
        fractions: The share of each split, to six decimals; they add up to 1.
        seed: Seed of the random choice.

    Returns:
        One tensor of indices per split, in random order; together they hold every index once.

    Raises:
        ValueError: The fractions are not positive or do not add up to 1, or a class has fewer samples than splits.
    """
    shares = [Fraction(fraction).limit_denominator(10**6) for fraction in fractions]
    if not shares or min(shares) <= 0 or sum(shares) != 1:
        total = float(sum(shares))
        raise ValueError(f"fractions are {list(fractions)} and add up to {total}, expected positive ones that make 1")
    generator = torch.Generator().manual_seed(seed)
    chosen: list[list[Tensor]] = [[] for _ in shares]
    behind = [Fraction(0)] * len(shares)
    for label in sorted(set(targets.tolist())):
        members = (targets == label).nonzero().flatten()
        if len(members) < len(shares):
            raise ValueError(
                f"class {label} has {len(members)} samples, expected at least {len(shares)}, one for each split;"
                " add samples or leave the class out"
            )
        members = members[torch.randperm(len(members), generator=generator)]
        counts = _divide(len(members), shares, behind)
        for split, part in enumerate(members.split(counts)):
            chosen[split].append(part)
            behind[split] += len(members) * shares[split] - len(part)
    joined = [torch.cat(parts) for parts in chosen]
    return tuple(part[torch.randperm(len(part), generator=generator)] for part in joined)


def _divide(total: int, shares: list[Fraction], behind: list[Fraction]) -> list[int]:
    """Divide one class over the splits, given how far each split lies behind its share so far."""
    counts = [int(total * share) for share in shares]
    owed = [total * share - count + late for share, count, late in zip(shares, counts, behind, strict=True)]
    partial = [split for split, share in enumerate(shares) if (total * share).denominator > 1]
    for split in sorted(partial, key=lambda split: owed[split], reverse=True)[: total - sum(counts)]:
        counts[split] += 1
    while min(counts) == 0:
        counts[counts.index(max(counts))] -= 1
        counts[counts.index(0)] += 1
    return counts


def check_md5(name: str, content: bytes, expected: str | None) -> None:
    """Compare what was read with the MD5 that was published for it.

    Args:
        name: Of the file, for the message.
        content: All of it.
        expected: The MD5 in hexadecimal, of either case; None to compare nothing.

    Raises:
        ValueError: They differ.
    """
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if expected is not None and found != expected.lower():
        raise ValueError(f"{name} has MD5 {found}, expected {expected}; it is damaged or another file, fetch it again")
