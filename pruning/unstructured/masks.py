"""Masks of single weights: how zeros stay zero while training, and how they are stored.

A mask is bool, in the parameter's shape, True where a weight stays. Nothing gets narrower: the model keeps its shape
and its MACs, and a dense runtime gains no time. What gets smaller is what is stored (`pruning.unstructured.masks`).

A tensor of n values of which k are not zero becomes a bitmap of n bits and the k values. Below 97 % of zeros that is
shorter than 32-bit indices, whatever pattern the zeros follow, so that one form serves single weights and N:M alike.
Packing is by bits: a negative zero is a value, and what is unpacked is what was packed, bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from math import prod

import numpy as np
import torch
from torch import Tensor, nn

from pruning.errors import CheckpointError, ModelError

WeightMasks = Mapping[str, Tensor]
"""Parameter -> which of its weights stay."""


def zero_weights(model: nn.Module, masks: WeightMasks) -> None:
    """Set the weights that masks take away to zero, in place."""
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, mask in masks.items():
            parameters[name].masked_fill_(~mask.to(parameters[name].device), 0.0)


@contextmanager
def enforce_masks(model: nn.Module, masks: WeightMasks) -> Iterator[None]:
    """Zero what masks take away, and keep it at exactly zero while the block trains the model.

    Their gradients are zero, so their momenta are, and weight decay leaves a zero where it is. It holds for every
    optimizer that updates value by value and begins inside the block.

    Raises:
        ModelError: Some are not zero at the end of the block: the optimizer isn't of that kind.
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
    for name, mask in masks.items():
        if bool(parameters[name].detach()[~mask.to(parameters[name].device)].any()):
            raise ModelError(
                f"weights of {name} that were removed are not zero after training: its optimizer or trainer moves "
                "weights whose gradients are zero; choose one that updates value by value, such as sgd or adamw"
            )


def sparsity_of(masks: WeightMasks) -> float:
    """Return the share of weights that masks take away, over all layers that have one."""
    total = sum(mask.numel() for mask in masks.values())
    return sum(int((~mask).sum()) for mask in masks.values()) / total


BITMAP = ":bitmap"
_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def pack(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, list[int]]]:
    """Pack every floating-point tensor of two axes or more that gets shorter by it.

    Returns:
        The tensors to store: a packed one as its values, [k], under its name, and its bitmap, uint8 [⌈n/8⌉], under its
        name and `:bitmap`. And the shapes of those that were packed.
    """
    stored: dict[str, Tensor] = {}
    shapes: dict[str, list[int]] = {}
    for name, tensor in state.items():
        if not _pays(tensor):
            stored[name] = tensor
            continue
        kept = _nonzero(tensor)
        stored[name] = tensor.flatten()[kept]
        stored[name + BITMAP] = torch.from_numpy(np.packbits(kept.numpy()))
        shapes[name] = list(tensor.shape)
    return stored, shapes


def unpack(stored: Mapping[str, Tensor], shapes: Mapping[str, Iterable[int]]) -> dict[str, Tensor]:
    """Undo `pack`.

    Raises:
        CheckpointError: a bitmap is missing or doesn't fit its values.
    """
    state = dict(stored)
    for name, entries in shapes.items():
        shape = tuple(entries)
        bitmap = state.pop(name + BITMAP, None)
        if name not in state or bitmap is None:
            raise CheckpointError(f"packed tensor {name!r}: its values or its bitmap are missing")
        values, size = state[name], prod(shape)
        fits = bitmap.dtype == torch.uint8 and bitmap.ndim == 1 and bitmap.numel() == -(-size // 8)
        kept = torch.from_numpy(np.unpackbits(bitmap.numpy(), count=size).astype(bool)) if fits else None
        if kept is None or int(kept.sum()) != values.numel():
            marks = f"marks {int(kept.sum())}" if kept is not None else "is too short or too long"
            raise CheckpointError(
                f"packed tensor {name!r} of shape {shape}: {values.numel()} values, its bitmap of {bitmap.numel()} "
                f"bytes {marks}"
            )
        full = torch.zeros(size, dtype=values.dtype)
        full[kept] = values
        state[name] = full.reshape(shape)
    return state


def packed_bytes(tensor: Tensor) -> int:
    """Return the bytes that a tensor takes when stored, packed if that is shorter."""
    whole = tensor.numel() * tensor.element_size()
    return _packed(tensor) if _pays(tensor) else whole


def _pays(tensor: Tensor) -> bool:
    if tensor.ndim < 2 or not tensor.is_floating_point():
        return False
    return _packed(tensor) < tensor.numel() * tensor.element_size()


def _packed(tensor: Tensor) -> int:
    return int(_nonzero(tensor).sum()) * tensor.element_size() + -(-tensor.numel() // 8)


def _nonzero(tensor: Tensor) -> Tensor:
    """Return where any bit is set, bool [n] on the CPU."""
    flat = tensor.detach().cpu().contiguous().flatten()
    return flat.view(_WORDS[tensor.element_size()]) != 0
