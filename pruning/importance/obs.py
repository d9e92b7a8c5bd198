"""Channels removed one at a time, the rest of the consumer's weights making up for each."""

from __future__ import annotations

import torch
from torch import Tensor

from pruning.graph.groups import Group
from pruning.importance.least_squares import RIDGE, Reading, other_contributions, readings, refit
from pruning.importance.registry import criterion
from pruning.statistics.collect import Statistics
from pruning.statistics.moments import damped

_MOST_DEAD = 0.125  # share of columns that were removed: beyond it they cost more than to copy what is left
_PENDING = 64  # columns whose removal is carried out at once


class _Surgery:
    """One consumer's weights and inverse Hessian, while channels go.

    Channels go one at a time, but what their going changes in the two large matrices is carried out for many at once:
    the last ones are kept as factors, H⁻¹ = inverse − A Bᵀ and Wᵀ = matrix − B Vᵀ, and only the rows that are asked
    for are worked out. So a removal costs what reading the matrices once costs, and the rest are products of matrices.
    What each channel's cost is made of is kept up to date, and worked out anew from the matrices each time that they
    are written.
    """

    def __init__(self, reading: Reading) -> None:
        self.matrix, self.columns, self.gain = reading.matrix.T.contiguous(), reading.columns, reading.gain
        hessian = damped(reading.covariance, RIDGE)
        # float32 rounds products differently on the two sides of the diagonal, and elimination takes them for equal
        self.inverse = torch.linalg.inv((hessian + hessian.T) / 2)
        self._stays = torch.ones(len(self.inverse), dtype=torch.bool)
        self._begin()

    def _begin(self) -> None:
        at, size = self.columns, max(_PENDING, self.columns.shape[1])
        self._a, self._b = self.inverse.new_empty(2, len(self.inverse), size)
        self._v = self.matrix.new_empty(self.matrix.shape[1], size)
        self._pending = 0
        self._inverses = self.inverse[at[:, :, None], at[:, None, :]]  # (H⁻¹)_MM, [size, taps, taps]
        weights = self.matrix[at]
        self._products = weights @ weights.mT  # W_Mᵀ W_M

    def costs(self, left: Tensor) -> Tensor:
        """Return Σ_i W_{i,M} ((H⁻¹)_MM)⁻¹ W_{i,M}ᵀ for each channel M that is left, [left], times the gain."""
        solved: Tensor = torch.linalg.solve(self._inverses[left], self._products[left])
        return self.gain * solved.diagonal(dim1=1, dim2=2).sum(dim=1)

    def remove(self, channel: int) -> None:
        """Take a channel's columns out: W − W_M ((H⁻¹)_MM)⁻¹ (H⁻¹)_M, and H⁻¹ by block elimination."""
        at, taps = self.columns[channel], self.columns.shape[1]
        if self._pending + taps > self._a.shape[1]:
            self._write()
            at = self.columns[channel]
        done = self._pending
        former_b, former_v = self._b[:, :done], self._v[:, :done]
        a = self.inverse[at].T - self._a[:, :done] @ former_b[at].T
        b = torch.linalg.solve(a[at], a.T).T
        v = self.matrix[at].T - former_v @ former_b[at].T
        x = self.matrix @ v - former_b @ (former_v.T @ v)
        a_of, b_of, x_of = (one[self.columns] for one in (a, b, x - 0.5 * b @ (v.T @ v)))  # [size, taps, taps] each
        self._inverses -= a_of @ b_of.mT
        self._products -= x_of @ b_of.mT + b_of @ x_of.mT
        for kept, one in ((self._a, a), (self._b, b), (self._v, v)):
            kept[:, done : done + taps] = one
        self._pending += taps
        self._stays[at] = False

    def _write(self) -> None:
        """Carry out what is pending, and drop columns that were taken out: they are never looked at again."""
        a, b, v = (one[:, : self._pending] for one in (self._a, self._b, self._v))
        self.inverse.addmm_(a, b.T, alpha=-1)
        self.matrix.addmm_(b, v.T, alpha=-1)
        if int(self._stays.sum()) < (1 - _MOST_DEAD) * len(self._stays):
            self.columns = (self._stays.cumsum(0) - 1)[self.columns]
            self.matrix = self.matrix[self._stays]
            self.inverse = self.inverse[self._stays][:, self._stays]
            self._stays = torch.ones(len(self.inverse), dtype=torch.bool)
        self._begin()


class _Loss:
    """What readers lose that are no layers, while channels go; nothing makes up for it."""

    def __init__(self, contributions: Tensor) -> None:
        self._contributions = contributions
        self._costs = contributions.diagonal().clone()

    def costs(self, left: Tensor) -> Tensor:
        """Return what each channel that is left adds to ‖Σ T_c‖² over all that are gone, [left]."""
        return self._costs[left]

    def remove(self, channel: int) -> None:
        """Let a channel go."""
        self._costs += 2 * self._contributions[channel]


def remove_one_by_one(group: Group, statistics: Statistics) -> tuple[list[int], Tensor]:
    """Return the channels in the order in which they go, and what each costs when it goes, [size] by channel."""
    return statistics.once(("surgery", group.name), lambda: _remove_one_by_one(group, statistics))


def _remove_one_by_one(group: Group, statistics: Statistics) -> tuple[list[int], Tensor]:
    others = other_contributions(group, statistics)
    surgeries: list[_Surgery | _Loss] = [
        *map(_Surgery, readings(group, statistics)),
        *([] if others is None else [_Loss(others)]),
    ]
    left = torch.arange(group.size)
    order: list[int] = []
    costs = torch.zeros(group.size, dtype=torch.float64)
    while len(left):
        total = torch.stack([surgery.costs(left) for surgery in surgeries]).sum(dim=0)
        index = int(total.argmin())
        gone = int(left[index])
        order.append(gone)
        costs[gone] = total[index]
        left = left[left != gone]
        for surgery in surgeries if len(left) else ():
            surgery.remove(gone)
    return order, costs


def order_by_surgery(group: Group, statistics: Statistics) -> list[int]:
    """Let the channel go whose removal costs least, and ask again after each."""
    return remove_one_by_one(group, statistics)[0]


@criterion("structured_obs", needs={"moments"}, ordering=order_by_surgery, folding=refit)
def structured_obs(group: Group, statistics: Statistics) -> Tensor:
    """Score channel M by Σ_i W_{i,M} ((H⁻¹)_MM)⁻¹ W_{i,M}ᵀ at the time when it goes; the cheapest goes first.

    H = X Xᵀ of what a consumer reads (mean over rows, about the mean where a bias or batch norm can take it), damped by
    1e-4 of its mean diagonal; M its columns for the channel, W its weights. After each removal W and H⁻¹ are updated
    and all are scored again, so the score is the squared error of the outputs that this removal adds. Several consumers
    add up. Removal follows `order_by_surgery`; folding gives the consumers the updated weights, which are the
    least-squares ones for what is kept.

    What reads the channels and is no layer (a product of two activations, a sum, a recurrent layer, a norm) adds to a
    channel's cost the squared error that its removal adds there, see `pruning.statistics.contributions`.

    Source: Kurtic et al. 2023 (ZipLM), arXiv 2302.04089, after Hassibi & Stork 1993; the paper's structures are
    heads and neurons of one layer, ours the channels of a coupled group.

    Raises:
        UnscoredGroupError: nothing reads the channels, or of something that does the error can't be told.
    """
    return remove_one_by_one(group, statistics)[1]
