"""The way back: a model of the original shape with a narrowed model's weights where channels were kept."""

from __future__ import annotations

import torch
from torch import nn

from pruning.algebra.axes import kept
from pruning.structure.groups import Groups
from pruning.structure.masks import apply_masks
from pruning.structure.plan import Plan


def widen(dense: nn.Module, plan: Plan, groups: Groups) -> nn.Module:
    """Return a model of the original shape that holds a narrowed model's weights where channels were kept.

    Masked by the plan, it computes what the narrowed one computes. Unmasked, the channels that went are back as the
    original had them: so a later plan may keep them.

    Args:
        dense: What `plan` left of the original, trained on since.
        plan: From the original to the narrowed model.
        groups: Found on the original, which stays as it is; its values fill the places of the channels that went.
    """
    masks = plan.masks(groups)
    wide = {name: tensor.clone() for name, tensor in groups.model.state_dict().items()}
    for name, tensor in dense.state_dict().items():
        axes = groups.trace.parameters.get(name, [])
        if axes:
            indices = [kept(axis, masks).nonzero().flatten().to(tensor.device) for axis in axes]
            wide[name][torch.meshgrid(*indices, indexing="ij")] = tensor
        else:
            wide[name].copy_(tensor)
    twin = apply_masks(groups.model, Plan(removed={}, sizes={}), groups=groups)
    twin.load_state_dict(wide)
    return twin
