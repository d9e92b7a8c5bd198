"""Sensitivity: what a model loses when one group loses channels, everything else being whole."""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from pruning.criteria import Criterion, find_criterion, order_channels
from pruning.errors import SettingsError
from pruning.evaluation import Evaluation, Loss, Metric, Progress, Samples, cross_entropy, evaluate, top1
from pruning.gathering.statistics import Statistics, collect
from pruning.structure.bundles import tied_names
from pruning.structure.groups import Groups
from pruning.structure.masks import apply_masks
from pruning.structure.plan import Plan


class Point(BaseModel):
    """The model with some channels of one group masked.

    Attributes:
        rate: the share asked for.
        removed: channels masked, 1 at least.
        accuracy: of the masked model.
        loss: of the masked model.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rate: float
    removed: int = Field(ge=1)
    accuracy: float
    loss: float


class Curve(BaseModel):
    """Accuracy and loss against the channels that one group lost. JSON by `model_dump_json`.

    Attributes:
        group: name of the group.
        measured_with: the groups masked together with it because they lose equal counts; its own name is among them.
        size: its channels when it was measured.
        baseline_accuracy: of the whole model.
        baseline_loss: of the whole model.
        points: by rising number of channels; none where no rate removes a channel, so that "nothing was removed" is
            never taken for "insensitive".
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    group: str
    measured_with: tuple[str, ...]
    size: int
    baseline_accuracy: float
    baseline_loss: float
    points: tuple[Point, ...]


def measure_curve(
    model: nn.Module,
    groups: Groups,
    group_name: str,
    rates: Iterable[float],
    criterion: str | Criterion,
    samples: Samples,
    *,
    loss: Loss = cross_entropy,
    metric: Metric = top1,
    batch_size: int = 256,
    statistics: Statistics | None = None,
    baseline: Evaluation | None = None,
    progress: Progress | None = None,
) -> Curve:
    """Mask one group at each rate and evaluate.

    The unit is the coupled group: all of its slices are masked, and groups tied to it with it. At a rate r the
    round(r · size) channels that the criterion lets go first are masked, at most all but one. Rates that come to the
    same number of channels give one point, rates that come to none give no point.

    Args:
        model: the model that the groups were found on; untouched.
        groups: of the model.
        group_name: the group to measure.
        rates: shares of its channels, in (0, 1).
        criterion: chooses the channels.
        samples: to evaluate on; not the test split.
        loss: mean loss of a batch.
        metric: one value per sample.
        batch_size: samples per forward pass.
        statistics: what the criterion needs; gathered on `samples` if None.
        baseline: of the whole model on the same samples; measured if None.
        progress: told after each rate.

    Raises:
        SettingsError: the group is unknown, or a rate lies outside (0, 1).
        CriterionError: the criterion doesn't apply to the group.
    """
    asked = sorted(set(rates))
    if wrong := [rate for rate in asked if not 0 < rate < 1]:
        raise SettingsError(
            f"rates of the sensitivity analysis: {wrong}; expected shares between 0 and 1, both excluded"
        )
    names = tied_names(groups, group_name)
    if statistics is None:
        statistics = collect(groups, find_criterion(criterion).needs, samples, loss)
    if baseline is None:
        baseline = evaluate(model, samples, loss=loss, metric=metric, batch_size=batch_size)
    orders = {name: order_channels(criterion, groups[name], statistics) for name in names}
    size, smallest = groups[group_name].size, min(groups[name].size for name in names)
    counts: dict[int, float] = {}
    for rate in asked:
        counts.setdefault(min(round(rate * size), smallest - 1), rate)
    points = []
    for index, (count, rate) in enumerate(sorted(counts.items())):
        if count > 0:
            plan = Plan.of(groups, {name: order[:count] for name, order in orders.items()})
            masked = apply_masks(model, plan, groups=groups)
            found = evaluate(masked, samples, loss=loss, metric=metric, batch_size=batch_size)
            points.append(Point(rate=rate, removed=count, accuracy=found.accuracy, loss=found.loss))
        if progress is not None:
            progress(index + 1, len(counts))
    return Curve(
        group=group_name,
        measured_with=names,
        size=size,
        baseline_accuracy=baseline.accuracy,
        baseline_loss=baseline.loss,
        points=tuple(points),
    )
