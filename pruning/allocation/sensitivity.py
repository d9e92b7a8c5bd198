"""Sensitivity: what a model loses when one group loses channels, everything else being whole."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from math import log1p, sqrt
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from pruning.allocation.dataflow import Unsuitable
from pruning.allocation.prefix_cache import FirstLayers
from pruning.batches import Batches, Samples, as_batches
from pruning.errors import SettingsError
from pruning.evaluation import Evaluation, Forward, Loss, cross_entropy, evaluate, top1, whole_pass
from pruning.graph.groups import Groups
from pruning.metrics import Metric, StatefulMetric
from pruning.plan.constraints import tied_names
from pruning.plan.masks import apply_masks, masked_copy, parameter_masks
from pruning.plan.plan import Plan

Sweep = Literal["knee", "full"]
"""Which rates are measured: those that bracket the knee of the curve, a third of all; or all."""

_NORMAL_95 = 1.96
_FEWEST = 3  # evaluations of a group, where there are so many rates


class Point(BaseModel):
    """The model with some channels of one group masked.

    Attributes:
        rate: the share asked for.
        removed: channels masked, 1 at least.
        score: of the masked model.
        loss: of the masked model.
        margin: half the width of the 95 % interval of the loss above the whole model's: 1.96 · s / √N, s being the
            standard deviation of the differences on N samples, each with itself; None where it wasn't measured.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rate: float
    removed: int = Field(ge=1)
    score: float
    loss: float
    margin: float | None = Field(default=None, ge=0)


