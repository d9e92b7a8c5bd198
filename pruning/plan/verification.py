"""Whether two models compute the same function: on the same inputs, and on inputs of other sizes.

Axes of equal size are taken for one extent (the batch, a length, both sides of an image) and change together; first
axes can be an extent of their own. Which of them a model takes is found by running it, so a size that it refuses (the
channels of an image, the sides of one that is flattened) costs one attempt and teaches nothing.

`narrow` compares the masked and the narrowed model on all that `other_inputs` yields for the masked one; the fuzzer and
the coverage table do the same:

    for inputs, expected in other_inputs(masked, example):
        difference = relative_difference(expected, outputs_of(dense, inputs))
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from math import inf
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from pruning.containers import Inputs, as_call, outputs_in, with_tensors
from pruning.errors import pass_on
from pruning.graph.contexts import seed_torch
from pruning.graph.dispatch import examples_of
from pruning.graph.module_copy import copy_to_run, copy_whole

TOLERANCE = 1e-4
"""Largest relative difference, in float32, of two models that count as the same."""

_DRAWS = 3  # of moved parameters
_ROUNDINGS = 10.0
_SHRINKS = 100.0  # at least so much less is rounding in float64 than in float32; in theory 5e8 times
_MOVED = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128)

T = TypeVar("T")


def outputs_of(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    """Run a model on all examples in eval mode without gradients, each time from the state that it is in now.

    The model, with all that it remembers from call to call, the inputs and the random state stay as they were.

    Returns:
        The tensors that its outputs hold.

    Raises:
        ModelError: They hold none, or the model or the inputs can't be copied.
    """
    found: list[Tensor] = []
    for example in examples_of(inputs):
        args, kwargs = with_tensors(as_call(example), lambda tensor: tensor.detach().clone())
        copy = copy_to_run(model).eval()
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            seed_torch()
            found += outputs_in(copy, copy(*args, **kwargs), by_value=True)
    return found


def attempt(run: Callable[..., T], *arguments: Any) -> T | None:
    """Do with a model what it may refuse; None where it does. Faults that aren't the model's pass through."""
    try:
        return run(*arguments)
    except Exception as fault:  # noqa: BLE001 - a model's own code may raise anything
        pass_on(fault)
        return None


def comparable_outputs(run: Callable[..., list[Tensor]], *arguments: Any) -> list[Tensor] | None:
    """Run a model as nobody has called it yet; None where it refuses, or gives what can't be compared.

    Args:
        run: Returns the tensors of its outputs, as `outputs_of` does.
        arguments: Of `run`.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        outputs = attempt(run, *arguments)
    return outputs if outputs is not None and hold_values(outputs) and are_finite(outputs) else None


def difference_beyond_rounding(
    expected: nn.Module,
    found: nn.Module,
    inputs: Inputs,
    run: Callable[[nn.Module, Inputs], list[Tensor]] = outputs_of,
) -> float:
    """Compare two models as far as their outputs can be computed: in float64, where rounding is small, if they take it.

    Args:
        expected: A model.
        found: Another one, which should compute the same.
        inputs: What both are given.
        run: Runs a model on inputs and returns the tensors of its outputs.

    Returns:
        As `relative_difference`, where what rounding leaves counts as no difference; infinite where one doesn't run.
    """

    def compared(wide: bool) -> float:
        first, second = (_in(torch.float64, model) if wide else model for model in (expected, found))
        given = _given_in(torch.float64, inputs) if wide else inputs
        return difference_of_outputs(first, run(first, given), run(second, given), given, run)

    difference = attempt(compared, True)
    if difference is None:
        difference = attempt(compared, False)
    return inf if difference is None else difference


def difference_on(
    expected: nn.Module,
    found: nn.Module,
    inputs: Inputs,
    outputs: Sequence[Tensor] | None = None,
    *,
    tolerance: float = TOLERANCE,
    run: Callable[[nn.Module, Inputs], list[Tensor]] = outputs_of,
) -> float:
    """Compare two models on inputs, where what rounding makes of larger differences counts as none.

    Args:
        expected: A model.
        found: Another one, which should compute the same.
        inputs: What both are given.
        outputs: What the first one gives, if that is known.
        tolerance: Up to which difference nothing is looked at more closely.
        run: Runs a model on inputs and returns the tensors of its outputs.

    Returns:
        As `relative_difference`.
    """
    difference = relative_difference(run(expected, inputs) if outputs is None else outputs, run(found, inputs))
    if difference <= tolerance:
        return difference
    return min(difference, difference_beyond_rounding(expected, found, inputs, run))


