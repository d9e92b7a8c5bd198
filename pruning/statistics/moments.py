"""Second moments of what layers read: the normal equations of least squares, in memory that doesn't grow.

Products are formed chunk by chunk and added up in float64. Of a layer that reads more columns than `WIDE` the rows are
kept in their place, at most `MAX_ROWS`: X, of which the second moment is XᵀX. Where there are fewer rows than columns,
all that is asked of XᵀX + λI is told by the smaller XXᵀ + λI, exactly:

    (XᵀX + λI)⁻¹ = (I − Xᵀ (XXᵀ + λI)⁻¹ X) / λ,      (XᵀX + λI)⁻¹ Xᵀ = Xᵀ (XXᵀ + λI)⁻¹

Source: Woodbury 1950, "Inverting modified matrices".
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from pruning.containers import take
from pruning.graph.groups import Groups
from pruning.graph.layers import LayerCall
from pruning.statistics.collector import Batch, Collected, Collector, readers_of
from pruning.statistics.layer_hooks import Layer, Observer, find_layers, observe
from pruning.world import seed_of

WIDE = 4608
"""Columns up to which a layer's second moment is kept whole, 170 MB: 3 × 3 taps of 512 channels have as many."""

MAX_ROWS = 4096
"""Rows that are kept of a layer that reads more columns."""

_MAX_VALUES = 1 << 26  # of the rows that are kept of a layer, 256 MiB in float32


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

    def joined(self, other: Moments) -> Moments:
        """The moments of the rows of both."""
        return Moments(self.num_rows + other.num_rows, self.total + other.total, self.gram + other.gram)

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


def max_rows(values: int) -> int:
    """Return how many rows of so many values are kept at most."""
    return max(1, min(MAX_ROWS, _MAX_VALUES // max(1, values)))


@dataclass(frozen=True)
class Sample:
    """Rows of all that were seen, each as likely to be among them as any other; all of them up to a number.

    Attributes:
        most: That number.
        seen: Rows seen.
        keys: [rows] float64, random: the lowest are kept.
        tensors: [rows, ...] each, in the order in which they were seen.
        shard: Of the samples, from which the rows are: each draws its own keys.
    """

    most: int
    seen: int = 0
    keys: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.float64))
    tensors: tuple[Tensor, ...] = ()
    shard: int = 0

    def plus(self, *tensors: Tensor) -> Sample:
        """Add rows, [rows, ...] each; the same ones are kept whenever the same are added."""
        number = len(tensors[0])
        seed = seed_of(self.shard, self.seen) if self.shard else self.seen
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.rand(number, generator=generator, dtype=torch.float64)
        return self.joined(Sample(self.most, number, drawn, tuple(one.detach() for one in tensors)))

    def joined(self, other: Sample) -> Sample:
        """A sample of the rows of both, of at most as many rows."""
        keys = torch.cat([self.keys, other.keys])
        stay = keys.argsort(stable=True)[: self.most].sort().values
        old, new = stay[stay < len(self.keys)], stay[stay >= len(self.keys)] - len(self.keys)
        before, after = (
            one.tensors or tuple(tensor[:0] for tensor in another.tensors)
            for one, another in ((self, other), (other, self))
        )
        kept = tuple(torch.cat([_at(a, old), _at(b, new)]) for a, b in zip(before, after, strict=True))
        return replace(self, seen=self.seen + other.seen, keys=keys[stay], tensors=kept)

    def beside(self, other: Sample) -> Sample:
        """The rows of both, as many as there are."""
        tensors = tuple(torch.cat(pair) for pair in zip(self.tensors, other.tensors, strict=True))
        most, seen = self.most + other.most, self.seen + other.seen
        return Sample(most, seen, torch.cat([self.keys, other.keys]), tensors)


def _at(tensor: Tensor, rows: Tensor) -> Tensor:
    return tensor if len(rows) == len(tensor) else tensor[rows.to(tensor.device)]


