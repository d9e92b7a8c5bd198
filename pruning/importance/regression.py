"""Criteria by regression: the LASSO, forward selection, and channels that others can be combined to replace."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pruning.errors import UnscoredGroupError
from pruning.graph.groups import Group
from pruning.importance.least_squares import RIDGE, Columns, all_contributions, readings, refit
from pruning.importance.registry import criterion
from pruning.statistics.collect import Statistics
from pruning.statistics.collector import BY_NO_LAYER
from pruning.statistics.moments import Factored, damped, solve

_STEPS = 100  # values of λ, from the one that lets nothing in down to a thousandth of it
_SMALLEST = 1e-3
_ITERATIONS = 200
_ZERO = 1e-12


@criterion("lasso", needs={"moments"}, folding=refit)
def lasso(group: Group, statistics: Statistics) -> Tensor:
    """Score channel c by the largest λ at which β_c is not zero.

        β = argmin 1/(2N) ‖Y − Σ_c β_c X_c W_c‖² + λ ‖β‖₁

    Y is what the consumers of the whole model make of the group (its mean set aside where a bias or batch norm can take
    it), N the number of rows; several consumers add up. So raising λ until the count is met keeps the channels with the
    highest scores. Taken over the consumers' slices. Folding refits the consumers by least squares, which undoes the
    shrinkage.

    Source: He et al. 2017, arXiv 1707.06168.

    Raises:
        UnscoredGroupError: nothing reads the channels, or of something that does the error can't be told.
    """
    gram = all_contributions(group, statistics)
    return entry_penalties(gram, gram.sum(dim=1))


def entry_penalties(gram: Tensor, target: Tensor) -> Tensor:
    """Return for each β the largest λ at which it is not zero, along ½ βᵀ gram β − targetᵀ β + λ ‖β‖₁.

    Followed by accelerated proximal gradient steps over falling λ; between two of them β is taken as linear. What never
    enters is given the size of its gradient at the end, at which it would.

    Args:
        gram: [size, size], positive semi-definite.
        target: [size].
    """
    scale = gram.diagonal().clamp(min=1e-12 * float(gram.diagonal().max()) + _ZERO).sqrt()
    gram, target = gram / scale[:, None] / scale[None, :], target / scale  # now β · scale is looked for
    step = 1 / float(torch.linalg.matrix_norm(gram, ord=2).clamp(min=_ZERO))
    top = float((target * scale).abs().max())
    penalties = top * torch.logspace(0, torch.tensor(_SMALLEST).log10().item(), _STEPS + 1, dtype=torch.float64)[1:]
    path = [torch.zeros_like(target)]
    for penalty in penalties:
        path.append(_descend(gram, target, penalty / scale, step, path[-1]))
    sizes = torch.stack(path).abs() / scale
    grid = torch.cat([penalties.new_tensor([top]), penalties])
    gradient = ((target - gram @ path[-1]) * scale).abs().clamp(max=float(grid[-1]))
    return torch.stack([_entry(sizes[:, c], grid, gradient[c]) for c in range(len(target))])


def _descend(gram: Tensor, target: Tensor, penalty: Tensor, step: float, start: Tensor) -> Tensor:
    """Source: Beck & Teboulle 2009 (FISTA)."""
    beta, ahead, momentum = start, start, 1.0
    for _ in range(_ITERATIONS):
        moved = ahead - step * (gram @ ahead - target)
        following = moved.sign() * (moved.abs() - step * penalty).clamp(min=0)
        grown = (1 + (1 + 4 * momentum**2) ** 0.5) / 2
        ahead = following + (momentum - 1) / grown * (following - beta)
        if float((following - beta).abs().max()) <= _ZERO:
            return following
        beta, momentum = following, grown
    return beta


def _entry(sizes: Tensor, grid: Tensor, at_end: Tensor) -> Tensor:
    """Return where along the falling grid the sizes leave zero."""
    inside = (sizes > _ZERO).nonzero()
    if not len(inside):
        return at_end
    first = int(inside[0])
    if first == 0 or first + 1 >= len(grid):
        return grid[first]
    growth = float(sizes[first + 1] - sizes[first])
    if growth <= 0:
        return grid[first - 1]
    before = grid[first] + sizes[first] * (grid[first] - grid[first + 1]) / growth
    return before.clamp(min=grid[first], max=grid[first - 1])


def combine_channels(columns: Columns) -> Tensor:
    """Return the consumer's matrix with X ≈ A X_S put in: W_S + W_R A_RS, one A for all taps of a channel."""
    taps, kept = columns.taps, columns.kept.reshape(-1, columns.taps)[:, 0]
    channels = len(kept)
    weights = columns.matrix.reshape(-1, channels, taps)
    if isinstance(columns.covariance, Factored):
        read = columns.covariance.factor.reshape(-1, channels, taps).mT.flatten(0, 1) / taps**0.5
        if len(read) < channels:  # see `refit`
            stays = Factored(read[:, kept])
            lost = read[:, ~kept] @ weights[:, ~kept].transpose(0, 1).flatten(1)  # [rows, outputs and taps]
            made = stays.factor.T @ solve(stays.damped(RIDGE)[0], lost)
            return (weights[:, kept] + made.reshape(len(made), -1, taps).transpose(0, 1)).flatten(1)
        covariance = read.T @ read
    else:
        by_channel = columns.covariance.reshape(channels, taps, channels, taps)
        covariance = by_channel.diagonal(dim1=1, dim2=3).mean(dim=-1)
    mixed = solve(damped(covariance[kept][:, kept], RIDGE), covariance[kept][:, ~kept])  # [kept, gone]
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
