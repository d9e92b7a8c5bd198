"""Channels that others can be combined to replace."""

from __future__ import annotations

import torch
from torch import Tensor

from pruning.errors import UnscoredGroupError
from pruning.graph.groups import Group
from pruning.importance.least_squares import RIDGE, Columns, readings
from pruning.importance.registry import criterion
from pruning.statistics.collect import Statistics
from pruning.statistics.moments import damped, solve
from pruning.statistics.readers import BY_NO_LAYER


def combine_channels(columns: Columns) -> Tensor:
    """Return the consumer's matrix with X ≈ A X_S put in: W_S + W_R A_RS, one A for all taps of a channel."""
    taps, kept = columns.taps, columns.kept.reshape(-1, columns.taps)[:, 0]
    channels = len(kept)
    by_channel = columns.covariance.reshape(channels, taps, channels, taps)
    covariance = by_channel.diagonal(dim1=1, dim2=3).mean(dim=-1)
    mixed = solve(damped(covariance[kept][:, kept], RIDGE), covariance[kept][:, ~kept])  # [kept, gone]
    weights = columns.matrix.reshape(-1, channels, taps)
    return (weights[:, kept] + torch.einsum("ort,sr->ost", weights[:, ~kept], mixed)).flatten(1)


@criterion("reduce_and_reuse", needs={"moments"}, folding=combine_channels)
def reduce_and_reuse(group: Group, statistics: Statistics) -> Tensor:
    """Score channel c by the variance of its activation, over samples and positions.

    Of what the consumers read, after the non-linearity; several consumers add up. No slice is read. Folding finds A
    with X ≈ A X_S, S being the channels kept, by least squares with a small ridge, and multiplies it into every
    consumer's weights; the mean goes into the bias, or the batch norm that follows, first.

    Source: Polyak & Wolf, IEEE Access 2015, "Channel-level acceleration of deep face representations";
    it adds a 1 × 1 convolution A; ours folds it, so that nothing is added, with an A of each consumer's own.

    Raises:
        UnscoredGroupError: something else than a convolution or linear layer reads the channels; the text names it.
    """
    if group.name in (statistics.contributions or {}):
        raise UnscoredGroupError(group.name, BY_NO_LAYER)
    found = [one.covariance.diagonal()[one.columns].mean(dim=1) for one in readings(group, statistics)]
    return torch.stack(found).sum(dim=0)
