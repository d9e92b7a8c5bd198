"""Least squares from inputs to residuals, of any number of rows, in memory that doesn't grow with them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pruning.gathering.moments import Moments, damped, products, solve

MEAN_ALONE = 1e9
"""A ridge so strong that the weights stay as they are and the mean alone is absorbed."""

_ROUNDING = 1e-7  # of the inputs' mean square: a variance below it is float32's rounding


@dataclass(frozen=True)
class Equations:
    """A layer's normal equations over the rows seen, all sums in float64.

    Attributes:
        moments: Of the layer's unfolded inputs u.
        cross: Σ u rᵀ, [groups, columns, outputs], for the residuals r.
        residual: Σ r.
        residual_squared: Σ r².
        target: Σ of the outputs to come to.
        target_squared: Σ of their squares.
    """

    moments: Moments
    cross: Tensor
    residual: Tensor
    residual_squared: Tensor
    target: Tensor
    target_squared: Tensor

    @classmethod
    def none(cls, groups: int, columns: int, outputs: int) -> Equations:
        """The equations of no rows."""
        zeros = torch.zeros(groups, outputs, dtype=torch.float64)
        cross = torch.zeros(groups, columns, outputs, dtype=torch.float64)
        return cls(Moments.none(groups, columns), cross, zeros, zeros, zeros, zeros)

    def plus(self, columns: Tensor, residual: Tensor, target: Tensor) -> Equations:
        """Add rows: [rows, groups, columns], and twice [rows, groups, outputs]."""
        return Equations(
            self.moments.plus(columns),
            self.cross + products(columns, residual),
            self.residual + _sum(residual),
            self.residual_squared + _sum(residual.square()),
            self.target + _sum(target),
            self.target_squared + _sum(target.square()),
        )

    def joined(self, other: Equations) -> Equations:
        """The equations of the rows of both."""
        one, two = self.moments, other.moments
        return Equations(
            Moments(one.num_rows + two.num_rows, one.total + two.total, one.gram + two.gram),
            self.cross + other.cross,
            self.residual + other.residual,
            self.residual_squared + other.residual_squared,
            self.target + other.target,
            self.target_squared + other.target_squared,
        )

    def solution(self, ridge: float, shifted: bool) -> tuple[Tensor, Tensor]:
        """Return the change of the weights, [groups, columns, outputs], and of the mean, [groups, outputs]."""
        rows, mean = max(1, self.moments.num_rows), self.moments.mean()
        mean_residual, cross = self.residual / rows, self.cross / rows
        if shifted:
            cross = cross - mean[:, :, None] * mean_residual[:, None, :]
        power = self.moments.covariance(centred=False).diagonal(dim1=-2, dim2=-1).mean(dim=-1)
        change = solve(damped(self.moments.covariance(centred=shifted), ridge, _ROUNDING * power), cross)
        missing = mean_residual - (change * mean[:, :, None]).sum(dim=1)
        return change, missing if shifted else torch.zeros_like(missing)

    def error(self, change: Tensor, missing: Tensor) -> float:
        """Return the mean of ‖r − Δ u − m‖², summed over outputs."""
        rows, mean = max(1, self.moments.num_rows), self.moments.mean()
        mean_residual, second = self.residual / rows, self.moments.covariance(centred=False)
        fitted = (change * (second @ change)).sum(dim=1) - 2 * (change * self.cross / rows).sum(dim=1)
        shift = missing * (missing - 2 * mean_residual + 2 * (change * mean[:, :, None]).sum(dim=1))
        return float((self.residual_squared / rows + fitted + shift).sum())

    def variance(self) -> float:
        """Return the variance of the outputs to come to, summed over outputs."""
        rows = max(1, self.moments.num_rows)
        return float((self.target_squared / rows - (self.target / rows).square()).sum().clamp(min=1e-30))

    def nothing(self) -> tuple[Tensor, Tensor]:
        """Return the solution that changes nothing."""
        return torch.zeros_like(self.cross), torch.zeros_like(self.residual)


def _sum(rows: Tensor) -> Tensor:
    return rows.sum(dim=0, dtype=torch.float64).cpu()
