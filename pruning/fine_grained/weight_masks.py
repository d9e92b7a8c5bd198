"""Masks of single weights, and how what they take away stays gone while training.

A mask is bool, in the parameter's shape, True where a weight stays. Nothing gets narrower: the model keeps its shape
and its MACs, and a dense runtime gains no time. What gets smaller is what is stored (`pruning.fine_grained.packing`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

WeightMasks = Mapping[str, Tensor]
"""Parameter -> which of its weights stay."""


def zero_weights(model: nn.Module, masks: WeightMasks) -> None:
    """Set the weights that masks take away to zero, in place."""
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, mask in masks.items():
            parameters[name].masked_fill_(~mask.to(parameters[name].device), 0.0)


@contextmanager
def held(model: nn.Module, masks: WeightMasks) -> Iterator[None]:
    """Zero what masks take away, and keep it at exactly zero while the block trains the model.

    Their gradients are zero, so their momenta are, and weight decay leaves a zero where it is. It holds for every
    optimizer that updates value by value and begins inside the block.
    """
    zero_weights(model, masks)
    parameters = dict(model.named_parameters())
    handles = []
    for name, mask in masks.items():
        gone = ~mask.to(parameters[name].device)
        zero = partial(Tensor.masked_fill, mask=gone, value=0.0)
        handles.append(parameters[name].register_hook(zero))  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def sparsity_of(masks: WeightMasks) -> float:
    """Return the share of weights that masks take away, over all layers that have one."""
    total = sum(mask.numel() for mask in masks.values())
    return sum(int((~mask).sum()) for mask in masks.values()) / total