class Curve(BaseModel):
    """Accuracy and loss against the channels that one group lost. JSON by `model_dump_json`.

    Attributes:
        group: name of the group.
        measured_with: the groups masked together with it because they lose equal counts; its own name is among them.
        size: its channels when it was measured.
        baseline_score: of the whole model.
        baseline_loss: of the whole model.
        points: by rising number of channels; none where no rate removes a channel, so that "nothing was removed" is
            never taken for "insensitive".
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    group: str
    measured_with: tuple[str, ...]
    size: int
    baseline_score: float
    baseline_loss: float
    points: tuple[Point, ...]


class Sensitivity:
    """Measures the curves of a model's groups, one after the other.

    Attributes:
        num_evaluations: of masked models, so far.
    """

    def __init__(
        self,
        model: nn.Module,
        groups: Groups,
        orders: Mapping[str, Sequence[int]],
        rates: Iterable[float],
        samples: Samples | Batches,
        *,
        sweep: Sweep = "knee",
        loss: Loss = cross_entropy,
        metric: Metric | StatefulMetric = top1,
        batch_size: int = 256,
        share: bool = True,
    ) -> None:
        """Look at the order of the model's operators.

        Args:
            model: the model that the groups were found on; untouched.
            groups: of the model.
            orders: for each group its channels, the first to go first (`criteria.order_channels`).
            rates: shares of a group's channels, in (0, 1).
            samples: to evaluate on; not the test split.
            sweep: whether to measure a third of the rates, where the loss rises most, or all of them.
            loss: mean loss of a batch.
            metric: one value per sample, or an object that adds up batches.
            batch_size: samples per forward pass.
            share: whether the layers before a group's first are run once for all of its rates; the same numbers.

        Raises:
            SettingsError: a rate lies outside (0, 1).
        """
        self._rates = sorted(set(rates))
        if wrong := [rate for rate in self._rates if not 0 < rate < 1]:
            raise SettingsError(
                f"rates of the sensitivity analysis: {wrong}; expected shares between 0 and 1, both excluded"
            )
        self._model, self._groups, self._orders, self._samples = model, groups, orders, as_batches(samples)
        self._sweep, self._loss, self._metric, self._batch_size = sweep, loss, metric, batch_size
        self.num_evaluations = 0
        self._first = FirstLayers(model, groups.trace, self._samples, batch_size) if share else None

    @cached_property
    def whole(self) -> Evaluation:
        """What the model scores with nothing masked."""
        return self._score(self._model)

    def in_order(self) -> list[str]:
        """Return one group of each bundle of tied ones: those first of which the first layers are used first."""
        names = {tied_names(self._groups, group.name)[0]: None for group in self._groups}
        return sorted(names, key=self._shared)

    def curve(self, group_name: str) -> Curve:
        """Mask one group at each rate of the sweep and evaluate.

        The unit is the coupled group: all of its slices are masked, and groups tied to it with it. At a rate r the
        round(r · size) channels that go first are masked, at most all but one. Rates that come to the same number of
        channels give one point, rates that come to none give no point.

        Raises:
            SettingsError: the group is unknown.
        """
        names, size = tied_names(self._groups, group_name), self._groups[group_name].size
        rates = self._counts(group_name)
        counts = sorted(rates)
        points: dict[int, Point] = {}
        while (index := self._next(points, len(counts))) is not None:
            count = counts[index]
            points[index] = self._point(rates[count], count, names)
        return Curve(
            group=group_name,
            measured_with=names,
            size=size,
            baseline_score=self.whole.score,
            baseline_loss=self.whole.loss,
            points=tuple(points[index] for index in sorted(points)),
        )

    def most_points(self, group_name: str) -> int:
        """Return how many points the curve of a group has at most."""
        counts = len(self._counts(group_name))
        return counts if self._sweep == "full" else min(counts, self._most)

    def _counts(self, group_name: str) -> dict[int, float]:
        """Return the numbers of channels that may be masked, and the lowest rate that comes to each."""
        smallest = min(self._groups[name].size for name in tied_names(self._groups, group_name))
        rates: dict[int, float] = {}
        for rate in self._rates:
            if count := min(round(rate * self._groups[group_name].size), smallest - 1):
                rates.setdefault(count, rate)
        return rates

    @property
    def _most(self) -> int:
        return max(_FEWEST, len(self._rates) // 3)

    def _next(self, points: Mapping[int, Point], num: int) -> int | None:
        if self._sweep == "full":
            return len(points) if len(points) < num else None
        if len(points) >= self._most or any(self._nothing_lost(one, index, num) for index, one in points.items()):
            return None
        assert self.whole.losses is not None
        rises = {index: point.loss - self.whole.loss for index, point in points.items()}
        return next_to_measure(rises, num, scale=float(self.whole.losses.std(correction=0)))

    def _nothing_lost(self, point: Point, index: int, num: int) -> bool:
        """Whether the loss at the highest rate that is looked at first isn't above the whole model's, but for noise."""
        return index >= _high(num) and point.loss - (point.margin or 0.0) <= self.whole.loss

    def _point(self, rate: float, count: int, names: tuple[str, ...]) -> Point:
        plan = Plan.of(self._groups, {name: self._orders[name][:count] for name in names})
        found = self._evaluate(plan)
        self.num_evaluations += 1
        assert found.losses is not None
        assert self.whole.losses is not None
        spread = float((found.losses - self.whole.losses).std(correction=0))
        margin = _NORMAL_95 * spread / sqrt(found.num_samples)
        return Point(rate=rate, removed=count, score=found.score, loss=found.loss, margin=margin)

    def _evaluate(self, plan: Plan) -> Evaluation:
        if any(self._groups[name].mixed for name in plan.removed):
            return self._score(apply_masks(self._model, plan, groups=self._groups))  # its norms see what is kept alone
        masks = parameter_masks(self._groups, plan)
        if self._first is not None:
            try:
                return self._score(masked_copy(self._model, masks), self._first.forward(masks))
            except Unsuitable as reason:
                self._first.give_up(reason)
        return self._score(masked_copy(self._model, masks))

    def _score(self, model: nn.Module, forward: Forward = whole_pass) -> Evaluation:
        return evaluate(
            model,
            self._samples,
            loss=self._loss,
            metric=self._metric,
            batch_size=self._batch_size,
            forward=forward,
            each=True,
        )

    def _shared(self, group_name: str) -> int:
        """The number of operators before the first that sees the group masked."""
        names = tied_names(self._groups, group_name)
        touched = {piece.parameter for name in names for piece in self._groups[name].slices}
        return 0 if self._first is None else self._first.cut(touched)


def next_to_measure(rises: Mapping[int, float], num: int, scale: float) -> int | None:
    """Return which of the counts of a curve to measure next, to bracket its knee; None where there is none left.

    First one near the high end, then one near the low end; from then on the middle of the two neighbours between which
    the loss rises most, on a scale of log(1 + rise / scale): at first it hardly matters how much is lost when all is.

    Args:
        rises: for each count that was measured, by its place in the list of all, how far its loss is above the whole's.
        num: length of that list.
        scale: rises much below it are nothing; the spread of the whole model's losses over the samples.
    """
    for first in (_high(num), num // 4):
        if num and first not in rises:
            return first
    places = [-1, *sorted(rises)]
    losses = np.maximum.accumulate([0.0, *(max(rises[place], 0.0) for place in places[1:])])
    slope = (losses[-1] - losses[-2]) / (places[-1] - places[-2]) if rises else 0.0
    ends = [*places, num]
    heights = [log1p(loss / max(scale, 1e-6)) for loss in [*losses, losses[-1] + slope * (num - places[-1])]]
    open_ = [
        (above - below, -left, (left + right) // 2)
        for (left, right), (below, above) in zip(pairwise(ends), pairwise(heights), strict=True)
        if right - left > 1
    ]
    return max(open_)[2] if open_ else None


def _high(num: int) -> int:
    return max(num - 1 - num // 8, 0)


def predicted_damage(curve: Curve, removed: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the loss that a curve predicts for numbers of removed channels, above the whole model's.

    The monotone envelope: a group doesn't heal by losing more, and what a sample measured below the whole model counts
    as nothing. Up to the first point above nothing it rises with the square, as a loss does around its minimum; between
    two points as the power law through both; beyond the last as steeply as it ever did.
    """
    counts = np.array([0.0, *(point.removed for point in curve.points)])
    losses = np.array([0.0, *(point.loss - curve.baseline_loss for point in curve.points)])
    envelope = np.maximum.accumulate(np.maximum(losses, 0.0))
    steepest = float(np.max(np.diff(envelope) / np.diff(counts)))
    beyond = np.maximum(removed - counts[-1], 0.0) * steepest
    inside = np.minimum(removed, counts[-1])
    segment = np.clip(np.searchsorted(counts, inside, side="right"), 1, len(counts) - 1)
    begin, end, low, high = counts[segment - 1], counts[segment], envelope[segment - 1], envelope[segment]
    part = (inside - begin) / (end - begin)
    with np.errstate(divide="ignore", invalid="ignore"):  # of segments that begin at nothing, which are squares
        power = low * (inside / begin) ** (np.log(high / low) / np.log(end / begin))
    damage: NDArray[np.float64] = np.where(low > 0, power, high * part**2) + beyond
    return damage
