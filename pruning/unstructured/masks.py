"""Masks of single weights: which go (a share, or all but N of every M), how zeros stay zero, how they are stored.

A mask is bool, in the parameter's shape, True where a weight stays. Nothing gets narrower: the model keeps its shape
and its MACs, and a dense runtime gains no time. What gets smaller is what is stored.

A tensor of n values of which k are not zero becomes a bitmap of n bits and the k values. Below 97 % of zeros that is
shorter than 32-bit indices, whatever pattern the zeros follow, so that one form serves single weights and N:M alike.
Packing is by bits: a negative zero is a value, and what is unpacked is what was packed, bit for bit.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from math import ceil, prod
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from pruning.batches import Batches, Samples
from pruning.errors import CheckpointError, ModelError, SettingsError, TargetError, unknown_name
from pruning.evaluation import Loss, cross_entropy
from pruning.graph.groups import Groups
from pruning.graph.layers import Geometry, to_matrix
from pruning.plan.constraints import Entry, parameters_in
from pruning.statistics.layer_hooks import find_layers
from pruning.unstructured.criteria import WeightCriterion, score_layers

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


WeightScopeName = Literal["local", "global"]

_ROUNDING = 1e-9

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class WeightScope:
    """How a share of the weights is spread over the layers.

    Attributes:
        name: "local": the same share of each; "global": one threshold over all, scores taken as they are.
        max_layer_sparsity: for "global": largest share that one layer may lose; one weight stays in any case.

    Raises:
        SettingsError: the name is unknown.
    """

    name: WeightScopeName = "global"
    max_layer_sparsity: float = 0.99

    def __post_init__(self) -> None:
        if self.name not in get_args(WeightScopeName):
            raise SettingsError(unknown_name("scope", self.name, get_args(WeightScopeName)))


def choose_weights(
    groups: Groups,
    weight_sparsity: float,
    criterion: str | WeightCriterion = "l1_norm",
    *,
    scope: WeightScopeName | WeightScope = "global",
    ignore: Sequence[Entry] = (),
    samples: Samples | Batches | None = None,
    loss: Loss = cross_entropy,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Choose single weights of convolutions and linear layers to go: the least number that makes up the share.

    local: of each layer the same share goes, ⌈share · n⌉ weights of n, though never the last one. global: one threshold
    over all layers, scores taken as they are. Equal scores go by the layer's place in the model, then by index. Weights
    that are zero already go first, so that masks of a rising share lie within each other.

    Args:
        groups: found on the model.
        weight_sparsity: share of the weights of all layers not ignored that is to be zero, in (0, 1).
        criterion: a name of `weight_criteria`, or a function of its contract.
        scope: how the share is spread over the layers; a name is short for a `WeightScope` with its defaults.
        ignore: names, prefixes or patterns of modules or parameters that stay whole.
        samples: for criteria that look at gradients.
        loss: for the same.
        seed: of random scores and of the minibatches.

    Returns:
        The mask of each layer that is not ignored.

    Raises:
        TargetError: the share can't be met.
        CriterionError: the criterion doesn't apply to single weights.
        SettingsError: an entry of `ignore` matches nothing.

    Source: Han et al. 2015, arXiv 1506.02626 (by magnitude); in steps with a rising rate: Zhu & Gupta 2017,
    arXiv 1710.01878.
    """
    if not 0 < weight_sparsity < 1:
        raise TargetError(f"weight_sparsity is {weight_sparsity:g}; expected a share between 0 and 1, both excluded")
    spread = scope if isinstance(scope, WeightScope) else WeightScope(scope)
    names = tuple(_weights(groups, ignore))
    scores = score_layers(groups.model, names, criterion, samples, loss, seed=seed)
    if spread.name == "local":
        masks = {name: _without_lowest(own, _count(weight_sparsity, own.numel())) for name, own in scores.items()}
        limit = "in local scope no layer may lose its last weight"
    else:
        flat = {name: _spared(values.flatten(), spread.max_layer_sparsity) for name, values in scores.items()}
        joined = torch.cat(list(flat.values()))
        free = int((joined < torch.inf).sum())
        kept = _without_lowest(joined, min(free, _count(weight_sparsity, len(joined))))
        parts = torch.split(kept, [len(values) for values in flat.values()])
        masks = {name: part.reshape(scores[name].shape) for name, part in zip(flat, parts, strict=True)}
        limit = f"no layer may lose more than {spread.max_layer_sparsity:.1%} of its weights; raise max_layer_sparsity"
    if sparsity_of(masks) < weight_sparsity - _ROUNDING:
        raise TargetError(
            f"weight_sparsity {weight_sparsity:g} can't be met, {sparsity_of(masks):.4f} can: {limit}, or ask for less"
        )
    return masks


