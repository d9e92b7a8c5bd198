"""The control that every claim for a criterion is made against."""

from __future__ import annotations

import torch
from torch import Tensor

from pruning.graph.groups import Group
from pruning.importance.registry import criterion
from pruning.statistics.collect import Statistics


@criterion("random", needs=())
def random(group: Group, statistics: Statistics) -> Tensor:
    """Score every channel by a uniform random number in [0, 1).

    Drawn from a generator of the group's own, seeded by the statistics' seed and the group's name; no slice is read.

    Source: control; at moderate rates and after fine-tuning it is within half a point of the best criteria.
    """
    return torch.rand(group.size, generator=statistics.generator(group), dtype=torch.float64)
