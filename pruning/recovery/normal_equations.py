"""The normal equations of a layer's refit, by its columns or by its rows, and how far they are trusted."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Generic, Protocol, Self, TypeVar

import torch
from torch import Tensor

from pruning.statistics import moments as second_moments
from pruning.statistics.moments import Factored, Moments, Sample, damped, max_rows, products, solve

MEAN_ALONE = 1e9
"""A ridge so strong that the weights stay as they are and the mean alone is absorbed."""

_STRONGER = (10.0, 100.0)
_ROUNDING = 1e-7  # of the inputs' mean square: a variance below it is float32's rounding


@dataclass(frozen=True)
class Equations:
    """A layer's normal equations over the rows seen, all sums in float64, on the layer's device.

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
    def none(cls, groups: int, columns: int, outputs: int, device: torch.device | None = None) -> Equations:
        """The equations of no rows; rows that are added lie on the same device."""
        zeros = torch.zeros(groups, outputs, dtype=torch.float64, device=device)
        cross = torch.zeros(groups, columns, outputs, dtype=torch.float64, device=device)
        return cls(Moments.none(groups, columns, device), cross, zeros, zeros, zeros, zeros)

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
        return Equations(
            self.moments.joined(other.moments),
            self.cross + other.cross,
            self.residual + other.residual,
            self.residual_squared + other.residual_squared,
            self.target + other.target,
            self.target_squared + other.target_squared,
        )

    def beside(self, other: Equations) -> Equations:
        """The same."""
        return self.joined(other)

    @cached_property
    def second(self) -> Tensor:
        """The mean of u uᵀ, [groups, columns, columns]: worked out once for all ridges that are tried."""
        return self.moments.covariance(centred=False)

    @cached_property
    def covariance(self) -> Tensor:
        """The same about the mean."""
        return self.moments.covariance()

    @property
    def num_rows(self) -> int:
        """Rows seen."""
        return self.moments.num_rows

    def solution(self, ridge: float, shifted: bool) -> tuple[Tensor, Tensor]:
        """Return the change of the weights, [groups, columns, outputs], and of the mean, [groups, outputs]."""
        rows, mean = max(1, self.moments.num_rows), self.moments.mean()
        mean_residual, cross = self.residual / rows, self.cross / rows
        if shifted:
            cross = cross - mean[:, :, None] * mean_residual[:, None, :]
        power = self.second.diagonal(dim1=-2, dim2=-1).mean(dim=-1)
        change = solve(damped(self.covariance if shifted else self.second, ridge, _ROUNDING * power), cross)
        missing = mean_residual - (change * mean[:, :, None]).sum(dim=1)
        return change, missing if shifted else torch.zeros_like(missing)

    def error(self, change: Tensor, missing: Tensor) -> float:
        """Return the mean of ‖r − Δ u − m‖², summed over outputs."""
        rows, mean = max(1, self.moments.num_rows), self.moments.mean()
        mean_residual = self.residual / rows
        fitted = (change * (self.second @ change)).sum(dim=1) - 2 * (change * self.cross / rows).sum(dim=1)
        shift = missing * (missing - 2 * mean_residual + 2 * (change * mean[:, :, None]).sum(dim=1))
        return float((self.residual_squared / rows + fitted + shift).sum())

    def error_elsewhere(self, other: Equations, ridge: float, shifted: bool) -> float:
        """Return the error that the solution of these equations has on the rows of others."""
        return other.error(*self.solution(ridge, shifted))

    def error_unchanged(self) -> float:
        """Return the error of no change at all."""
        return self.error(*self.nothing())

    def variance(self) -> float:
        """Return the variance of the outputs to come to, summed over outputs."""
        rows = max(1, self.moments.num_rows)
        return float((self.target_squared / rows - (self.target / rows).square()).sum().clamp(min=1e-30))

    def nothing(self) -> tuple[Tensor, Tensor]:
        """Return the solution that changes nothing."""
        return torch.zeros_like(self.cross), torch.zeros_like(self.residual)


