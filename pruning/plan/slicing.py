"""Copy a module with sliced tensors in place of the full ones, and let torch's modules state their new widths.

They are brought in line with the weights of a narrowed copy, whatever computes these: a parametrization gives the
weight as it is used, and one that a hook computes before each pass (torch.nn.utils.weight_norm) is computed anew. A
norm without weights takes its width from the axis that it was called with.

The original is never touched, and its weights are never copied whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from pruning.evaluation import restored_modes
from pruning.graph.axes import Atom, Axis, count, kept, leaves
from pruning.graph.groups import Groups
from pruning.graph.module_copy import copy_module, make_narrowable, restore
from pruning.graph.size_attributes import rebind
from pruning.graph.trace import Trace
from pruning.plan.plan import Plan


def state_widths(dense: nn.Module, traced: Trace, sizes: Mapping[Atom, int]) -> None:
    """Let all modules of a narrowed copy state their widths.

    Args:
        dense: The copy, whose parameters and buffers are sliced.
        traced: The trace of the original.
        sizes: How many channels are left of each group.
    """
    with torch.no_grad(), restored_modes(dense):
        dense.eval()  # a spectral norm's estimate goes on whenever its weight is read in training
        for module in dense.modules():
            _compute_weights(module)
            _recount(module)
    for path, axis in _without_weights(dense, traced):
        module = dense.get_submodule(path)
        setattr(module, "num_channels" if isinstance(module, nn.GroupNorm) else "num_features", count(axis, sizes))


def _compute_weights(module: nn.Module) -> None:
    """Compute anew the weights that hooks leave as plain attributes, as the next pass would."""
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, WeightNorm):
            setattr(module, hook.name, hook.compute_weight(module))
        elif isinstance(hook, SpectralNorm):
            setattr(module, hook.name, hook.compute_weight(module, do_power_iteration=False))


def _without_weights(dense: nn.Module, traced: Trace) -> Iterator[tuple[str, Axis]]:
    """Yield the paths of norms that have no tensors, with the axis of channels that they were called with."""
    norms = {
        path
        for path, module in dense.named_modules()
        if isinstance(module, nn.GroupNorm | nn.modules.batchnorm._NormBase)
        and not any(True for _ in (*module.parameters(), *module.buffers()))
    }
    for one in traced.passes if norms else ():
        for operation in one.operations:
            if operation.place.module in norms and operation.name.endswith("_norm"):
                yield operation.place.module, operation.inputs[0][1]


def _recount(module: nn.Module) -> None:
    match module:
        case nn.MultiheadAttention():
            packed: Any = module.in_proj_weight
            apart: Any = (module.q_proj_weight, module.k_proj_weight, module.v_proj_weight)
            queries, keys, values = apart if packed is None else (packed[: len(packed) // 3], packed, packed)
            module.embed_dim, module.kdim, module.vdim = queries.shape[1], keys.shape[1], values.shape[1]
            module.head_dim = len(queries) // module.num_heads
        case nn.Bilinear():
            module.out_features, module.in1_features, module.in2_features = module.weight.shape
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
        case nn.LayerNorm() | nn.RMSNorm():
            if module.weight is not None:
                module.normalized_shape = tuple(module.weight.shape)
        case nn.PReLU():
            module.num_parameters = module.weight.numel()
        case nn.Embedding() | nn.EmbeddingBag():
            module.num_embeddings, module.embedding_dim = module.weight.shape
        case nn.RNNBase():
            inputs: Any = module.weight_ih_l0  # may be what a parametrization computes
            hidden: Any = module.weight_hh_l0
            module.input_size = inputs.shape[1]
            module.hidden_size = hidden.shape[0] // {"LSTM": 4, "GRU": 3}.get(module.mode, 1)
            module.proj_size = hidden.shape[1] if module.proj_size else 0
        case nn.modules.rnn.RNNCellBase():
            module.hidden_size = module.weight_hh.shape[1]
            module.input_size = module.weight_ih.shape[1]


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
