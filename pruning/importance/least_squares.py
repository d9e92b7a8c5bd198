"""The matrices of a group's consumers, and what is known of the columns that they read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pruning.errors import CriterionError
from pruning.graph.groups import Group
from pruning.graph.layers import column_channels, places_of, to_matrix
from pruning.statistics.collect import Statistics
from pruning.statistics.moments import damped, solve

RIDGE = 1e-4  # keeps a system solvable where channels are copies of each other


@dataclass(frozen=True)
class Reading:
    """What one consumer (one group of a grouped convolution) reads of a channel group.

    Attributes:
        matrix: [outputs, columns] its weights.
        covariance: [columns, columns] of what it reads, per row; about the mean where it can take a mean over.
        columns: [size, taps] the columns of each channel.
    """

    matrix: Tensor
    covariance: Tensor
    columns: Tensor

    def gram(self) -> Tensor:
        """Return the products of the channels' contributions to the outputs, [size, size].

        ⟨X_c W_c, X_d W_d⟩, a mean over rows and a sum over outputs.
        """
        size, taps = self.columns.shape
        at = self.columns.flatten()
        products = self.covariance * (self.matrix.T @ self.matrix)
        return products[at][:, at].reshape(size, taps, size, taps).sum(dim=(1, 3))


@dataclass(frozen=True)
class Columns:
    """A consumer whose columns partly go, as a folding sees it.

    Attributes:
        matrix: [outputs, columns] its weights, for the outputs kept.
        covariance: [columns, columns] of what it read in the whole model.
        kept: bool [columns].
        taps: columns per channel.
        multiplicities: asks for a weight per column, [columns]: see `order_greedily`.
    """

    matrix: Tensor
    covariance: Tensor
    kept: Tensor
    taps: int
    multiplicities: Callable[[], Tensor]


def readings(group: Group, statistics: Statistics) -> list[Reading]:
    """Return what each consumer reads of a group.

    Raises:
        CriterionError: no moments were gathered, or a consumer is no convolution or linear layer.
    """
    if not statistics.moments:
        raise CriterionError(
            f"no moments of what reads group {group.name!r}; gather the statistics with needs={{'moments'}}"
        )
    found = []
    for piece in (piece for piece in group.slices if piece.role == "consumer"):
        moments, layer = statistics.moments.get(piece.parameter), statistics.layers.get(piece.parameter)
        if moments is None or layer is None or piece.axis != layer.geometry.input_axis:
            raise CriterionError(
                f"group {group.name!r}: {piece.parameter} consumes it, but not as the weights of a convolution or "
                "linear layer; leave the group whole (ignore) or choose a criterion that reads weights, such as l2_norm"
            )
        centred = layer.bias is not None or layer.running_mean is not None
        matrices = to_matrix(statistics.tensors[piece.parameter], layer.geometry).to("cpu", torch.float64)
        covariances = moments.covariance(centred=centred)
        for index, row in enumerate(column_channels(piece, layer.geometry)):
            columns = places_of(row, group.size)
            if columns is None:
                raise CriterionError(
                    f"group {group.name!r}: its channels have unequal numbers of places in what {piece.parameter} reads"
                )
            found.append(Reading(matrices[index], covariances[index], columns))
    if not found:
        raise CriterionError(f"group {group.name!r}: no layer's weights read its channels; leave it whole (ignore)")
    return found


def refit(columns: Columns) -> Tensor:
    """Return the matrix that gives nearly the same outputs from the columns kept: W_S + W_R C_RS C_SS⁻¹."""
    kept, gone = columns.kept, ~columns.kept
    covariance = columns.covariance
    mixed = solve(damped(covariance[kept][:, kept], RIDGE), covariance[kept][:, gone])
    return columns.matrix[:, kept] + columns.matrix[:, gone] @ mixed.T
