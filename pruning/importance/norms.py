"""Norms of the filters."""

from __future__ import annotations

import torch
from torch import Tensor

from pruning.errors import UnscoredGroupError
from pruning.graph.groups import Group
from pruning.graph.layers import own_slices
from pruning.importance.registry import criterion
from pruning.statistics.collect import Statistics


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
