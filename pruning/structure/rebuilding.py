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
from pruning.tracing.attention import make_narrowable
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
    dense = copy_module(model, tensors)
    for attention in make_narrowable(dense):
        # Tells TransformerEncoderLayer not to take its fused path, which knows full widths alone.
        attention._qkv_same_embed_dim = False
    for traced in groups.trace.passes:
        rebind(dense, traced.facts.counts, sizes)
    for module in dense.modules():
        _recount(module)
    return dense


def keep(tensor: Tensor, axes: Sequence[Axis], masks: Mapping[Atom, Tensor]) -> Tensor:
    """Copy the part of a tensor that the masks keep along its axes."""
    sliced = tensor
    for position, axis in enumerate(axes):
        if any(atom in masks for atom in leaves(axis)):
            indices = kept(axis, masks).nonzero().flatten()
            sliced = sliced.index_select(position, indices.to(tensor.device))
    return sliced.clone() if sliced is tensor else sliced


def _recount(module: nn.Module) -> None:
    """Bring the counts that torch's own modules keep beside their weights in line with the weights."""
    match module:
        case nn.Linear():
            module.out_features, module.in_features = module.weight.shape
        case nn.modules.conv._ConvNd():
            first, second = module.weight.shape[:2]
            if module.transposed:
                module.in_channels, module.out_channels = first, second * module.groups
            else:
                module.in_channels, module.out_channels = second * module.groups, first
        case nn.modules.batchnorm._NormBase():
            state = next((t for t in (module.weight, module.running_mean) if isinstance(t, Tensor)), None)
            module.num_features = module.num_features if state is None else state.shape[0]
        case nn.GroupNorm():
            module.num_channels = module.num_channels if module.weight is None else module.weight.shape[0]
        case nn.LayerNorm():
            if module.weight is not None:
                module.normalized_shape = tuple(module.weight.shape)
        case nn.RMSNorm():
            if module.weight is not None:
                module.normalized_shape = tuple(module.weight.shape)
        case nn.PReLU():
            module.num_parameters = module.weight.numel()
        case nn.Embedding():
            module.num_embeddings, module.embedding_dim = module.weight.shape
        case nn.RNNBase():
            state = module.get_parameter("weight_hh_l0")
            module.input_size = module.get_parameter("weight_ih_l0").shape[1]
            module.hidden_size = state.shape[0] // {"LSTM": 4, "GRU": 3}.get(module.mode, 1)
            module.proj_size = state.shape[1] if module.proj_size else 0
        case nn.modules.rnn.RNNCellBase():
            module.hidden_size = module.get_parameter("weight_hh").shape[1]
            module.input_size = module.get_parameter("weight_ih").shape[1]
