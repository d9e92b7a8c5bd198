"""Channels removed one at a time, the rest of the consumer's weights making up for each."""

from __future__ import annotations

import torch
from torch import Tensor

from pruning.graph.groups import Group
from pruning.importance.least_squares import RIDGE, Reading, other_contributions, readings, refit
from pruning.importance.registry import criterion
from pruning.statistics.collect import Statistics
from pruning.statistics.moments import Factored, damped

_PENDING = 64  # columns whose removal is carried out at once
_MANY_OUTPUTS = 256  # of a layer: beyond it their products are kept in their place
_VALUES = 1 << 24  # worked out at a time


class _Surgery:
    """One consumer's weights and inverse Hessian, while channels go.

    Channels go one at a time, but what their going changes in the two large matrices is carried out for many at once:
    the last ones are kept as factors, H⁻¹ = inverse − A Bᵀ and Wᵀ = matrix − B Vᵀ, and only the rows that are asked
    for are worked out. So a removal costs what reading the matrices once costs, and the rest are products of matrices.
    Costs ask of W nothing but WᵀW; where there are many outputs, that is kept in place of W (`_WithProducts`).
    What each channel's cost is made of is kept up to date, and worked out anew from the matrices as they are written.
    """

    def __init__(self, reading: Reading) -> None:
        self.columns, self.gain = reading.columns, reading.gain
        self._state: _Whole | _ByRows
        if isinstance(reading.covariance, Factored):
            self._state = _ByRows(reading.matrix, reading.covariance, reading.columns)
            self.columns = torch.arange(self.columns.numel()).reshape(self.columns.shape)
        else:
            kind = _Whole if len(reading.matrix) <= _MANY_OUTPUTS else _WithProducts
            self._state = kind(reading.matrix, reading.covariance)
        self._stays = torch.ones(self._state.num_columns, dtype=torch.bool)
        self._since: list[Tensor] = []
        self._begin(anew=True)

    def _begin(self, *, anew: bool) -> None:
        size = max(self._state.pending, self.columns.shape[1])
        self._a, self._b = torch.empty(2, self._state.num_columns, size, dtype=torch.float64)
        self._v = torch.empty(self._state.num_lost, size, dtype=torch.float64)
        self._pending = 0
        if anew:
            # (H⁻¹)_MM and W_Mᵀ W_M, [size, taps, taps] each
            self._inverses, self._products = self._state.blocks(self.columns)

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
        a = self._state.inverse_rows(at).T - self._a[:, :done] @ former_b[at].T
        b = torch.linalg.solve(a[at], a.T).T
        v, x = self._state.lost(at, b, former_b, former_v)
        a_of, b_of, x_of = (one[self.columns] for one in (a, b, x))  # [size, taps, taps] each
        self._inverses -= a_of @ b_of.mT
        self._products -= x_of @ b_of.mT + b_of @ x_of.mT
        for kept, one in ((self._a, a), (self._b, b), (self._v, v)):
            kept[:, done : done + taps] = one
        self._pending += taps
        self._stays[at] = False
        self._since.append(at)

    def _write(self) -> None:
        """Carry out what is pending, and drop columns that were taken out: they are never looked at again."""
        a, b, v = (one[:, : self._pending] for one in (self._a, self._b, self._v))
        self._state.write(a, b, v, torch.cat(self._since))
        self._since.clear()
        few = int(self._stays.sum()) < (1 - self._state.most_dead) * len(self._stays)
        if few:
            self.columns = (self._stays.cumsum(0) - 1)[self.columns]
            self._state.keep(self._stays)
            self._stays = torch.ones(self._state.num_columns, dtype=torch.bool)
        self._begin(anew=few or self._state.cheap)


class _Whole:
    """Wᵀ and H⁻¹ as matrices."""

    most_dead = 0.125  # share of columns that were removed: beyond it they cost more than to copy what is left
    pending = _PENDING
    cheap = True  # to look at what is made of a channel's columns

    def __init__(self, matrix: Tensor, covariance: Tensor) -> None:
        self._matrix = matrix.T.contiguous()
        hessian = damped(covariance, RIDGE)
        # float32 rounds products differently on the two sides of the diagonal, and elimination takes them for equal
        self._inverse = torch.linalg.inv((hessian + hessian.T) / 2)

    @property
    def num_columns(self) -> int:
        """Of what is left."""
        return len(self._inverse)

    @property
    def num_lost(self) -> int:
        """Height of what `lost` gives first."""
        return self._matrix.shape[1]

    def inverse_rows(self, at: Tensor) -> Tensor:
        """Return (H⁻¹)_M, [taps, columns]."""
        found: Tensor = self._inverse[at]
        return found

    def lost(self, at: Tensor, b: Tensor, former_b: Tensor, former: Tensor) -> tuple[Tensor, Tensor]:
        """Return what tells how the removal of M changes the weights, W − v bᵀ, and their products.

        Args:
            at: The columns M.
            b: H⁻¹_M ((H⁻¹)_MM)⁻¹, [columns, taps].
            former_b: The same of those whose removal is pending, side by side.
            former: What came first for these.

        Returns:
            v = W_M, [outputs, taps], and x = Wᵀ v − ½ b vᵀv, [columns, taps]: WᵀW loses x bᵀ + b xᵀ.
        """
        v = self._matrix[at].T - former @ former_b[at].T
        return v, self._matrix @ v - former_b @ (former.T @ v) - 0.5 * b @ (v.T @ v)

    def blocks(self, at: Tensor) -> tuple[Tensor, Tensor]:
        """Return (H⁻¹)_MM and W_Mᵀ W_M for the columns of each channel."""
        weights = self._matrix[at]
        return self._inverse[at[:, :, None], at[:, None, :]], weights @ weights.mT

    def write(self, a: Tensor, b: Tensor, v: Tensor, _gone: Tensor) -> None:
        """Take A Bᵀ from H⁻¹ and B Vᵀ from Wᵀ."""
        self._inverse.addmm_(a, b.T, alpha=-1)
        self._matrix.addmm_(b, v.T, alpha=-1)

    def keep(self, stays: Tensor) -> None:
        """Drop columns."""
        self._matrix = self._matrix[stays]
        self._inverse = self._inverse[stays][:, stays]


