"""The scales of batch norms."""

from __future__ import annotations

import torch
from torch import Tensor

from pruning.errors import UnscoredGroupError
from pruning.graph.groups import Group
from pruning.importance.registry import criterion
from pruning.statistics.collect import Statistics


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
