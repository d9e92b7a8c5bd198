"""Forward selection: from nothing, the channel that helps most, again and again."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pruning.graph.groups import Group
from pruning.importance.least_squares import Columns, all_contributions
from pruning.importance.registry import criterion
from pruning.statistics.collect import Statistics

_ROUNDS = 8  # at most so many additions per channel
_TINY = 1e-300


@dataclass(frozen=True)
class Selection:
    """A run of forward selection.

    Attributes:
        added: distinct channels in the order in which they were added first.
        errors: the lowest relative squared error before each of these was added.
        lowest: the lowest at the end.
        following: what the error would be with one more of each channel, [size].
        weights: how much each channel counts for in the end, [size]: its additions times the factor.
    """

    added: list[int]
    errors: list[float]
    lowest: float
    following: Tensor
    weights: Tensor


def select(gram: Tensor, allowed: Tensor) -> Selection:
    """Add channels until each that is allowed was added once, or eight times their number were.

    Args:
        gram: [size, size] products of the channels' contributions.
        allowed: bool [size].
    """
    size, whole = len(gram), max(float(gram.sum()), _TINY)
    reached, diagonal = gram.sum(dim=1), gram.diagonal()
    counts = torch.zeros(size, dtype=torch.float64)
    following = torch.ones(size, dtype=torch.float64)
    added: list[int] = []
    errors: list[float] = []
    lowest = 1.0
    for _ in range(_ROUNDS * size):
        product = gram @ counts
        squared = counts @ product + 2 * product + diagonal
        aligned = reached @ counts + reached
        following = 1 - aligned.clamp(min=0).square() / (squared.clamp(min=_TINY) * whole)
        best = int(torch.where(allowed, following, torch.inf).argmin())
        if counts[best] == 0:
            added.append(best)
            errors.append(lowest)
        counts[best] += 1
        lowest = min(lowest, max(float(following[best]), 0.0))
        if len(added) == int(allowed.sum()):
            break
    factor = float(reached @ counts) / max(float(counts @ gram @ counts), _TINY)
    return Selection(added, errors, lowest, following, counts * factor)


def order_greedily(group: Group, statistics: Statistics) -> list[int]:
    """Let the channel that was added last go first; before it, those that never were, the least helpful first."""
    selection = _select(group, statistics)
    worst_first = torch.argsort(selection.following, descending=True, stable=True).tolist()
    return [*(c for c in worst_first if c not in set(selection.added)), *reversed(selection.added)]


def multiplicities(group: Group, statistics: Statistics, kept: Tensor) -> Tensor:
    """Return the weight of each channel when forward selection may use those kept alone, [size].

    A channel that was kept although selection has no use for it weighs nothing.
    """
    return _select(group, statistics, kept).weights


def fold_multiplicities(columns: Columns) -> Tensor:
    """Return the consumer's weights times the multiplicities."""
    return (columns.matrix * columns.multiplicities()[None, :])[:, columns.kept]


@criterion("greedy_forward", needs={"moments"}, ordering=order_greedily, folding=fold_multiplicities)
def greedy_forward(group: Group, statistics: Statistics) -> Tensor:
    """Score channel c by the error at which forward selection stood before it added c first.

    From the empty layer each step adds the channel, anew or once more, that brings s · Σ m_c X_c W_c nearest to
    Y = Σ X_c W_c, m being the counts and s the best factor for them all. The error is ‖Y − …‖² / ‖Y‖², the lowest so
    far: what it would cost to stop there. Taken over the consumers' slices; several consumers add up. Removal follows
    `order_greedily`. Folding multiplies the consumers' weights by s · m_c.

    Source: Ye et al. 2020, arXiv 2003.01794. The paper measures the network's loss, and divides by the number of
    additions; ours measures the layer's output, as the authors' later paper does (arXiv 2010.15969, "local imitation"),
    so that one pass over the data serves all steps, and scales it best, as a batch norm that follows would.

    Raises:
        UnscoredGroupError: nothing reads the channels, or of something that does the error can't be told.
    """
    selection = _select(group, statistics)
    scores = selection.lowest * (selection.lowest / selection.following.clamp(min=_TINY)).clamp(max=1.0)
    scores[selection.added] = torch.tensor(selection.errors, dtype=torch.float64)
    return scores


def _select(group: Group, statistics: Statistics, allowed: Tensor | None = None) -> Selection:
    gram = all_contributions(group, statistics)
    return select(gram, torch.ones(group.size, dtype=torch.bool) if allowed is None else allowed)
