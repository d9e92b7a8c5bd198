"""Carry a plan out irreversibly: slice parameters and buffers, update the modules' own counts, and verify.

The original is never touched, and its weights are never copied whole: the module tree is copied with the sliced tensors in place of
the full ones.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from pruning.axes import count, kept
from pruning.errors import ModelError, VerificationError
from pruning.groups import Groups
from pruning.masks import apply_masks, groups_for
from pruning.plan import Plan
from pruning.verification import outputs_of, relative_difference
from pruning.watch import Inputs

TOLERANCE = 1e-4


def narrow(
    model: nn.Module,
    plan: Plan,
    example_inputs: Inputs,
    *,
    groups: Groups | None = None,
    verify: bool = True,
    tolerance: float = TOLERANCE,
) -> nn.Module:
    """Remove for good what a plan removes.

    Args:
        model: The module that the plan was made for; it is left as it was.
        plan: Which channels go.
        example_inputs: A tensor, a tuple of arguments, or a dict of keyword arguments, with which the result is verified.
        groups: The groups of this model if they are known already; they are found otherwise.
        verify: Run the masked and the narrowed model on the example inputs and compare.
        tolerance: Largest accepted difference, relative to the largest output.

    Returns:
        A new dense module with the kept channels' weights.

    Raises:
        PlanError: The plan doesn't fit the model.
        VerificationError: The narrowed model does not compute what the masked model computes.
        ModelError: The model can't be copied.
    """
    groups = groups_for(model, plan, example_inputs, groups)
    dense = _rebuild(model, groups, plan)
    if verify:
        _verify(model, dense, plan, groups, example_inputs, tolerance)
    return dense


def _rebuild(model: nn.Module, groups: Groups, plan: Plan) -> nn.Module:
    masks = plan.masks(groups)
    memo: dict[int, Any] = {}
    with torch.no_grad():
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            sliced = tensor.detach()
            for position, axis in enumerate(groups.trace.parameters[name]):
                mask = kept(axis, masks)
                if not mask.all():
                    sliced = sliced.index_select(position, mask.nonzero().flatten().to(tensor.device))
            sliced = sliced.clone() if sliced.data_ptr() == tensor.data_ptr() else sliced
            memo[id(tensor)] = (
                nn.Parameter(sliced, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else sliced
            )
    try:
        dense = deepcopy(model, memo)
    except Exception as fault:
        raise ModelError(
            f"{type(model).__name__} can't be copied: {fault}. A module may hold only what copy.deepcopy can copy: "
            "no open files, no generators, no tensors that were computed with gradients"
        ) from fault
    sizes = {groups.atom(name): size for name, size in plan.kept_sizes(groups).items()}
    counts = {path: count(axis, sizes) for path, axis in groups.trace.facts.group_counts.items()}
    for path, module in dense.named_modules():
        _recount(module, counts.get(path))
    return dense


def _recount(module: nn.Module, num_groups: int | None) -> None:
    """Bring the counts that torch's own modules keep beside their weights in line with the weights."""
    match module:
        case nn.Linear():
            module.out_features, module.in_features = module.weight.shape
        case nn.modules.conv._ConvNd():
            if module.groups > 1 and num_groups is not None:
                module.groups = num_groups
            first, second = module.weight.shape[:2]
            if module.transposed:
                module.in_channels, module.out_channels = first, second * module.groups
            else:
                module.in_channels, module.out_channels = second * module.groups, first
        case nn.modules.batchnorm._NormBase():
            state = next((t for t in (module.weight, module.running_mean) if isinstance(t, Tensor)), None)
            module.num_features = module.num_features if state is None else state.shape[0]
        case nn.GroupNorm():
            module.num_groups = num_groups or module.num_groups
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


def _verify(
    model: nn.Module, dense: nn.Module, plan: Plan, groups: Groups, example_inputs: Inputs, tolerance: float
) -> None:
    masked = apply_masks(model, plan, groups=groups)
    expected = outputs_of(masked, example_inputs)
    name = type(model).__name__
    advice = (
        "The plan was not carried out and the model is as it was. Leave the groups of that module out by "
        "`ignore=[...]`, and please report the model: no group may be offered that can't be narrowed exactly."
    )
    try:
        found = outputs_of(dense, example_inputs)
    except Exception as fault:
        raise VerificationError(f"the narrowed {name} does not run: {fault}. {advice}") from fault
    difference = relative_difference(expected, found)
    if not difference <= tolerance:
        raise VerificationError(
            f"the narrowed {name} differs from the masked one by {difference:.2e} of the largest output; "
            f"at most {tolerance:.0e} is accepted. {advice}"
        )
