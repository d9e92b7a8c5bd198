"""Whether two models compute the same function: their outputs on the same inputs, compared."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from pruning.tracing.watch import Inputs, as_call


def outputs_of(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    """Run a model in eval mode without gradients, leaving its modes and the global random state as they were.

    Returns:
        The tensors among its outputs.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    args, kwargs = as_call(inputs)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            result = model(*args, **kwargs)
    finally:
        for module, training in modes:
            module.training = training
    return [leaf for leaf in tree_flatten(result)[0] if isinstance(leaf, Tensor)]


def relative_difference(expected: Sequence[Tensor], found: Sequence[Tensor]) -> float:
    """The largest difference of two lists of tensors, each relative to the largest value of the expected one.

    Returns:
        max|found − expected| / max|expected|, the largest over the tensors; infinite where shapes or non-finite values
        differ.
    """
    if [t.shape for t in expected] != [t.shape for t in found]:
        return float("inf")
    worst = 0.0
    for a, b in zip(expected, found, strict=True):
        if not a.numel():
            continue
        if not (a.is_floating_point() or a.is_complex()):
            worst = max(worst, 0.0 if torch.equal(a, b) else float("inf"))
            continue
        finite = torch.isfinite(a)
        if not torch.equal(finite, torch.isfinite(b)):
            return float("inf")
        scale = float(a[finite].abs().max()) if finite.any() else 0.0
        difference = float((a - b)[finite].abs().max()) if finite.any() else 0.0
        worst = max(worst, difference / scale if scale else (0.0 if difference == 0.0 else float("inf")))
    return worst
