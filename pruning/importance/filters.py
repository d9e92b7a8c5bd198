"""Criteria that look at parameters alone: filters' norms, LAMP, distances, the scales of batch norms (and SCOP's)."""

from __future__ import annotations

import torch
from torch import Tensor

from pruning.errors import UnscoredGroupError
from pruning.graph.groups import Group
from pruning.graph.layers import own_slices
from pruning.importance.registry import criterion
from pruning.statistics.collect import Statistics

_DUPLICATE = 1e-7  # relative distance below which rounding can't tell two filters apart


@criterion("l1_norm", needs={"weights"})
def l1_norm(group: Group, statistics: Statistics) -> Tensor:
    """Score filter i by Σ |W_i|.

    Taken over the producers' weights (the filters, as in the paper), without biases and norms, and summed over coupled
    layers. Not comparable between layers unless normalised.

    Source: Li et al. 2016, arXiv 1608.08710.
    """
    return sum_over_filters(group, statistics, 1)


@criterion("l2_norm", needs={"weights"})
def l2_norm(group: Group, statistics: Statistics) -> Tensor:
    """Score filter i by √Σ W_i².

    Taken over the same slices as `l1_norm`; of coupled layers the norms are summed.

    Source: Li et al. 2016, arXiv 1608.08710.
    """
    return sum_over_filters(group, statistics, 2)


@criterion("lamp", needs={"weights"})
def lamp(group: Group, statistics: Statistics) -> Tensor:
    """Score filter i by Σ W_i² over the sum of Σ W_j² of all filters j of its layer that are at least as large.

    Taken over the same slices as `l1_norm`; of coupled layers the squares are added up first. The largest filter scores
    1 in every layer, so that layers compare as they are: in global scope choose the normalisation "none".

    Source: Lee et al. 2020, arXiv 2010.07611, which scores single weights; ours scores whole filters.
    """
    return over_larger(torch.stack([rows.square().sum(dim=1) for rows in filters(group, statistics)]).sum(dim=0))


def over_larger(squares: Tensor) -> Tensor:
    """Divide each of some squares, [size], by the sum of all that are at least as large: LAMP's normalisation."""
    remaining = torch.where(squares[None, :] >= squares[:, None], squares[None, :], 0.0).sum(dim=1)
    return squares / remaining.clamp(min=torch.finfo(torch.float64).tiny)


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


def sum_over_filters(group: Group, statistics: Statistics, power: int) -> Tensor:
    """Return the filters' norms, summed over the coupled layers, [size]."""
    return torch.stack([rows.norm(p=power, dim=1) for rows in filters(group, statistics)]).sum(dim=0)


def filters(group: Group, statistics: Statistics) -> list[Tensor]:
    """Return the filters of each of the group's layers, [size, values per filter] each.

    They are the weights of its producers; of a group without any, all its slices that hold no integers.

    Raises:
        UnscoredGroupError: There are none.
    """
    produced = [
        piece for piece in group.slices if piece.role == "producer" and not piece.use.endswith((".bias", "_bias"))
    ]
    if not produced:
        produced = own_slices(
            group, (name for name, t in statistics.tensors.items() if t.is_floating_point() or t.is_complex())
        )
    if not produced:
        raise UnscoredGroupError(group.name, "it has no weights to take a norm of")
    return [statistics.rows(piece, group.size) for piece in produced]


@criterion("bn_scale", needs={"weights"})
def bn_scale(group: Group, statistics: Statistics) -> Tensor:
    """Score channel i by |γ_i|.

    Taken over the γ of every batch norm in the group, and summed over coupled layers. Telling only after training with
    a penalty on γ.

    Source: Liu et al. 2017, arXiv 1708.06519.

    Raises:
        UnscoredGroupError: the group has no batch norm with a γ.
    """
    scales = _scales(group, statistics)
    if scales is None:
        raise UnscoredGroupError(group.name, "it has no batch norm with a scale")
    return scales


@criterion("scop", needs={"weights", "knockoffs"})
def scop(group: Group, statistics: Statistics) -> Tensor:
    """Score channel i by |γ_i| (β_i − (1 − β_i)).

    β weighs the channel against a knockoff of it: what the consumers read becomes β A + (1 − β) Ã, and β is learned
    from ½ with the weights frozen. A channel that the loss can't tell from its knockoff scores 0, a worse one less. |γ|
    is added up over the group's batch norms, and is 1 where there is none.

    Source: Tang et al. 2020, arXiv 2010.10732. The paper makes knockoff images by a generative model and reads
    their features in the whole network; ours takes other samples, shuffled, and learns β in the one pass over them.

    Raises:
        UnscoredGroupError: something else than a convolution or linear module reads the channels; the text names it.
    """
    shares = statistics.of("knockoffs", group)
    scales = _scales(group, statistics)
    return (2 * shares - 1) * (1.0 if scales is None else scales)


def _scales(group: Group, statistics: Statistics) -> Tensor | None:
    """Return |γ|, summed over the group's batch norms, [size]; None if there is none."""
    found = [
        statistics.rows(piece, group.size).abs().sum(dim=1)
        for piece in group.slices
        if piece.use == "batch_norm.weight"
    ]
    return torch.stack(found).sum(dim=0) if found else None
