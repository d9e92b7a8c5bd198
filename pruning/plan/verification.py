"""Whether two models compute the same function on the same inputs, rounding aside.

And a narrowed model's forward pass followed along the trace: the same operators and numbers, the predicted shapes.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from math import inf
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from pruning.containers import Inputs, as_call, outputs_in, with_tensors
from pruning.errors import pass_on
from pruning.graph.axes import Atom, count, cut
from pruning.graph.contexts import forked_torch, seed_torch
from pruning.graph.dispatch import Listeners, Place, examples_of, state_of, watch
from pruning.graph.groups import Groups
from pruning.graph.module_copy import copy_whole
from pruning.graph.rules.call import arguments_of, is_pointwise, operator_name, tensors_in
from pruning.graph.rules.reshaping import is_dense, slice_start
from pruning.graph.trace import IDENTITIES, Operation, Trace, constants_of

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
        copy = copy_whole(model).eval()  # a codebook, `max_norm` write into parameters, some in evaluation too
        with torch.no_grad(), forked_torch():
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


@dataclass(frozen=True)
class Deviation:
    """Where the narrowed model leaves the path that the axes predict.

    Attributes:
        traced: The pass that deviates.
        index: Position of the operator in the trace.
        text: What was found and what was expected.
        constant: Whether the shapes are right, and a number that isn't a size differs.
        checked: Whether no operator failed but a check in code, before the operator was called.
    """

    traced: Trace
    index: int
    text: str
    constant: bool = False
    checked: bool = False

    @property
    def reached(self) -> tuple[int, bool]:
        """How far the pass came: to which operator, and whether as far as calling it."""
        return self.index, not self.checked

    @property
    def operation(self) -> Operation:
        """The operator at which it deviates."""
        return self.traced.operations[min(self.index, len(self.traced.operations) - 1)]


class _Ended(Exception):  # noqa: N818 - stops the forward pass; no fault of anyone
    pass


class Comparison:
    """Follow a narrowed model's forward pass along the operations of the trace, as far as the one numbered `last`."""

    def __init__(self, traced: Trace, sizes: Mapping[Atom, int], last: int | None = None) -> None:
        self.traced = traced
        self.last = last
        self.operations = traced.operations
        self.sizes = sizes
        self.index = 0
        self.deviation: Deviation | None = None

    def run(self, model: nn.Module, groups: Groups) -> Deviation | None:
        """Run the narrowed model; tell where it deviates, or None."""
        devices = {name: tensor.device for name, tensor in state_of(groups.model).items() if not tensor.is_meta}
        try:
            traced, listeners = self.traced, Listeners(self.on_call)
            watch(model, traced.example, listeners, traced.tensors, devices=devices, training=traced.training)
        except _Ended:
            return self.deviation
        except Exception as fault:  # noqa: BLE001 - the model's own code may raise anything at a size it doesn't know
            pass_on(fault)
            return Deviation(self.traced, self.index, _first_line(fault), checked=not hasattr(fault, "__notes__"))
        if self.index < len(self.operations):
            return Deviation(self.traced, self.index, "it ends early")
        return None

    def on_call(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any], result: Any, place: Place) -> None:
        """Compare one operator call with the next one of the trace."""
        outputs = tensors_in(result)
        if not outputs or operator_name(func) in IDENTITIES:
            return
        if self.index >= len(self.operations):
            self._stop(f"it goes on with {operator_name(func)} {place}")
        expected = self.operations[self.index]
        if operator_name(func) != expected.name:
            self._stop(f"it calls {operator_name(func)} instead of {expected.name}")
        for out, axes in zip(outputs, expected.outputs, strict=True):
            shape = [count(axis, self.sizes) for axis in axes]
            if list(out.shape) != shape:
                self._stop(f"{expected.name} gives shape {list(out.shape)} where {shape} was expected")
        for out, decided in zip(outputs, expected.decided, strict=False):
            if decided is not None and out.shape == decided.shape:
                out.copy_(decided)  # narrowed, it computes other values, and may take another way than the example
        numbers = (int, float, complex) if is_pointwise(func) or "full" in expected.name else (float, complex)
        for found, known in zip(constants_of(args, kwargs, self.traced.tensors), expected.constants, strict=False):
            if isinstance(known, numbers) and not isinstance(known, bool) and found != known:
                self._stop(f"{expected.name} uses {found!r} instead of {known!r}", constant=True)
        if expected.name in ("slice", "narrow"):
            self._compare_start(arguments_of(func, args, kwargs), expected)
        if expected.steps:
            self._compare_strides(arguments_of(func, args, kwargs), expected.steps)
        if self.index == self.last:
            raise _Ended
        self.index += 1

    def _compare_start(self, arguments: Mapping[str, Any], expected: Operation) -> None:
        """A slice of the right length can still begin at the wrong channel."""
        x, dim = arguments["self"], arguments["dim"] % arguments["self"].ndim
        axis = expected.inputs[0][dim]
        before = cut(axis, [expected.start, axis.size - expected.start])[0]
        start, known = slice_start(arguments["start"], x.shape[dim]), count(before, self.sizes)
        if start != known:
            self._stop(f"{expected.name} begins at {start} where {known} was expected")

    def _compare_strides(self, arguments: Mapping[str, Any], steps: Sequence[Sequence[int]]) -> None:
        """Windows of the right shape can still lie at the wrong places in memory."""
        x, wide = arguments["self"], [size > 1 for size in arguments["size"]]
        known = [sum(n * stride for n, stride in zip(by, x.stride(), strict=True)) for by in steps]
        found, known = (list(compress(strides, wide)) for strides in (arguments["stride"], known))
        if found != known or not is_dense(x) or arguments["storage_offset"] not in (None, x.storage_offset()):
            self._stop(f"as_strided has strides {found} where {known} was expected")

    def _stop(self, text: str, *, constant: bool = False) -> None:
        self.deviation = Deviation(self.traced, self.index, text, constant)
        raise _Ended


def _first_line(fault: Exception) -> str:
    return str(fault).strip().splitlines()[0] if str(fault).strip() else type(fault).__name__
