"""Penalties that bring channels to zero, as proximal steps: plain gradient descent never gets there.

    group_lasso   Σ over channels of √s · ‖v‖₂      v ← v · max(0, 1 − η λ √s / ‖v‖₂)
    bn_scale      Σ |γ|                              γ ← sign(γ) · max(0, |γ| − η λ)

v are all values of a channel, those of every slice of its group, s is their number, γ the scale of a batch norm, η the
learning rate, λ the strength. A layer's weights are in the slices of two groups, of what it makes and of what it reads:
the steps are taken one group after the other.

Sources: Wen et al. 2016, arXiv 1608.03665 (group LASSO); Liu et al. 2017, arXiv 1708.06519 (scales); Parikh & Boyd
2014, Proximal Algorithms (the steps).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor

from pruning.structure.groups import Group, Slice
from pruning.structure.slices import rows_of

_TINY = 1e-30


@dataclass(frozen=True)
class Penalised:
    """The slices of one group that a penalty acts on."""

    group: Group
    pieces: tuple[Slice, ...]

    def scale(self, parameters: Mapping[str, Tensor], factors: Tensor) -> None:
        """Multiply the values of each channel by its factor, [size], in place."""
        for piece in self.pieces:
            tensor, at = parameters[piece.parameter], piece.channels()
            along = torch.where(at < 0, 1.0, factors[at.clamp(min=0)])
            shape = [-1 if axis == piece.axis else 1 for axis in range(tensor.ndim)]
            tensor.mul_(along.to(tensor).reshape(shape))


class GroupLasso:
    """√s times the norm of all values of a channel."""

    def find(self, group: Group, parameters: Mapping[str, Tensor]) -> Penalised:
        """Return all of a group's slices that are trained."""
        return Penalised(group, tuple(piece for piece in group.slices if piece.parameter in parameters))

    def thresholds(self, one: Penalised, parameters: Mapping[str, Tensor], rate: float) -> Tensor:
        """Return the strength at which each channel reaches zero in one step, [size] float64 on the CPU."""
        squares, count = torch.zeros(one.group.size, dtype=torch.float64), 0
        for piece in one.pieces:
            rows = rows_of(parameters[piece.parameter], piece, one.group.size)
            squares += rows.square().sum(dim=1).to("cpu", torch.float64)
            count += rows.shape[1]
        return squares.sqrt() / (rate * sqrt(count))

    def step(
        self, one: Penalised, parameters: Mapping[str, Tensor], rate: float, strength: float, spared: Tensor
    ) -> None:
        """Take the proximal step of one group; channels that are spared stay as they are."""
        found = self.thresholds(one, parameters, rate)
        factors = torch.where(found > strength, 1 - strength / found.clamp(min=_TINY), 0.0)
        one.scale(parameters, torch.where(spared, 1.0, factors))


class ScalePenalty:
    """|γ| of each batch norm."""

    def find(self, group: Group, parameters: Mapping[str, Tensor]) -> Penalised:
        """Return a group's scales of batch norms that are trained."""
        pieces = (piece for piece in group.slices if piece.use == "batch_norm.weight")
        return Penalised(group, tuple(piece for piece in pieces if piece.parameter in parameters))

    def thresholds(self, one: Penalised, parameters: Mapping[str, Tensor], rate: float) -> Tensor:
        """Return the strength at which each channel's last scale reaches zero in one step."""
        rows = [rows_of(parameters[piece.parameter], piece, one.group.size) for piece in one.pieces]
        largest = torch.cat([values.abs() for values in rows], dim=1).amax(dim=1)
        return largest.to("cpu", torch.float64) / rate

    def step(
        self, one: Penalised, parameters: Mapping[str, Tensor], rate: float, strength: float, spared: Tensor
    ) -> None:
        """Take the proximal step of one group; channels that are spared stay as they are."""
        for piece in one.pieces:
            tensor, at = parameters[piece.parameter], piece.channels()
            free = (at < 0) | spared[at.clamp(min=0)]
            # Compared as thresholds are, so that a channel whose threshold is met comes out at exactly zero.
            found = tensor.abs().to("cpu", torch.float64) / rate
            shrunk = torch.where(found > strength, 1 - strength / found.clamp(min=_TINY), 0.0)
            tensor.mul_(torch.where(free, 1.0, shrunk).to(tensor))


Penalty = GroupLasso | ScalePenalty

PENALTIES: dict[str, Penalty] = {"group_lasso": GroupLasso(), "bn_scale": ScalePenalty()}
