"""Inputs of other sizes than the example's, and whether two models agree on them.

Axes of equal size are taken for one extent (the batch, a length, both sides of an image) and change together; first
axes can be an extent of their own. Which of them a model takes is found by running it, so a size that it refuses (the
channels of an image, the sides of one that is flattened) costs one attempt and teaches nothing.

`narrow` compares the masked and the narrowed model on all that `other_inputs` yields for the masked one; the fuzzer and
the coverage table do the same:

    for inputs, expected in other_inputs(masked, example):
        difference = relative_difference(expected, outputs_of(dense, inputs))
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import inf
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from pruning.containers import Inputs, as_call
from pruning.graph.dispatch import examples_of
from pruning.graph.module_copy import copy_whole
from pruning.plan.verification import attempt, comparable_outputs, difference_on, outputs_of

_MOST_VALUES = 1 << 19  # inputs with more values are only made smaller
_MOST_ALONE = 4  # axes of one size that are made larger one by one
_BATCH = 2  # samples of the example that are looked at
_LOOKED_AT = 256  # values that tell a mask from numbers

Place = tuple[int, int]  # which tensor, which of its axes


def other_inputs(model: nn.Module, example: Inputs) -> Iterator[tuple[Inputs, list[Tensor]]]:
    """Yield inputs of other batches, lengths and sizes that a model takes, with the outputs that it gives.

    Each extent of the example is made larger once and smaller once. The same example gives the same inputs. Of a batch
    two samples are looked at; where the example has more than half a million values, nothing is made larger. A model
    that folds one larger sample into several (`x.view(-1, 16 * 7 * 7)` of an image twice as high) doesn't take it.

    Args:
        model: What the inputs are for, in evaluation; it must be on the CPU, where an index that is out of range is an
            error and not the end of the device.
        example: Inputs that the model takes, or a list of such.

    Yields:
        Inputs, and the tensors among the outputs, all of them finite.
    """
    for one in examples_of(example):
        few = _first_samples(model, one)
        of_few = comparable_outputs(outputs_of, model, few) or []
        for candidates in resizings(few):
            for inputs in candidates:
                outputs = comparable_outputs(outputs_of, model, inputs)
                if outputs is not None and not _folded(few, of_few, inputs, outputs):
                    yield inputs, outputs
                    break


def _folded(example: Inputs, of_example: Sequence[Tensor], inputs: Inputs, outputs: Sequence[Tensor]) -> bool:
    """Say whether there are as many samples as in the example, and another number of them in the outputs."""
    batch = _batch_size(example)
    if batch is None or batch != _batch_size(inputs) or len(of_example) != len(outputs):
        return False
    rows = [
        found.shape[0]
        for known, found in zip(of_example, outputs, strict=True)
        if known.shape[:1] == (batch,) and found.ndim
    ]
    return any(count != batch for count in rows)


def resizings(example: Inputs) -> Iterator[Iterator[Inputs]]:
    """Yield, for each extent of an example, inputs in which it is larger, then such in which it is smaller.

    Then one axis alone, larger by one: of a square image, one that is neither square nor even. A model may take none of
    them; those that show most come first.
    """
    leaves, structure = tree_flatten(as_call(example))
    for places, size in _extents(leaves):
        for sizes in ([2 * size, size + size // 2, size + 1], [size // 2, size - 1]):
            others = dict.fromkeys(n for n in sizes if n not in (0, size))
            yield (
                _as_inputs(_resized(leaves, places, size, other), structure)
                for other in others
                if other < size or _values(leaves, places, other / size) <= _MOST_VALUES
            )
        inner = places if all(axis for _, axis in places) else []
        for one in inner[:_MOST_ALONE]:
            if _values(leaves, [one], 2) <= _MOST_VALUES:
                yield (_as_inputs(_resized(leaves, [one], size, other), structure) for other in (size + 1, 2 * size))


def difference_elsewhere(expected: nn.Module, found: nn.Module, example: Inputs) -> tuple[float, str, int]:
    """Compare two models on inputs of all other sizes that the first one takes.

    A difference above `TOLERANCE` that is rounding counts as none.

    Returns:
        The largest relative difference, infinite where the second model fails; the shapes of the inputs that show it;
        and how many inputs were tried.
    """
    everywhere = [*expected.parameters(), *expected.buffers(), *tree_flatten(example)[0]]
    if any(isinstance(t, Tensor) and t.device.type != "cpu" for t in everywhere):
        expected, found = copy_whole(expected).cpu(), copy_whole(found).cpu()
        example = tree_map(lambda v: v.cpu() if isinstance(v, Tensor) else v, example)
    worst, where, tried = 0.0, "", 0
    for inputs, outputs in other_inputs(expected, example):
        tried += 1
        difference = attempt(difference_on, expected, found, inputs, outputs)
        if difference is None or difference > worst:
            worst, where = inf if difference is None else difference, _shapes(inputs)
    return worst, where, tried


def _first_samples(model: nn.Module, example: Inputs) -> Inputs:
    """The first samples of a batch, where all tensors begin with an axis of one size and the model takes fewer."""
    leaves, structure = tree_flatten(as_call(example))
    if (_batch_size(example) or 0) <= _BATCH:
        return example
    fewer = _as_inputs([leaf[:_BATCH] if _is_sized(leaf) else leaf for leaf in leaves], structure)
    return example if comparable_outputs(outputs_of, model, fewer) is None else fewer


def _batch_size(inputs: Inputs) -> int | None:
    """The size of the first axis, where it is the same of all tensors."""
    sizes = {leaf.shape[0] for leaf in tree_flatten(as_call(inputs))[0] if _is_sized(leaf)}
    return sizes.pop() if len(sizes) == 1 else None


def _as_inputs(leaves: Sequence[Any], structure: Any) -> Inputs:
    args, kwargs = tree_unflatten(leaves, structure)
    inputs: Inputs = kwargs or args
    return inputs


def _extents(leaves: Sequence[Any]) -> Iterator[tuple[list[Place], int]]:
    """Yield the axes that may be one extent, and their size: all of a size, then first axes and others apart."""
    places: dict[int, list[Place]] = {}
    for index, leaf in enumerate(leaves):
        for axis, size in enumerate(leaf.shape if _is_sized(leaf) else ()):
            if size > 1 or axis == 0:
                places.setdefault(size, []).append((index, axis))
    for size, every in places.items():
        first, rest = [p for p in every if p[1] == 0], [p for p in every if p[1] > 0]
        yield every, size
        if first and rest:
            yield first, size
            yield rest, size


def _resized(leaves: Sequence[Any], places: Sequence[Place], size: int, other: int) -> list[Any]:
    generator = torch.Generator().manual_seed(other)
    found = list(leaves)
    for index, axis in places:
        tensor: Tensor = found[index].movedim(axis, 0)
        tensor = tensor[:other] if other < size else torch.cat([tensor, _more(tensor, other - size, generator)])
        found[index] = tensor.movedim(0, axis)
    if other < size:
        found = [_shortened(leaf, size, other) for leaf in found]
    return found


def _shortened(leaf: Any, size: int, other: int) -> Any:
    """Lengths that go up to the size of an extent go up to its new one."""
    valued = _is_sized(leaf) and not leaf.is_meta
    holds_lengths = valued and _is_integer(leaf) and leaf.numel() and int(leaf.max()) == size
    return leaf.clamp(max=other) if holds_lengths else leaf


def _more(tensor: Tensor, number: int, generator: torch.Generator) -> Tensor:
    """Further rows like those of a tensor: no two alike where they hold numbers, going on where they count."""
    size = len(tensor)
    first, second = (torch.randint(size, (number,), generator=generator).to(tensor.device) for _ in range(2))
    if tensor.is_meta:  # it has no values that could be gone on with
        return tensor[first]
    if tensor.is_floating_point() and len(set(tensor.flatten()[:_LOOKED_AT].tolist())) > 2:  # no mask
        share = torch.rand(number, generator=generator).to(tensor).view(-1, *[1] * (tensor.ndim - 1))
        return share * tensor[first] + (1 - share) * tensor[second]
    if _is_integer(tensor) and size > 2 and tensor.numel():
        steps = tensor.diff(dim=0)
        if bool((steps == steps[:1]).all()) and bool((steps != 0).any()):
            ahead = torch.arange(1, number + 1, device=tensor.device, dtype=tensor.dtype)
            return tensor[-1:] + ahead.view(-1, *[1] * (tensor.ndim - 1)) * steps[:1]
    return tensor[first]


def _shapes(inputs: Inputs) -> str:
    return ", ".join(str(tuple(t.shape)) for t in tree_flatten(inputs)[0] if isinstance(t, Tensor))


def _is_sized(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.layout == torch.strided and not leaf.is_nested and leaf.ndim > 0


def _is_integer(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() and not tensor.is_complex() and tensor.dtype != torch.bool


def _values(leaves: Sequence[Any], places: Sequence[Place], times: float) -> float:
    """How many values there are once the axes at some places are so many times as long."""
    tensors = {index: leaf for index, leaf in enumerate(leaves) if isinstance(leaf, Tensor)}
    return sum(leaf.numel() * times ** sum(at == index for at, _ in places) for index, leaf in tensors.items())