@dataclass(frozen=True)
class RowMoments:
    """What `Moments` tells, of a layer that reads many columns: by a sample of the rows.

    Attributes:
        sample: Of one tensor, [rows, groups, columns].
    """

    sample: Sample

    @property
    def num_rows(self) -> int:
        """Rows that are kept."""
        return len(self.sample.keys)

    def plus(self, columns: Tensor) -> RowMoments:
        """Add rows [rows, groups, columns]."""
        return RowMoments(self.sample.plus(columns))

    def joined(self, other: RowMoments) -> RowMoments:
        """The moments of a sample of the rows of both."""
        return RowMoments(self.sample.joined(other.sample))

    def cpu(self) -> RowMoments:
        """The same on the CPU."""
        return RowMoments(replace(self.sample, tensors=tuple(one.cpu() for one in self.sample.tensors)))

    def mean(self) -> Tensor:
        """Return the mean of the columns, [groups, columns]."""
        return self.sample.tensors[0].sum(dim=0, dtype=torch.float64) / max(1, self.num_rows)

    def covariance(self, *, centred: bool = True) -> tuple[Factored, ...]:
        """Return the mean of u uᵀ of each group, without the mean's share of it if centred."""
        mean = self.mean()
        found = []
        for index in range(len(mean)):
            rows = self.sample.tensors[0][:, index].to(torch.float64)
            found.append(Factored((rows - mean[index] if centred else rows) / max(1, self.num_rows) ** 0.5))
        return tuple(found)


@dataclass(frozen=True)
class Factored:
    """A covariance that is XᵀX, which is never formed.

    Attributes:
        factor: X, [rows, columns] float64.
    """

    factor: Tensor

    def diagonal(self) -> Tensor:
        """Return the diagonal of XᵀX, [columns]."""
        return self.factor.square().sum(dim=0)

    def damped(self, ridge: float, least: float = 0.0) -> tuple[Tensor, float]:
        """Return XXᵀ + λI, [rows, rows], and λ: what `damped` adds to the diagonal of XᵀX."""
        level = float(_level(self.diagonal().mean(), ridge, least))
        inner = self.factor @ self.factor.T
        inner.diagonal().add_(level)
        return inner, level


def no_moments(
    groups: int, columns: int, device: torch.device | None = None, *, shard: int = 0
) -> Moments | RowMoments:
    """Return the moments of no rows of a layer: whole, or where it reads more columns than `WIDE`, by rows."""
    if columns <= WIDE:
        return Moments.none(groups, columns, device)
    return RowMoments(Sample(max_rows(groups * columns), shard=shard))


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
    level = _level(covariance.diagonal(dim1=-2, dim2=-1).mean(dim=-1), ridge, least)
    added = covariance.clone()
    added.diagonal(dim1=-2, dim2=-1).add_(level[..., None])
    return added


def _level(variance: Tensor, ridge: float, least: Tensor | float) -> Tensor:
    level = (ridge * variance).clamp(min=least)
    return torch.where(level > 0, level, 1.0)


def solve(matrix: Tensor, right: Tensor) -> Tensor:
    """Solve for a positive definite matrix [..., n, n] and right sides [..., n, m]."""
    factor, failed = torch.linalg.cholesky_ex(matrix)
    if bool(failed.any()):  # rounding made a tiny eigenvalue negative
        least: Tensor = torch.linalg.lstsq(matrix.cpu(), right.cpu(), driver="gelsd").solution  # it is the CPU's alone
        return least.to(matrix.device)
    return torch.cholesky_solve(right, factor)


class MomentGatherer(Collector, Observer):
    """Gathers the moments of the unfolded inputs of every layer that consumes a group.

    They take 8 · columns² bytes per layer, on the model's device until all is gathered, however many samples there are;
    of a layer that reads more columns than `WIDE`, what `MAX_ROWS` rows take, at most 256 MiB in float32.

    Attributes:
        layers: the consumers, by their weights.
        moments: of their unfolded inputs.
    """

    NEEDS = ("moments",)
    SUMS = ("moments",)

    def __init__(self, groups: Groups) -> None:
        self._model = groups.model
        self._consumers = set(readers_of(groups))
        self.layers: dict[str, Layer] = {}
        self.moments: dict[str, Moments | RowMoments] = {}
        self._shard = 0

    def update(self, batch: Batch) -> None:
        """Run the batch forward."""
        if not self.layers:
            found = find_layers(self._model, take(batch.inputs, slice(1)), recurrent=True)
            self.layers = {layer.weight: layer for layer in found if layer.weight in self._consumers}
        self._shard = batch.shard
        observe(self._model, batch.inputs, [self], recurrent=True)

    def on_layer(self, call: LayerCall) -> None:
        """Add the rows of a call."""
        if call.weight in self.layers:
            for _, columns in call.rows():
                _, parts, width = columns.shape
                known = self.moments.get(call.weight) or no_moments(parts, width, columns.device, shard=self._shard)
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