def choose_n_of_m(
    groups: Groups,
    num_kept: int,
    of: int,
    criterion: str | WeightCriterion = "l1_norm",
    *,
    ignore: Sequence[Entry] = (),
    samples: Samples | Batches | None = None,
    loss: Loss = cross_entropy,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Keep N of every M weights that lie next to each other along the axis over which a layer sums.

    That axis is in_features of a linear layer; of a convolution it is kernel taps × input channels of a group, channels
    varying fastest, so that where M divides the channels each M lie under one tap: the order in which hardware with
    sparse matrix units wants them. Of equal scores the first stay.

    Args:
        groups: found on the model.
        num_kept: N, in [1, M).
        of: M.
        criterion: as of `choose_weights`.
        ignore: names, prefixes or patterns of modules or parameters that stay whole.
        samples: for criteria that look at gradients.
        loss: for the same.
        seed: of random scores and of the minibatches.

    Returns:
        The mask of each layer that is not ignored. Weights that are used otherwise (packed projections of attention,
        parametrized weights) stay whole, with a warning in the log.

    Raises:
        TargetError: N and M are no pattern, or M doesn't divide the axis of a layer; all such layers are named.
        CriterionError: the criterion doesn't apply to single weights.
        SettingsError: an entry of `ignore` matches nothing.

    Source: Mishra et al. 2021, arXiv 2104.08378 (2:4).
    """
    if not 1 <= num_kept < of:
        raise TargetError(f"{num_kept}:{of} is no pattern; expected N:M with 1 ≤ N < M, such as 2:4")
    parameters, places = dict(groups.model.named_parameters()), {}
    for name, geometry in _weights(groups, ignore).items():
        if geometry is None:
            _log.warning("%s stays whole: it is not read as the weights of a convolution or linear layer", name)
        else:
            places[name] = _summed(parameters[name], geometry)
    odd = [f"{name} ({found.shape[1]})" for name, found in places.items() if found.shape[1] % of]
    if odd:
        raise TargetError(
            f"{num_kept}:{of} needs layers that sum over a multiple of {of} values; these don't: {', '.join(odd)}. "
            "Add them to ignore, or choose another M"
        )
    scores = score_layers(groups.model, tuple(places), criterion, samples, loss, seed=seed)
    masks = {}
    for name, index in places.items():
        lanes = index.reshape(-1, of)
        best = torch.argsort(scores[name].flatten()[lanes], dim=1, descending=True, stable=True)[:, :num_kept]
        mask = torch.zeros(scores[name].numel(), dtype=torch.bool)
        mask[lanes.gather(1, best)] = True
        masks[name] = mask.reshape(scores[name].shape)
    return masks


def _weights(groups: Groups, ignore: Sequence[Entry]) -> dict[str, Geometry | None]:
    """Return the weights that may go: of layers in the order of their calls, then those that products use otherwise.

    Such are packed projections of attention, and what a parametrization computes a layer's weights from. A zero in
    them is a zero of the product, but along which axis it sums is not known: they have no geometry.
    """
    if isinstance(ignore, str):
        raise SettingsError(f"ignore is the text {ignore!r}; expected a list: [{ignore!r}]")
    ignored = parameters_in(groups.model, ignore, "ignore")
    known = dict(groups.model.named_parameters())
    found = find_layers(groups.model, groups.example_inputs)
    layers: dict[str, Geometry | None] = {one.weight: one.geometry for one in found if one.weight in known}
    operands = (operand for one in groups.trace.facts.contractions for operand in one.operands)
    sources = {name for operand in operands for name in operand.sources}
    for name, parameter in known.items():
        if name in sources and sum(size > 1 for size in parameter.shape) > 1:
            layers.setdefault(name, None)
    chosen = {name: geometry for name, geometry in layers.items() if name not in ignored}
    if not chosen:
        raise TargetError("no weights can go: the model has no convolution or linear layer that is not ignored")
    return chosen


def _summed(weight: Tensor, geometry: Geometry) -> Tensor:
    """Return the flat index of each weight, [outputs, values summed over], channels varying fastest."""
    index = to_matrix(torch.arange(weight.numel()).reshape(weight.shape), geometry)
    rows = index.reshape(-1, index.shape[-1])
    return rows.reshape(len(rows), -1, prod(geometry.kernel)).transpose(1, 2).flatten(1)


def _spared(scores: Tensor, largest_share: float) -> Tensor:
    """Set the scores of those that a layer must keep to infinity."""
    spared = max(1, ceil((1 - largest_share) * len(scores) - 1e-9))
    out = scores.clone()
    out[torch.argsort(scores, stable=True)[len(scores) - spared :]] = torch.inf
    return out


def _count(share: float, size: int) -> int:
    return ceil(share * size - _ROUNDING)


def _without_lowest(scores: Tensor, count: int) -> Tensor:
    mask = torch.ones(scores.numel(), dtype=torch.bool)
    mask[torch.argsort(scores.flatten(), stable=True)[: min(count, scores.numel() - 1)]] = False
    return mask.reshape(scores.shape)
