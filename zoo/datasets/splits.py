"""What a data set is: three splits of samples, in memory or made as they are asked for; and how files are checked."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

INPUT_DTYPES = (torch.float32, torch.int64, torch.bool)

Inputs = Tensor | tuple[Tensor, ...] | Mapping[str, Tensor]
"""What a model is given: a tensor [N, ...], several by position, or several by name."""

Shape = tuple[int | None, ...]
"""Of one sample, without the batch axis; None for a size that differs from batch to batch."""
Shapes = Shape | tuple[Shape, ...] | dict[str, Shape]
"""The same of each of `Inputs`, in their container."""


def tensors_of(inputs: Any) -> dict[str, Tensor]:
    """Return the tensors of `Inputs` by the names that files and messages use.

    These are `inputs` for a tensor, `inputs.0`, `inputs.1` … for a tuple, `inputs:NAME` for a mapping.
    """
    if isinstance(inputs, Tensor):
        return {"inputs": inputs}
    if isinstance(inputs, Mapping):
        return {f"inputs:{name}": part for name, part in inputs.items()}
    return {f"inputs.{place}": part for place, part in enumerate(inputs)}


def inputs_of(tensors: Mapping[str, Any]) -> Any:
    """Return the inputs that these are the tensors of (or what else belongs to each); other names are left alone.

    Raises:
        KeyError: There are none.
    """
    if named := {name.partition(":")[2]: part for name, part in tensors.items() if name.startswith("inputs:")}:
        return dict(sorted(named.items()))
    if placed := {int(name[7:]): part for name, part in tensors.items() if name.startswith("inputs.")}:
        return tuple(placed[place] for place in range(len(placed)))
    return tensors["inputs"]


def shapes_of(inputs: Any) -> dict[str, Shape]:
    """Return the shape of one sample of each input, by the names of `tensors_of`."""
    return {name: tuple(part.shape[1:]) for name, part in tensors_of(inputs).items()}


def shapes_by_name(shapes: Shapes) -> dict[str, Shape]:
    """Return shapes that are in their container by the names of `tensors_of`."""
    if isinstance(shapes, dict):
        return {f"inputs:{name}": shape for name, shape in shapes.items()}
    several = [shape for shape in shapes if isinstance(shape, tuple)]
    if several:
        return {f"inputs.{place}": shape for place, shape in enumerate(several)}
    return {"inputs": tuple(size for size in shapes if not isinstance(size, tuple))}


def common_shapes(one: Mapping[str, Shape], other: Mapping[str, Shape]) -> dict[str, Shape] | None:
    """Return what shapes have in common, None for a size that differs; None for all if they differ in more."""
    if one.keys() != other.keys() or any(len(one[name]) != len(other[name]) for name in one):
        return None
    return {
        name: tuple(size if size == another else None for size, another in zip(shape, other[name], strict=True))
        for name, shape in one.items()
    }


def shown_shapes(shapes: Mapping[str, Shape]) -> str:
    """Write the shape of one sample, of each input where there are several."""
    texts = {
        name: f"[{', '.join('any' if size is None else str(size) for size in one)}]" for name, one in shapes.items()
    }
    return (
        texts["inputs"] if texts.keys() == {"inputs"} else ", ".join(f"{name[7:]} {one}" for name, one in texts.items())
    )


@dataclass(frozen=True, eq=False)
class Samples:
    """Inputs with the target of each.

    Attributes:
        inputs: Tensor [N, ...], float32 (images, features), int64 (token ids) or bool (masks); or several of them, in a
            tuple, which the model is given by position, or in a dict, by name.
        targets: Tensor [N, ...]: int64 [N] for classes; what others tasks take is said in `pruning.task`.

    Raises:
        ValueError: With every fault that was found.
    """

    inputs: Any  # `Inputs`, of which callers that know which kind they gave need not be told
    targets: Tensor

    def __post_init__(self) -> None:
        parts = tensors_of(self.inputs)
        faults = [] if parts else ["inputs hold no tensor"]
        for name, part in parts.items():
            faults += self._faults_of(name, part, single=isinstance(self.inputs, Tensor))
        if self.targets.ndim < 1:
            faults.append("targets have shape [], expected [N, ...]")
        elif not faults and len(self.targets) == 0:
            faults.append("there are no samples")
        if faults:
            raise ValueError("; ".join(faults))

    def _faults_of(self, name: str, part: Any, *, single: bool) -> list[str]:
        if not isinstance(part, Tensor):
            return [f"{name} is a {type(part).__name__}, expected a tensor [N, ...]"]
        faults, fewest = [], 2 if single else 1
        if part.ndim < fewest:
            axes = "at least two axes" if single else "the samples on its first axis"
            faults.append(
                f"{name} {'have' if single else 'has'} shape {list(part.shape)}, expected [N, ...] with {axes}"
            )
        if part.dtype not in INPUT_DTYPES:
            faults.append(f"{name} are {part.dtype}, expected torch.float32, torch.int64 or torch.bool; convert them")
        if self.targets.ndim and part.shape[:1] != self.targets.shape[:1]:
            faults.append(f"{part.shape[:1].numel()} {name} for {self.targets.shape[:1].numel()} targets")
        elif (
            self.targets.ndim
            and len(self.targets)
            and part.is_floating_point()
            and part.ndim
            and (broken := _numbers_of_broken(part))
        ):
            faults.append(
                f"{len(broken)} of {len(part)} {name} hold values that are not finite, the first of them number "
                f"{broken[0]}, counted from 0; clean the data"
            )
        return faults

    def __len__(self) -> int:
        """Count the samples."""
        return len(self.targets)

    def take(self, indices: Tensor) -> Samples:
        """Return the samples at these indices, in this order.

        Args:
            indices: Tensor [M], int64.
        """
        taken = {name: part[indices] for name, part in tensors_of(self.inputs).items()}
        return Samples(inputs_of(taken), self.targets[indices])


def _numbers_of_broken(inputs: Tensor) -> list[int]:
    """Return the numbers of the inputs that hold a NaN or an infinity, without a copy of them all."""
    rows = inputs.reshape(len(inputs), -1)
    suspects = (~rows.sum(1).isfinite()).nonzero()[:, 0]  # the sum of large numbers may overflow: hence the second look
    return suspects[(~rows[suspects].isfinite()).any(1)].tolist()


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
    def unlabelled(cls, train: Inputs, validation: Inputs, test: Inputs, classes: tuple[str, ...]) -> Splits:
        """Make a data set of inputs alone: a model that is trained already can be pruned on it.

        The pipeline takes the baseline's answers for labels, so that accuracy is the agreement with it.

        Args:
            train: Inputs, [N, ...] each, that recovery looks at; a few hundred do.
            validation: Inputs that decisions are made on.
            test: Inputs that the result is reported on.
            classes: The names of the model's outputs.

        Raises:
            ValueError: With every fault that was found.
        """
        counts = [len(next(iter(tensors_of(part).values()), ())) for part in (train, validation, test)]
        bare = zip((train, validation, test), counts, strict=True)
        parts = [Samples(part, torch.zeros(count, dtype=torch.int64)) for part, count in bare]
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
        first = tensors_of(self.train.inputs)
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
            found = tensors_of(samples.inputs)
            if found.keys() != first.keys():
                faults.append(f"{name} has {', '.join(found)}, train {', '.join(first)}; expected the same")
                continue
            for what, part in found.items():
                shape, dtype = first[what].shape[1:], first[what].dtype
                if part.shape[1:] != shape:
                    faults.append(f"{what} of {name} have shape {list(part.shape[1:])}, those of train {list(shape)}")
                if part.dtype != dtype:
                    faults.append(f"{what} of {name} are {part.dtype}, those of train {dtype}")
        if faults:
            raise ValueError("; ".join(faults))

    @property
    def input_shape(self) -> Any:
        """The shape of one input, without the batch axis; of several, in their container."""
        return inputs_of(shapes_of(self.train.inputs))

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
            for part, tensor in (*sorted(tensors_of(samples.inputs).items()), ("targets", samples.targets)):
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
        tokens: The text of each token id, for the report; None: their numbers are shown.
    """

    train: Any
    validation: Any
    test: Any
    collate_fn: Callable[[list[Any]], Any] | None = None
    sources: Sequence[str | Path] = ()
    classes: Sequence[str] | None = None
    fingerprint: str | None = None
    tokens: Sequence[str] | None = None


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
