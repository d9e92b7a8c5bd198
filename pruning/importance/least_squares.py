"""What reads a group: the matrices of layers and the columns that they read, and all other operators."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pruning.errors import CriterionError, UnscoredGroupError
from pruning.graph.groups import Group
from pruning.graph.layers import column_channels, places_of, to_matrix
from pruning.statistics.collect import Statistics
from pruning.statistics.collector import NO_LAYERS_WEIGHTS, NO_READER, UNEQUAL, Uncounted
from pruning.statistics.moments import Factored, damped, solve

RIDGE = 1e-4  # keeps a system solvable where channels are copies of each other
_VALUES = 1 << 24  # worked out at a time


@dataclass(frozen=True)
class Reading:
    """What one consumer (one group of a grouped convolution) reads of a channel group.

    Attributes:
        matrix: [outputs, columns] its weights.
        covariance: [columns, columns] of what it reads, per row; about the mean where it can take a mean over. Of a
            layer that reads very many columns, as a product.
        columns: [size, taps] the columns of each channel.
        gain: what its errors are weighed by beside those of readers that are no layers.
    """

    matrix: Tensor
    covariance: Tensor | Factored
    columns: Tensor
    gain: float = 1.0

    def gram(self) -> Tensor:
        """Return the products of the channels' contributions to the outputs, [size, size], times the gain.

        ⟨X_c W_c, X_d W_d⟩, a mean over rows and a sum over outputs.
        """
        size, taps = self.columns.shape
        at = self.columns.flatten()
        if isinstance(self.covariance, Factored):
            return self.gain * _gram_by_rows(self.matrix[:, at], self.covariance.factor[:, at], size)
        products = self.covariance * (self.matrix.T @ self.matrix)
        return self.gain * products[at][:, at].reshape(size, taps, size, taps).sum(dim=(1, 3))


def _gram_by_rows(matrix: Tensor, factor: Tensor, size: int) -> Tensor:
    """Return Σ ⟨X_c W_c, X_d W_d⟩ over rows and outputs, [size, size], a block of outputs or of channels at a time.

    Args:
        matrix: W, [outputs, columns], a channel's after one another.
        factor: X, [rows, columns].
        size: Channels.
    """
    rows, outputs, taps = len(factor), len(matrix), factor.shape[1] // size
    gram = factor.new_zeros(size, size)
    if rows * outputs < taps**2 * (rows + outputs):
        read = factor.T.reshape(size, taps, rows)
        step = max(1, _VALUES // (size * rows))
        for start in range(0, outputs, step):
            some = matrix[start : start + step]
            given = (some.T.reshape(size, taps, len(some)).mT @ read).flatten(1)
            gram += given @ given.T
        return gram
    step = taps * max(1, _VALUES // (taps * factor.shape[1]))
    for start in range(0, factor.shape[1], step):
        here = slice(start, start + step)
        both = (factor[:, here].T @ factor) * (matrix[:, here].T @ matrix)
        gram[start // taps : (start + step) // taps] = both.reshape(-1, taps, size, taps).sum(dim=(1, 3))
    return gram


@dataclass(frozen=True)
class Columns:
    """A consumer whose columns partly go, as a folding sees it.

    Attributes:
        matrix: [outputs, columns] its weights, for the outputs kept.
        covariance: [columns, columns] of what it read in the whole model; of very many columns, as a product.
        kept: bool [columns].
        taps: columns per channel.
        multiplicities: asks for a weight per column, [columns]: see `order_greedily`.
    """

    matrix: Tensor
    covariance: Tensor | Factored
    kept: Tensor
    taps: int
    multiplicities: Callable[[], Tensor]


def readings(group: Group, statistics: Statistics, *, centred: bool | None = None) -> list[Reading]:
    """Return what each layer that reads a group reads of it; none where nothing but other operators read it.

    Args:
        group: That is read.
        statistics: With the moments of what reads it.
        centred: Whether covariances are about the mean; None: where the layer can take a mean over.

    Raises:
        CriterionError: No moments were gathered.
        UnscoredGroupError: Nothing reads it; or something does of which that can't be told.
    """
    if statistics.contributions is None:
        raise CriterionError(
            f"no moments of what reads group {group.name!r}; gather the statistics with needs={{'moments'}}"
        )
    found = []
    for piece in (piece for piece in group.slices if piece.role == "consumer"):
        moments, layer = statistics.moments.get(piece.parameter), statistics.layers.get(piece.parameter)
        if moments is None or layer is None:
            if group.name not in statistics.contributions:
                raise UnscoredGroupError(group.name, NO_LAYERS_WEIGHTS, piece.parameter)
            continue  # the operator that it goes into is told of by the contributions
        if layer.recurrent and group.name in statistics.contributions:
            continue  # likewise
        if piece.axis != layer.geometry.input_axis:
            raise UnscoredGroupError(group.name, NO_LAYERS_WEIGHTS, piece.parameter)
        takes_mean = layer.bias is not None or layer.running_mean is not None
        matrices = to_matrix(statistics.tensors[piece.parameter], layer.geometry).to("cpu", torch.float64)
        covariances = moments.covariance(centred=takes_mean if centred is None else centred)
        for index, row in enumerate(column_channels(piece, layer.geometry)):
            columns = places_of(row, group.size)
            if columns is None:
                raise UnscoredGroupError(group.name, UNEQUAL, piece.parameter)
            gain = statistics.gains.get(group.name, {}).get(piece.parameter, 1.0)
            found.append(Reading(matrices[index], covariances[index], columns, gain))
    if not found and group.name not in statistics.contributions:
        raise UnscoredGroupError(group.name, NO_READER)
    return found


def powers(group: Group, statistics: Statistics, *, centred: bool) -> list[tuple[Tensor, Tensor]]:
    """Return of each layer that reads a group what it reads and its weights for it.

    Args:
        group: That is read.
        statistics: With the moments of what reads it.
        centred: Whether the mean square of each column is taken about its mean.

    Returns:
        Pairs: the mean square of each column over rows, and its weights as [size, taps, outputs].

    Raises:
        CriterionError: No moments were gathered.
        UnscoredGroupError: No layer reads it.
    """
    found = [
        (one.covariance.diagonal().clamp(min=0)[one.columns], one.matrix.T[one.columns])
        for one in readings(group, statistics, centred=centred)
    ]
    if not found:
        raise UnscoredGroupError(group.name, "no layer reads its channels")
    return found


def other_contributions(group: Group, statistics: Statistics) -> Tensor | None:
    """Return the products of the channels' contributions to what reads them and is no layer, [size, size].

    Returns:
        None where layers alone read the group.

    Raises:
        UnscoredGroupError: They can't be told.
    """
    found = (statistics.contributions or {}).get(group.name)
    if isinstance(found, Uncounted):
        raise UnscoredGroupError(group.name, found.kind, found.where)
    return found


def all_contributions(group: Group, statistics: Statistics) -> Tensor:
    """Return the products of the channels' contributions to what all their readers give, [size, size].

    Raises:
        CriterionError: No moments were gathered.
        UnscoredGroupError: Nothing reads it; or something does of which that can't be told.
    """
    grams = [one.gram() for one in readings(group, statistics)]
    others = other_contributions(group, statistics)
    return torch.stack([*grams, *([] if others is None else [others])]).sum(dim=0)


def refit(columns: Columns) -> Tensor:
    """Return the matrix that gives nearly the same outputs from the columns kept: W_S + W_R C_RS C_SS⁻¹."""
    kept, gone = columns.kept, ~columns.kept
    covariance = columns.covariance
    if isinstance(covariance, Factored):  # X_Rᵀ X_S (X_Sᵀ X_S + λI)⁻¹ = X_Rᵀ (X_S X_Sᵀ + λI)⁻¹ X_S
        read = Factored(covariance.factor[:, kept])
        lost = covariance.factor[:, gone] @ columns.matrix[:, gone].T  # [rows, outputs]
        return columns.matrix[:, kept] + solve(read.damped(RIDGE)[0], lost).T @ read.factor
    mixed = solve(damped(covariance[kept][:, kept], RIDGE), covariance[kept][:, gone])
    return columns.matrix[:, kept] + columns.matrix[:, gone] @ mixed.T
