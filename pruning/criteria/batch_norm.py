"""The scales of batch norms."""

from __future__ import annotations

import torch
from torch import Tensor

from pruning.criteria.registry import criterion
from pruning.errors import CriterionError
from pruning.groups import Group
from pruning.statistics import Statistics


@criterion("bn_scale", needs={"weights"})
def bn_scale(group: Group, statistics: Statistics) -> Tensor:
    """Score channel i by |γ_i|.

    Taken over the γ of every batch norm in the group, and summed over coupled layers. Telling only after training with
    a penalty on γ.

    Source: Liu et al. 2017, arXiv 1708.06519.

    Raises:
        CriterionError: the group has no batch norm with a γ.
    """
    scales = [
        statistics.rows(piece, group.size).abs().sum(dim=1)
        for piece in group.slices
        if piece.use == "batch_norm.weight"
    ]
    if not scales:
        raise CriterionError(
            f"bn_scale: group {group.name!r} has no batch norm with a scale; "
            "leave the group whole (ignore) or choose a criterion that reads filters, such as l2_norm"
        )
    return torch.stack(scales).sum(dim=0)
