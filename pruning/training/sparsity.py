"""Train until a share of the channels is at zero, by penalties whose strength rises until they are.

    group_lasso   Σ over channels of √s · ‖v‖₂      v ← v · max(0, 1 − η λ √s / ‖v‖₂)
    bn_scale      Σ |γ|                              γ ← sign(γ) · max(0, |γ| − η λ)

v are all values of a channel, those of every slice of its group, s is their number, γ the scale of a batch norm, η the
learning rate, λ the strength. A layer's weights are in the slices of two groups, of what it makes and of what it reads:
the steps are taken one group after the other.

Sources: Wen et al. 2016, arXiv 1608.03665 (group LASSO); Liu et al. 2017, arXiv 1708.06519 (scales); Parikh & Boyd
2014, Proximal Algorithms (the steps).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, sqrt

import torch
from torch import Tensor, nn

from pruning.errors import SettingsError
from pruning.graph.groups import Group, Groups, Slice
from pruning.graph.layers import rows_of
from pruning.plan.constraints import groups_in
from pruning.training.recipe import Recipe

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


_log = logging.getLogger(__name__)


class SparsityTraining:
    """The proximal step after each step of an optimizer: give it to `finetune` as `after_step` and as `memory`.

    Over the first part of the run (`ramp`) the strength of each step is what would bring the share asked for to zero at
    once, divided by the steps that are left of it: channels shrink evenly, and the harder the loss pulls them back, the
    more the strength rises, until with the last of these steps the share is at zero. From then on there is no penalty:
    what is at zero is held there, and the rest recovers. (With `group_lasso` a few more can reach zero, because groups
    share weights.)

    The tenth of each group's channels that is the strongest, one at least, is never penalised, so that no layer is
    emptied. A batch norm's shift is not part of `bn_scale`: a channel with γ = 0 still gives the constant β.
    """

    def __init__(self, groups: Groups, model: nn.Module, recipe: Recipe, ignore: Sequence[str] = ()) -> None:
        """Find the channels.

        Args:
            groups: of this model, or of another instance of the same shapes.
            model: what is trained.
            recipe: with `sparsity`.
            ignore: names, prefixes or patterns of modules or parameters whose groups are not penalised.

        Raises:
            SettingsError: the recipe names no penalty, no group has what it acts on, or the share is too large.
        """
        if recipe.sparsity is None:
            raise SettingsError(f"recipe {recipe.name!r} names no sparsity; expected a penalty and a share")
        self._name, self._share, self._ramp = recipe.name, recipe.sparsity.share, recipe.sparsity.ramp
        self._parameters = {name: p.data for name, p in model.named_parameters() if p.requires_grad}
        self._penalty = PENALTIES[recipe.sparsity.penalty]
        left = groups_in(groups, ignore, "ignore")
        found = [self._penalty.find(group, self._parameters) for group in groups if group.name not in left]
        self._penalised: list[Penalised] = [one for one in found if one.pieces]
        if not self._penalised:
            raise SettingsError(
                f"recipe {recipe.name!r}: no group has what the penalty {recipe.sparsity.penalty!r} acts on"
                + ("; it needs batch norms with a scale: choose group_lasso" if found else "")
            )
        self._total = sum(one.group.size for one in self._penalised)
        most = self._total - sum(_num_strongest(one.group.size) for one in self._penalised)
        if round(self._share * self._total) > most:
            raise SettingsError(
                f"recipe {recipe.name!r}: sparsity.share {self._share:.1%} of {self._total} channels can't be at zero: "
                f"the strongest tenth of each group stays, which leaves {most}; ask for {most / self._total:.1%} at "
                "most"
            )
        self._gone: list[Tensor] | None = None

    @property
    def share(self) -> float:
        """The share of the penalised channels that is at zero."""
        zero = sum(int((self._penalty.thresholds(one, self._parameters, 1.0) == 0).sum()) for one in self._penalised)
        return zero / self._total

    @torch.no_grad()
    def __call__(self, step: int, num_steps: int, rate: float) -> None:
        """Take the step.

        Args:
            step: from 1.
            num_steps: of the whole run.
            rate: the learning rate.
        """
        num_left = max(1, round(self._ramp * num_steps)) - step + 1
        if self._gone is not None:
            for one, gone in zip(self._penalised, self._gone, strict=True):
                one.scale(self._parameters, torch.where(gone, 0.0, 1.0))
        elif rate > 0:
            self._shrink(max(1, num_left), rate)

    def state_dict(self) -> dict[str, Tensor]:
        """Return which channels are held at zero, group by group; nothing before the ramp has ended."""
        return {str(number): gone for number, gone in enumerate(self._gone or ())}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Hold those."""
        self._gone = [state[str(number)] for number in range(len(state))] or None

    def _shrink(self, num_left: int, rate: float) -> None:
        found = [self._penalty.thresholds(one, self._parameters, rate) for one in self._penalised]
        spared = [_strongest(values) for values in found]
        free = torch.cat([values[~keep] for values, keep in zip(found, spared, strict=True)]).sort().values
        wanted = round(self._share * self._total)
        strength = float(free[wanted - 1]) / num_left if wanted else 0.0
        for one, keep in zip(self._penalised, spared, strict=True):
            self._penalty.step(one, self._parameters, rate, strength, keep)
        if num_left == 1:
            self._gone = [self._penalty.thresholds(one, self._parameters, rate) == 0 for one in self._penalised]
            _log.info("recipe %s: %.1f %% of the channels are at zero", self._name, 100 * self.share)


def _strongest(thresholds: Tensor) -> Tensor:
    """Mark the tenth of a group's channels that is furthest from zero."""
    keep = torch.zeros(len(thresholds), dtype=torch.bool)
    keep[torch.argsort(thresholds, stable=True)[-_num_strongest(len(thresholds)) :]] = True
    return keep


def _num_strongest(size: int) -> int:
    return ceil(size / 10)