def _sum(rows: Tensor) -> Tensor:
    return rows.sum(dim=0, dtype=torch.float64)


@dataclass(frozen=True)
class RowEquations:
    """The same problem by the rows themselves, for a layer that reads more columns than `WIDE`.

    With U the inputs of the rows, about their mean where a mean is fitted, and R the residuals, likewise:

        Δ = Uᵀ (U Uᵀ / N + λI)⁻¹ R / N

    Attributes:
        sample: Inputs [rows, groups, columns], residuals and outputs to come to, [rows, groups, outputs] each.
    """

    sample: Sample

    def plus(self, columns: Tensor, residual: Tensor, target: Tensor) -> RowEquations:
        """Add rows: [rows, groups, columns], and twice [rows, groups, outputs]."""
        return RowEquations(self.sample.plus(columns, residual, target))

    def joined(self, other: RowEquations) -> RowEquations:
        """The equations of a sample of the rows of both."""
        return RowEquations(self.sample.joined(other.sample))

    def beside(self, other: RowEquations) -> RowEquations:
        """The equations of the rows of both."""
        return RowEquations(self.sample.beside(other.sample)) if other.num_rows else self

    @property
    def num_rows(self) -> int:
        """Rows that are kept."""
        return len(self.sample.keys)

    def _means(self) -> tuple[Tensor, Tensor]:
        columns, residual, _ = self.sample.tensors
        return _sum(columns) / max(1, self.num_rows), _sum(residual) / max(1, self.num_rows)

    def _weights(self, index: int, ridge: float, shifted: bool) -> tuple[Tensor, Tensor]:
        """Return U / √N of a group and Δ as Uᵀ of it times what comes second, [rows, outputs]."""
        columns, residual, _ = (one[:, index].to(torch.float64) for one in self.sample.tensors)
        power = float(columns.square().mean())
        if shifted:
            columns, residual = (one - one.mean(dim=0) for one in (columns, residual))
        factored = Factored(columns / max(1, self.num_rows) ** 0.5)
        inner, _ = factored.damped(ridge, _ROUNDING * power)
        return factored.factor, solve(inner, residual / max(1, self.num_rows) ** 0.5)

    def solution(self, ridge: float, shifted: bool) -> tuple[Tensor, Tensor]:
        """Return the change of the weights, [groups, columns, outputs], and of the mean, [groups, outputs]."""
        mean, mean_residual = self._means()
        weights = (self._weights(index, ridge, shifted) for index in range(len(mean)))
        change = torch.stack([by_rows.T @ factor for factor, by_rows in weights]).mT
        missing = mean_residual - (change * mean[:, :, None]).sum(dim=1)
        return change, missing if shifted else torch.zeros_like(missing)

    def error(self, change: Tensor, missing: Tensor) -> float:
        """Return the mean of ‖r − Δ u − m‖², summed over outputs."""
        columns, residual, _ = self.sample.tensors
        return sum(
            float((residual[:, index] - columns[:, index].to(torch.float64) @ one - missing[index]).square().sum())
            for index, one in enumerate(change)
        ) / max(1, self.num_rows)

    def error_elsewhere(self, other: RowEquations, ridge: float, shifted: bool) -> float:
        """Return the error that the solution of these equations has on the rows of others; Δ is not made for it."""
        (mean, mean_residual), (columns, residual, _), total = self._means(), other.sample.tensors, 0.0
        for index in range(len(mean)):
            factor, by_rows = self._weights(index, ridge, shifted)
            read, wrong = columns[:, index].to(torch.float64), residual[:, index].to(torch.float64)
            if shifted:
                read, wrong = read - mean[index], wrong - mean_residual[index]
            total += float((wrong - (read @ factor.T) @ by_rows).square().sum())
        return total / max(1, other.num_rows)

    def error_unchanged(self) -> float:
        """Return the error of no change at all."""
        return float(self.sample.tensors[1].to(torch.float64).square().sum()) / max(1, self.num_rows)

    def variance(self) -> float:
        """Return the variance of the outputs to come to, summed over outputs."""
        target = self.sample.tensors[2].to(torch.float64)
        return float(target.var(dim=0, correction=0).sum().clamp(min=1e-30))

    def nothing(self) -> tuple[Tensor, Tensor]:
        """Return the solution that changes nothing."""
        columns, residual, _ = self.sample.tensors
        zero = residual.new_zeros((), dtype=torch.float64)
        _, groups, outputs = residual.shape
        return zero.expand(groups, columns.shape[2], outputs), zero.expand(groups, outputs)


