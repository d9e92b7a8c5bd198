"""The way back: a model of the original shape with a narrowed model's weights where channels were kept."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pruning.groups import Groups
from pruning.masks import apply_masks
from pruning.plan import Plan


def widen(dense: nn.Module, plan: Plan, groups: Groups) -> nn.Module:
    """Return a model of the original shape that holds a narrowed model's weights where channels were kept.

    Masked by the plan, it computes what the narrowed one computes. Unmasked, the channels that went are back as the
    original had them: so a later plan may keep them.

    Args:
        dense: What `plan` left of the original, trained on since.
        plan: From the original to the narrowed model.
        groups: Found on the original, which stays as it is; its values fill the places of the channels that went.
    """
    kept = _kept_indices(plan, groups)
    wide = {name: tensor.clone() for name, tensor in groups.model.state_dict().items()}
    for name, tensor in dense.state_dict().items():
        grid = [kept.get((name, axis), torch.arange(size)) for axis, size in enumerate(wide[name].shape)]
        if grid:
            wide[name][torch.meshgrid(*grid, indexing="ij")] = tensor
        else:
            wide[name].copy_(tensor)
    twin = apply_masks(groups.model, Plan(removed={}, sizes={}), groups=groups)
    twin.load_state_dict(wide)
    return twin


def _kept_indices(plan: Plan, groups: Groups) -> dict[tuple[str, int], Tensor]:
    """Map (parameter, axis) to the indices that the plan keeps, where it removes any."""
    gone: dict[tuple[str, int], Tensor] = {}
    for name, removed in plan.removed.items():
        for piece in groups[name].slices:
            here = torch.isin(piece.channels(), torch.tensor(removed, dtype=torch.long))
            place = (piece.parameter, piece.axis)
            gone[place] = gone[place] | here if place in gone else here
    return {place: torch.nonzero(~mask).flatten() for place, mask in gone.items()}
