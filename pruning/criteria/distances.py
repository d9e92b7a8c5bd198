"""Distances between filters: what others can stand in for may go."""

from __future__ import annotations

import torch
from torch import Tensor

from pruning.criteria.norms import filters
from pruning.criteria.registry import criterion
from pruning.groups import Group
from pruning.statistics import Statistics


def order_by_geometric_median(group: Group, statistics: Statistics) -> list[int]:
    """Remove the filter nearest to all that remain, again and again; equal ones go by channel index.

    So of two duplicates one goes early and the other is judged without it. The paper ranks once, which lets both go.
    """
    distances = _distances(group, statistics)
    sums = distances.sum(dim=1)
    order: list[int] = []
    for _ in range(group.size):
        nearest = int(sums.argmin())
        order.append(nearest)
        sums -= distances[nearest]
        sums[nearest] = torch.inf
    return order


@criterion("geometric_median", needs={"weights"}, ordering=order_by_geometric_median)
def geometric_median(group: Group, statistics: Statistics) -> Tensor:
    """Score filter i by Σ_j ‖W_i − W_j‖₂ over the filters of its layer; the smallest goes.

    Distances are between the filters themselves, not their absolute values: filters 1, −1, 3 score 4, 6, 6. Taken over
    the same slices as `l1_norm`, and summed over coupled layers. Removal follows `order_by_geometric_median`.

    Source: He et al. 2019 (FPGM), arXiv 1811.00250.
    """
    return _distances(group, statistics).sum(dim=1)


def _distances(group: Group, statistics: Statistics) -> Tensor:
    """Return the distances between the group's filters, [size, size], summed over coupled layers."""
    exact = "donot_use_mm_for_euclid_dist"
    return torch.stack([torch.cdist(rows, rows, compute_mode=exact) for rows in filters(group, statistics)]).sum(dim=0)
