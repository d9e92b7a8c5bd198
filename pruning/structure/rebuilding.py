"""Copy a module with sliced tensors in place of the full ones.

The original is never touched, and its weights are never copied whole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from pruning.algebra.axes import Atom, Axis, count, kept, leaves
from pruning.structure.counts import rebind
from pruning.structure.groups import Groups
from pruning.structure.plan import Plan
from pruning.structure.widths import state_widths
from pruning.tracing.attention import make_narrowable, restore
from pruning.tracing.copying import copy_module


def rebuild(model: nn.Module, groups: Groups, plan: Plan, *, shapes_only: bool = False) -> nn.Module:
    """Copy a module with its parameters and buffers sliced as a plan says, and its counts updated.

    Args:
        model: The module that the plan was made for, or another instance of the same architecture.
        groups: The groups by which the plan is read.
        plan: Which channels go.
        shapes_only: Give the copy tensors without values, on the meta device.

    Raises:
        ModelError: The module can't be copied.
    """
    masks = plan.masks(groups)
    sizes = {groups.atom(name): size for name, size in plan.kept_sizes(groups).items()}
    tensors: dict[int, Tensor] = {}
    narrowed: set[int] = set()
    with torch.no_grad():
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            axes = groups.trace.parameters[name]
            if shapes_only:
                shape = [count(axis, sizes) for axis in axes]
                sliced = torch.empty(shape, dtype=tensor.dtype, device="meta")
            else:
                sliced = keep(tensor.detach(), axes, masks)
            tensors[id(tensor)] = (
                nn.Parameter(sliced, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else sliced
            )
            if sliced.shape != tensor.shape:
                narrowed.add(id(tensors[id(tensor)]))
    dense = copy_module(model, tensors)
    for attention in make_narrowable(dense):
        if narrowed.isdisjoint(map(id, attention.parameters())):
            restore([attention])  # PyTorch's fused paths know its widths
            continue
        attention.scale = attention.head_dim**-0.5  # as it was trained
        # Tells TransformerEncoderLayer not to take its fused path, which knows full widths alone.
        attention._qkv_same_embed_dim = False
    for traced in groups.trace.passes:
        rebind(dense, traced.facts.counts, sizes)
    state_widths(dense, groups.trace, sizes)
    return dense


def keep(tensor: Tensor, axes: Sequence[Axis], masks: Mapping[Atom, Tensor]) -> Tensor:
    """Copy the part of a tensor that the masks keep along its axes."""
    sliced = tensor
    for position, axis in enumerate(axes):
        if any(atom in masks for atom in leaves(axis)):
            indices = kept(axis, masks).nonzero().flatten()
            sliced = sliced.index_select(position, indices.to(tensor.device))
    return sliced.clone() if sliced is tensor else sliced
