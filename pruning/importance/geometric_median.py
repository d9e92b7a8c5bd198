"""Distances between filters: what others can stand in for may go."""

from __future__ import annotations

import torch
from torch import Tensor

from pruning.graph.groups import Group
from pruning.importance.norms import filters
from pruning.importance.registry import criterion
from pruning.statistics.collect import Statistics

_DUPLICATE = 1e-7  # relative distance below which rounding can't tell two filters apart


def order_by_geometric_median(group: Group, statistics: Statistics) -> list[int]:
    """Remove the filter nearest to all that remain, again and again.

    So of two duplicates one goes early and the other is judged without it. The paper ranks once, which lets both go.
    Equally near ones (the last two always are) go by their score over the whole layer, then by channel index.
    """
    distances = _distances(group, statistics)
    scores = distances.sum(dim=1)
    sums, tolerance = scores.clone(), _DUPLICATE * float(scores.mean())
    order: list[int] = []
    for _ in range(group.size):
        nearest = sums <= sums.min() + tolerance
        gone = int(torch.where(nearest, scores, torch.inf).argmin())
        order.append(gone)
        sums -= distances[gone]
        sums[gone] = torch.inf
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
    return torch.stack([_pairwise(rows) for rows in filters(group, statistics)]).sum(dim=0)


def _pairwise(rows: Tensor) -> Tensor:
    """Return ‖a − b‖₂ for all pairs of rows, by ‖a‖² + ‖b‖² − 2ab, which is a matrix product and fast."""
    squares = rows.square().sum(dim=1)
    distances = (squares[:, None] + squares[None, :] - 2 * rows @ rows.T).clamp(min=0).sqrt()
    lengths = squares.sqrt()
    distances[distances < _DUPLICATE * (lengths[:, None] + lengths[None, :])] = 0
    return distances