class _Problem(Protocol):
    """What both have."""

    @property
    def num_rows(self) -> int: ...
    def plus(self, columns: Tensor, residual: Tensor, target: Tensor) -> Self: ...
    def joined(self, other: Self) -> Self: ...
    def beside(self, other: Self) -> Self: ...
    def solution(self, ridge: float, shifted: bool) -> tuple[Tensor, Tensor]: ...
    def error(self, change: Tensor, missing: Tensor) -> float: ...
    def error_elsewhere(self, other: Self, ridge: float, shifted: bool) -> float: ...
    def error_unchanged(self) -> float: ...
    def variance(self) -> float: ...
    def nothing(self) -> tuple[Tensor, Tensor]: ...


P = TypeVar("P", bound=_Problem)


class Split(Generic[P]):
    """Equations that are fitted, and those that judge the fit."""

    def __init__(self, fitted: P, held_out: P) -> None:
        self._fitted, self._held_out = fitted, held_out

    def add(self, columns: Tensor, residual: Tensor, target: Tensor, *, held_out: bool) -> None:
        """Add rows."""
        if held_out:
            self._held_out = self._held_out.plus(columns, residual, target)
        else:
            self._fitted = self._fitted.plus(columns, residual, target)

    def joined(self, other: Split[P]) -> Split[P]:
        """The equations over the rows of both."""
        return Split(self._fitted.joined(other._fitted), self._held_out.joined(other._held_out))

    def solve(self, ridge: float, shifted: bool) -> tuple[tuple[Tensor, Tensor], float, float]:
        """Return the solution for the rows of both, and the relative errors before and after; see `Fit.write`."""
        everything = self._fitted.beside(self._held_out)
        chosen = self._chosen(ridge, shifted)
        change = everything.nothing() if chosen is None else everything.solution(chosen, shifted)
        variance = everything.variance()
        return change, everything.error_unchanged() / variance, everything.error(*change) / variance

    def _chosen(self, ridge: float, shifted: bool) -> float | None:
        """The ridge whose fit errs least on what was held out; None where nothing errs less than no change at all."""
        if not self._held_out.num_rows:
            return ridge
        errors: dict[float | None, float] = {None: self._held_out.error_unchanged()}
        for candidate in (ridge, *(ridge * factor for factor in _STRONGER), MEAN_ALONE):
            errors[candidate] = self._fitted.error_elsewhere(self._held_out, candidate, shifted)
        return min(errors, key=lambda candidate: errors[candidate])


def no_equations(
    groups: int, columns: int, outputs: int, device: torch.device | None = None, *, shard: int = 0
) -> Split[Equations] | Split[RowEquations]:
    """Return the equations of no rows of a layer: whole, or where it reads more columns than `WIDE`, by rows.

    Args:
        groups: Of a grouped convolution, else 1.
        columns: That each of them reads.
        outputs: Of each.
        device: Of the rows that will be added.
        shard: Of the samples, from which they will be.
    """
    if columns > second_moments.WIDE:
        rows = RowEquations(Sample(max_rows(groups * columns), shard=shard))
        return Split(rows, rows)
    none = Equations.none(groups, columns, outputs, device)
    return Split(none, none)
