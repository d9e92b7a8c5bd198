"""Wanda, of whole channels: magnitudes of weights times those of what they are multiplied with."""

from __future__ import annotations

import torch
from torch import Tensor

from pruning.graph.groups import Group
from pruning.importance.least_squares import powers
from pruning.importance.registry import criterion
from pruning.statistics.collect import Statistics


@criterion("wanda", needs={"moments"})
def wanda(group: Group, statistics: Statistics) -> Tensor:
    """Score channel j by Σ_i |W_ij| · ‖x_j‖, a sum over its columns j in all layers that read it.

    ‖x_j‖ is the root of the mean square over rows (the paper's norm divided by the root of their number). Operators
    that read the channels and are no layers count for nothing.

    Source: Sun et al. 2023 (Wanda), arXiv 2306.11695, whose score is of single weights; added up over those of a
    channel as "Wanda-sp", the control of An et al. 2023 (FLAP), arXiv 2312.11983.

    Raises:
        UnscoredGroupError: No layer reads the channels.
    """
    found = [
        (square.sqrt() * weights.abs().sum(dim=2)).sum(dim=1)
        for square, weights in powers(group, statistics, centred=False)
    ]
    return torch.stack(found).sum(dim=0)
