"""Whether two models compute the same function: their outputs on the same inputs, compared."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

import torch
from torch import Tensor, nn

from pruning.containers import outputs_in, with_tensors
from pruning.tracing.watch import Inputs, as_call, examples_of


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
