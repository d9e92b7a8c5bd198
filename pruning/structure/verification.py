"""Whether two models compute the same function: their outputs on the same inputs, compared."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from math import inf
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from pruning.containers import outputs_in, with_tensors
from pruning.errors import ModelError, pass_on
from pruning.tracing.copying import copy_whole
from pruning.tracing.watch import Inputs, as_call, examples_of

# What a model raises on what it doesn't take.
REFUSALS = (
    ArithmeticError, AssertionError, AttributeError, LookupError, NotImplementedError, RuntimeError, TypeError,
    ValueError, ModelError,
)  # fmt: skip

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
    except REFUSALS as fault:
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


def difference_in_float64(
    expected: nn.Module,
    found: nn.Module,
    inputs: Inputs,
    run: Callable[[nn.Module, Inputs], list[Tensor]] = outputs_of,
) -> float:
    """Compare two models without the rounding of float32.

    Returns:
        As `relative_difference`; infinite where a model insists on its own precision.
    """
    wide = tree_map(
        lambda leaf: leaf.double() if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf, inputs
    )

    def compared() -> float:
        return relative_difference(run(copy_whole(expected).double(), wide), run(copy_whole(found).double(), wide))

    difference = attempt(compared)
    return inf if difference is None else difference


def hold_values(outputs: Sequence[Tensor]) -> bool:
    """Whether there is a finite value among the outputs, without which a comparison says nothing."""
    return any(bool(torch.isfinite(_plain(tensor)).any()) for tensor in outputs)


def are_finite(outputs: Sequence[Tensor]) -> bool:
    """Whether all values of the outputs are finite."""
    return all(bool(torch.isfinite(_plain(tensor)).all()) for tensor in outputs)


def relative_difference(expected: Sequence[Tensor], found: Sequence[Tensor]) -> float:
    """The largest difference of two lists of tensors, each relative to the largest value of the expected one.

    Returns:
        max|found − expected| / max|expected|, the largest over the tensors; infinite where shapes or non-finite values
        differ, and where there is no finite value to compare.
    """
    pairs = [(_plain(a), _plain(b)) for a, b in zip(expected, found, strict=False)]
    if len(expected) != len(found) or any(a.shape != b.shape for a, b in pairs):
        return inf
    worst, compared = 0.0, False
    for a, b in pairs:
        finite = torch.isfinite(a)
        if not torch.equal(finite, torch.isfinite(b)):
            return inf
        if not finite.any():
            continue
        compared = True
        scale, difference = float(a[finite].abs().max()), float((a - b)[finite].abs().max())
        exact = not (a.is_floating_point() or a.is_complex())
        worst = max(worst, 0.0 if difference == 0.0 else inf if exact or scale == 0.0 else difference / scale)
    return worst if compared else inf


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
