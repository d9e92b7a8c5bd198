"""Whether two models compute the same function: their outputs on the same inputs, compared."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from math import inf
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from pruning.containers import outputs_in, with_tensors
from pruning.errors import pass_on
from pruning.tracing.copying import copy_whole
from pruning.tracing.watch import Inputs, as_call, examples_of

_DRAWS = 3  # of moved parameters
_ROUNDINGS = 10.0
_MOVED = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128)

T = TypeVar("T")


def outputs_of(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    """Run a model on all examples in eval mode without gradients; modes, inputs and random state stay as they were.

    Returns:
        The tensors that its outputs hold.

    Raises:
        ModelError: They hold none, or the inputs can't be copied.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    found: list[Tensor] = []
    try:
        for example in examples_of(inputs):
            args, kwargs = with_tensors(as_call(example), lambda tensor: tensor.detach().clone())
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                found += outputs_in(model, model(*args, **kwargs), by_value=True)
    finally:
        for module, training in modes:
            module.training = training
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
        first, second = (copy_whole(model).double() if wide else model for model in (expected, found))
        given = with_tensors(inputs, lambda t: t.double() if wide and t.is_floating_point() else t)
        outputs, others = run(first, given), run(second, given)
        return relative_difference(outputs, others, floors_of(first, outputs, given, run))

    difference = attempt(compared, True)
    if difference is None:
        difference = attempt(compared, False)
    return inf if difference is None else difference


def floors_of(
    model: nn.Module,
    outputs: Sequence[Tensor],
    inputs: Inputs,
    run: Callable[[nn.Module, Inputs], list[Tensor]] = outputs_of,
) -> list[float]:
    """Up to which difference two models can't be told apart, since rounding makes as large ones.

    An output that is zero in theory, such as the mean of what an instance norm gives, is what rounding leaves of it, in
    any precision, and no two orders of summation leave the same. How much that is shows where the parameters are moved
    by no more than they are rounded.

    Args:
        model: A model.
        outputs: What it gives.
        inputs: What it is given.
        run: Runs a model on inputs and returns the tensors of its outputs.

    Returns:
        For each output ten times the largest difference that moving the parameters makes.

    Source: Parker, Monte Carlo Arithmetic (1997): random rounding shows which digits of a result are significant.
    """
    draws = [attempt(run, _moved(model, seed), inputs) or [] for seed in range(_DRAWS)]
    return [
        _ROUNDINGS * max((_distance(output, draw[i]) for draw in draws if len(draw) == len(outputs)), default=0.0)
        for i, output in enumerate(outputs)
    ]


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
