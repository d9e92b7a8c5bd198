"""FLAP: how much of what a layer reads varies, weighed by what the layer makes of it."""

from __future__ import annotations

import torch
from torch import Tensor

from pruning.graph.groups import Group
from pruning.importance.least_squares import powers
from pruning.importance.registry import criterion
from pruning.statistics.collect import Statistics


@criterion("flap", needs={"moments"})
def flap(group: Group, statistics: Statistics) -> Tensor:
    """Score channel j by Var(x_j) · Σ_i W_ij², a sum over its columns j in all layers that read it.

    What a channel has beside its mean is lost with it; the mean can go into a bias (`recover.method: absorb_means`).
    The paper compares layers by standardised scores: `allocation: {strategy: global, normalise: standard}`. Operators
    that read the channels and are no layers count for nothing.

    Source: An et al. 2023 (FLAP), arXiv 2312.11983, "weighted input feature variance"; there of neurons and of heads,
    whose columns are averaged, here they are added up. The variance is that of all rows, with N in place of N − 1.

    Raises:
        UnscoredGroupError: No layer reads the channels.
    """
    found = [
        (variance * weights.square().sum(dim=2)).sum(dim=1)
        for variance, weights in powers(group, statistics, centred=True)
    ]
    return torch.stack(found).sum(dim=0)
