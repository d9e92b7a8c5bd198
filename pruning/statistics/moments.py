"""Second moments of what layers read: the normal equations of least squares, in memory that doesn't grow.

Products are formed chunk by chunk and added up in float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pruning.containers import take
from pruning.graph.groups import Groups
from pruning.graph.layers import LayerCall
from pruning.statistics.collector import Batch, Collected, Collector
from pruning.statistics.layer_hooks import Layer, Observer, find_layers, observe
from pruning.statistics.readers import readers_of


@dataclass(frozen=True)
class Moments:
    """First and second moments of a layer's unfolded inputs, see `pruning.graph.layers`.

    Attributes:
        num_rows: rows seen.
        total: [groups, columns] float64: Σ u.
        gram: [groups, columns, columns] float64: Σ u uᵀ.
    """

    num_rows: int
    total: Tensor
    gram: Tensor

    @classmethod
    def none(cls, groups: int, columns: int, device: torch.device | None = None) -> Moments:
        """The moments of no rows; rows that are added lie on the same device."""
        zeros = torch.zeros(groups, columns, columns, dtype=torch.float64, device=device)
        return cls(0, zeros[:, :, 0].clone(), zeros)

    def plus(self, columns: Tensor) -> Moments:
        """Add rows [rows, groups, columns]."""
        columns = columns.detach()
        return Moments(
            self.num_rows + len(columns),
            self.total + columns.sum(dim=0, dtype=torch.float64),
            self.gram + products(columns, columns),
        )

    def cpu(self) -> Moments:
        """The same on the CPU."""
        return Moments(self.num_rows, self.total.cpu(), self.gram.cpu())

    def mean(self) -> Tensor:
        """Return the mean of the columns, [groups, columns]."""
        return self.total / max(1, self.num_rows)

    def covariance(self, *, centred: bool = True) -> Tensor:
        """Return the mean of u uᵀ, [groups, columns, columns], without the mean's share of it if centred."""
        second = self.gram / max(1, self.num_rows)
        if centred:
            mean = self.mean()
            second = second - mean[:, :, None] * mean[:, None, :]
        return second


def products(left: Tensor, right: Tensor) -> Tensor:
    """Return Σ over rows of l rᵀ, [groups, left columns, right columns] float64 on the device of the rows.

    The products are formed about the mean of `left`: of values that vary little around a large mean, float32 would keep
    nothing of the variance otherwise.

    Args:
        left: [rows, groups, columns].
        right: [rows, groups, columns].
    """
    middle = left.mean(dim=0)
    exactly = middle.to(torch.float64)
    about = (left - middle).transpose(0, 1).mT
    if right is left:  # Σ u uᵀ = Σ c cᵀ + Σ c μᵀ + μ Σ uᵀ, for u = c + μ
        centred, shift = about @ about.mT, about.sum(dim=2, dtype=torch.float64)
        centred = centred.to(torch.float64) + shift[:, :, None] * exactly[:, None, :]
    else:
        centred = (about @ right.transpose(0, 1)).to(torch.float64)
    total = right.sum(dim=0, dtype=torch.float64)
    return centred + exactly[:, :, None] * total[:, None, :]


def damped(covariance: Tensor, ridge: float, least: Tensor | float = 0.0) -> Tensor:
    """Add `ridge` times the mean of its diagonal to a covariance's diagonal, [..., columns, columns].

    Where all of it is zero, the identity is added: then nothing is known and nothing changes.

    Args:
        covariance: positive semidefinite.
        ridge: share of the mean variance.
        least: what is added at least, [...]: variance below it is rounding.
    """
    level = (ridge * covariance.diagonal(dim1=-2, dim2=-1).mean(dim=-1)).clamp(min=least)
    level = torch.where(level > 0, level, 1.0)
    added = covariance.clone()
    added.diagonal(dim1=-2, dim2=-1).add_(level[..., None])
    return added


def solve(matrix: Tensor, right: Tensor) -> Tensor:
    """Solve for a positive definite matrix [..., n, n] and right sides [..., n, m]."""
    factor, failed = torch.linalg.cholesky_ex(matrix)
    if bool(failed.any()):  # rounding made a tiny eigenvalue negative
        least: Tensor = torch.linalg.lstsq(matrix.cpu(), right.cpu(), driver="gelsd").solution  # it is the CPU's alone
        return least.to(matrix.device)
    return torch.cholesky_solve(right, factor)


NEEDS = ("moments",)


class MomentGatherer(Collector, Observer):
    """Gathers the moments of the unfolded inputs of every layer that consumes a group.

    They take 8 · columns² bytes per layer, on the model's device until all is gathered, however many samples there are.

    Attributes:
        layers: the consumers, by their weights.
        moments: of their unfolded inputs.
    """

    def __init__(self, groups: Groups) -> None:
        self._model = groups.model
        self._consumers = set(readers_of(groups))
        self.layers: dict[str, Layer] = {}
        self.moments: dict[str, Moments] = {}

    def update(self, batch: Batch) -> None:
        """Run the batch forward."""
        if not self.layers:
            found = find_layers(self._model, take(batch.inputs, slice(1)))
            self.layers = {layer.weight: layer for layer in found if layer.weight in self._consumers}
        observe(self._model, batch.inputs, [self])

    def on_layer(self, call: LayerCall) -> None:
        """Add the rows of a call."""
        if call.weight in self.layers:
            for _, columns in call.rows():
                _, parts, width = columns.shape
                known = self.moments.get(call.weight) or Moments.none(parts, width, columns.device)
                self.moments[call.weight] = known.plus(columns)

    def compute(self) -> Collected:
        """Return nothing per channel: criteria read `layers` and `moments`."""
        self.moments = {weight: moments.cpu() for weight, moments in self.moments.items()}
        return {}


def principal_components(moment: Tensor) -> Tensor:
    """Return the principal components as columns, the largest first, each with its largest entry positive."""
    found: Tensor = torch.linalg.eigh((moment + moment.T) / 2).eigenvectors.flip(1)
    largest = found.gather(0, found.abs().argmax(0, keepdim=True))
    return found * largest.sign()


def contrasts(size: int) -> Tensor:
    """Return Helmert's contrasts as rows, float64 [size - 1, size]: orthonormal, each adds up to nothing.

    Row j is the same in the first j + 1 places, and zero from place j + 2 on.
    """
    found = torch.tril(torch.ones(size - 1, size, dtype=torch.float64))
    place = torch.arange(1, size, dtype=torch.float64)
    found[torch.arange(size - 1), torch.arange(1, size)] = -place
    return found / (place * (place + 1)).sqrt()[:, None]