def difference_of_outputs(
    model: nn.Module,
    outputs: Sequence[Tensor],
    found: Sequence[Tensor],
    inputs: Inputs,
    run: Callable[[nn.Module, Inputs], list[Tensor]] = outputs_of,
) -> float:
    """Compare what another model gives with a model's outputs, as `relative_difference`; rounding counts as none.

    An output that is zero in theory, such as the mean of what an instance norm gives, is what rounding leaves of it, in
    any precision, and no two orders of summation leave the same. How much that is shows where the parameters are moved
    by no more than they are rounded. What moves as much in a precision with a billionth of the rounding isn't rounded:
    it jumps (`(x == 1)`, `x.int()` of a parameter, as in PyTorch's orthogonal parametrization), and isn't excused.

    Args:
        model: A model.
        outputs: What it gives.
        found: What the other one gives.
        inputs: What both are given.
        run: Runs a model on inputs and returns the tensors of its outputs.

    Source: Parker, Monte Carlo Arithmetic (1997): random rounding shows which digits of a result are significant.
    """
    plain = relative_difference(outputs, found)
    if plain <= TOLERANCE:
        return plain
    floors = _floors(model, outputs, inputs, run)
    beyond = relative_difference(outputs, found, floors)
    if beyond > TOLERANCE or not any(floors):
        return beyond
    widest = all(t.dtype in (torch.float64, torch.complex128) for t in _rounded(model))
    other = torch.float32 if widest else torch.float64

    def in_other() -> list[float]:
        converted, given = _in(other, model), _given_in(other, inputs)
        return _floors(converted, run(converted, given), given, run)

    found_there = attempt(in_other)
    if found_there is None or len(found_there) != len(floors):
        return beyond
    coarse, fine = (found_there, floors) if widest else (floors, found_there)
    real = [floor if f <= c / _SHRINKS else 0.0 for floor, c, f in zip(floors, coarse, fine, strict=True)]
    return relative_difference(outputs, found, real)


def _floors(
    model: nn.Module, outputs: Sequence[Tensor], inputs: Inputs, run: Callable[[nn.Module, Inputs], list[Tensor]]
) -> list[float]:
    """For each output ten times the largest difference that moving the parameters makes."""
    draws = [attempt(run, _moved(model, seed), inputs) or [] for seed in range(_DRAWS)]
    return [
        _ROUNDINGS * max((_distance(output, draw[i]) for draw in draws if len(draw) == len(outputs)), default=0.0)
        for i, output in enumerate(outputs)
    ]


def _rounded(model: nn.Module) -> list[Tensor]:
    return [t for t in (*model.parameters(), *model.buffers()) if t.is_floating_point() or t.is_complex()]


def _in(dtype: torch.dtype, model: nn.Module) -> nn.Module:
    copy = copy_whole(model)
    return copy.double() if dtype == torch.float64 else copy.float()  # not `to`, which takes a complex one's half


def _given_in(dtype: torch.dtype, inputs: Inputs) -> Inputs:
    found: Inputs = with_tensors(inputs, lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor)
    return found


def _moved(model: nn.Module, seed: int) -> nn.Module:
    """Copy a model with parameters that are others by at most two units in their last place."""
    generator = torch.Generator().manual_seed(seed)
    moved = copy_whole(model)
    with torch.no_grad():
        for parameter in moved.parameters():
            if parameter.dtype in _MOVED:
                by = 2 * torch.rand(parameter.shape, generator=generator) - 1
                parameter.mul_((1 + 2 * torch.finfo(parameter.dtype).eps * by.double()).to(parameter))
    return moved


def hold_values(outputs: Sequence[Tensor]) -> bool:
    """Whether there is a finite value among the outputs, without which a comparison says nothing."""
    return any(bool(torch.isfinite(_plain(tensor)).any()) for tensor in outputs)


def are_finite(outputs: Sequence[Tensor]) -> bool:
    """Whether all values of the outputs are finite."""
    return all(bool(torch.isfinite(_plain(tensor)).all()) for tensor in outputs)


def relative_difference(expected: Sequence[Tensor], found: Sequence[Tensor], floors: Sequence[float] = ()) -> float:
    """The largest difference of two lists of tensors, each relative to the largest value of the expected one.

    Args:
        expected: Tensors.
        found: As many others.
        floors: For each of them, up to which difference it counts as none.

    Returns:
        max|found − expected| / max|expected|, the largest over the tensors; infinite where shapes or non-finite values
        differ, and where there is no finite value to compare.
    """
    if len(expected) != len(found):
        return inf
    worst, compared = 0.0, False
    for a, b, floor in zip(expected, found, floors or [0.0] * len(expected), strict=True):
        difference = _distance(a, b)
        values = _plain(a)
        finite = values[torch.isfinite(values)]
        compared = compared or finite.numel() > 0
        if difference > floor:
            exact = not (values.is_floating_point() or values.is_complex())
            scale = float(finite.abs().max()) if finite.numel() else 0.0
            worst = max(worst, inf if exact or scale == 0.0 else difference / scale)
    return worst if compared else inf


def _distance(expected: Tensor, found: Tensor) -> float:
    """max|found − expected| over the finite values; infinite where shapes differ, or which values are finite."""
    a, b = _plain(expected), _plain(found)
    if a.shape != b.shape:
        return inf
    finite = torch.isfinite(a)
    if not torch.equal(finite, torch.isfinite(b)):
        return inf
    return float((a - b)[finite].abs().max()) if finite.any() else 0.0


def _plain(tensor: Tensor) -> Tensor:
    """Turn what PyTorch can't subtract into what it can: values of few bits, truths, nested and sparse tensors."""
    if tensor.is_nested:
        tensor = tensor.to_padded_tensor(0.0)
    if tensor.is_quantized:
        tensor = tensor.dequantize()
    if tensor.layout != torch.strided:
        tensor = tensor.to_dense()
    if tensor.is_complex():
        return tensor.to(torch.complex128)
    return tensor.to(torch.float64 if tensor.is_floating_point() else torch.int64)


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