class _WithProducts(_Whole):
    """WᵀW and H⁻¹ as matrices: no removal reads all weights of many outputs."""

    def __init__(self, matrix: Tensor, covariance: Tensor) -> None:
        super().__init__(matrix, covariance)
        self._matrix = matrix.T @ matrix

    def lost(self, at: Tensor, b: Tensor, former_b: Tensor, former: Tensor) -> tuple[Tensor, Tensor]:
        """Return x twice."""
        x = self._matrix[at].T - former @ former_b[at].T - former_b @ former[at].T  # (WᵀW)_M
        x = x - 0.5 * b @ x[at]
        return x, x

    def blocks(self, at: Tensor) -> tuple[Tensor, Tensor]:
        """Return (H⁻¹)_MM and W_Mᵀ W_M for the columns of each channel."""
        return self._inverse[at[:, :, None], at[:, None, :]], self._matrix[at[:, :, None], at[:, None, :]]

    def write(self, a: Tensor, b: Tensor, v: Tensor, gone: Tensor) -> None:
        """Take A Bᵀ from H⁻¹ and X Bᵀ + B Xᵀ from WᵀW."""
        super().write(a, b, v, gone)
        self._matrix.addmm_(v, b.T, alpha=-1)

    def keep(self, stays: Tensor) -> None:
        """Drop columns."""
        super().keep(stays)
        self._matrix = self._matrix[:, stays]


class _ByRows:
    """The same by X, where H = XᵀX + λI has very many columns; nothing of their square is made.

    With R the columns that are gone, S those that stay, K = X_S X_Sᵀ + λI and E = W_R X_Rᵀ:

        H_S⁻¹ = (I − X_Sᵀ K⁻¹ X_S) / λ,      W_S as refitted = W_S + E K⁻¹ X_S
    """

    most_dead = 0.25
    cheap = False

    def __init__(self, matrix: Tensor, covariance: Factored, columns: Tensor) -> None:
        at = columns.flatten()
        whole = torch.equal(at, torch.arange(matrix.shape[1]))
        self._x = covariance.factor.T[at]  # [columns, rows]; a channel's after one another
        self._matrix = matrix.T if whole else matrix.T[at]
        self._inner, self._level = covariance.damped(RIDGE)
        self._lost = matrix.new_zeros(len(matrix), len(self._inner))
        self._factor = torch.linalg.cholesky_ex(self._inner).L  # its least eigenvalue is λ
        self.pending = max(_PENDING, len(self._inner) // 8)

    @property
    def num_columns(self) -> int:
        """Of what is left, of those that belong to the group."""
        return len(self._x)

    @property
    def num_lost(self) -> int:
        """Height of what `lost` gives first."""
        return self._matrix.shape[1]

    def inverse_rows(self, at: Tensor) -> Tensor:
        """Return (H⁻¹)_M, [taps, columns]."""
        inverse = (self._x @ self._solved(at)).T / -self._level
        inverse[torch.arange(len(at)), at] += 1 / self._level
        return inverse

    def _solved(self, at: Tensor) -> Tensor:
        return torch.cholesky_solve(self._x[at].T, self._factor)  # K⁻¹ X_M

    def lost(self, at: Tensor, b: Tensor, former_b: Tensor, former: Tensor) -> tuple[Tensor, Tensor]:
        """Return v and x, see `_Whole`."""
        v = self._matrix[at].T + self._lost @ self._solved(at) - former @ former_b[at].T
        x = self._matrix @ v + self._x @ torch.cholesky_solve(self._lost.T @ v, self._factor)
        return v, x - former_b @ (former.T @ v) - 0.5 * b @ (v.T @ v)

    def blocks(self, at: Tensor) -> tuple[Tensor, Tensor]:
        """Return (H⁻¹)_MM and W_Mᵀ W_M for the columns of each channel."""
        inverses, products = self._x.new_empty(2, *at.shape, at.shape[1])
        step = max(1, _VALUES // (at.shape[1] * max(len(self._factor), self.num_lost)))
        for start in range(0, len(at), step):
            some = at[start : start + step]
            read = self._x[some]  # [some, taps, rows]
            solved = torch.cholesky_solve(read.flatten(0, 1).T, self._factor).T
            inverses[start : start + step] = read @ solved.reshape(read.shape).mT / -self._level
            weights = self._matrix[some] + (solved @ self._lost.T).reshape(*some.shape, -1)
            products[start : start + step] = weights @ weights.mT
        inverses.diagonal(dim1=1, dim2=2).add_(1 / self._level)
        return inverses, products

    def write(self, _a: Tensor, _b: Tensor, _v: Tensor, gone: Tensor) -> None:
        """Take the columns that are gone from K, and add what they gave to E."""
        read = self._x[gone]
        self._lost += self._matrix[gone].T @ read
        self._inner -= read.T @ read
        self._factor = torch.linalg.cholesky_ex(self._inner).L

    def keep(self, stays: Tensor) -> None:
        """Drop columns."""
        self._matrix, self._x = self._matrix[stays], self._x[stays]


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
