"""Metrics that add up batch by batch, and keep counts and sums alone: the same figure whatever the size of a batch.

A metric of any other library has the same four names: `torchmetrics.Metric` is taken as it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from pruning.errors import ModelError, SettingsError

IGNORED = -100
"""The target that counts for nothing, as torch's cross entropy and the tokenizers of transformers have it."""


Metric = Callable[[Any, Any], Tensor]
"""(outputs, targets) -> [N] float: one value per sample; their mean is the score."""


@runtime_checkable
class StatefulMetric(Protocol):
    """What a metric has to have; `higher_is_better` (bool) beside it says which way is up."""

    def update(self, predictions: Any, targets: Any) -> None:
        """Add a batch."""

    def compute(self) -> Any:
        """Return the figure of all batches since the last reset: a number, or a mapping of several."""

    def reset(self) -> None:
        """Forget all batches."""


@dataclass(frozen=True)
class Measure:
    """What a score is called, which way is up, and how it is written.

    Attributes:
        name: As in a sentence: "accuracy", "mean IoU".
        higher_is_better: Whether more is better.
        is_share: Whether it lies in [0, 1] and is written in percent.
    """

    name: str
    higher_is_better: bool = True
    is_share: bool = True

    def show(self, score: float) -> str:
        """Write a score."""
        return f"{score:.2%}" if self.is_share else f"{score:.5g}"

    def show_change(self, change: float) -> str:
        """Write a difference of two scores, with its sign."""
        return f"{100 * change or 0.0:+.2f} points" if self.is_share else f"{change or 0.0:+.4g}"

    def show_size(self, change: float) -> str:
        """Write how large a difference of two scores is."""
        return f"{100 * abs(change):.2f} points" if self.is_share else f"{abs(change):.4g}"

    def show_interval(self, low: float, high: float) -> str:
        """Write the two ends of an interval of scores."""
        return f"[{100 * low:.1f}, {100 * high:.1f}]" if self.is_share else f"[{low:.4g}, {high:.4g}]"

    def show_change_interval(self, low: float, high: float) -> str:
        """Write the two ends of an interval of differences, with their signs."""
        return f"[{100 * low:+.2f}, {100 * high:+.2f}]" if self.is_share else f"[{low:+.4g}, {high:+.4g}]"

    def gain(self, before: float, after: float) -> float:
        """Return by how much the second score is better: below 0 if it is worse."""
        return after - before if self.higher_is_better else before - after

    def worse_by(self, score: float, drop: float) -> float:
        """Return the score that is worse by a drop of 0 or more."""
        return score - drop if self.higher_is_better else score + drop


ACCURACY = Measure("accuracy")


def measure_of(metric: Any, reference: str = "the metric") -> Measure:
    """Return how a metric's figure is to be read.

    A function of (outputs, targets) that gives a value in [0, 1] per sample counts as a share, of which more is better.
    An object says `higher_is_better`; `name` and `is_share` if it has them. A metric of torchmetrics between 0 and 1
    (`plot_lower_bound`, `plot_upper_bound`) is a share.

    Args:
        metric: A function, or an object with `update`, `compute` and `reset`.
        reference: What the user calls it.

    Raises:
        SettingsError: It is an object that doesn't say which way is up.
    """
    name = getattr(metric, "name", None) or getattr(metric, "__name__", None) or type(metric).__name__
    name = str(name).replace("_", " ").strip()
    if not isinstance(metric, StatefulMetric):
        return Measure("accuracy" if name == "top1" else name)
    higher = getattr(metric, "higher_is_better", None)
    if not isinstance(higher, bool):
        raise SettingsError(
            f"{reference} doesn't say which way is up: its higher_is_better is {higher!r}; give it an attribute "
            "higher_is_better that is True or False, since models are compared by it"
        )
    bounds = getattr(metric, "plot_lower_bound", None), getattr(metric, "plot_upper_bound", None)
    return Measure(name, higher, bool(getattr(metric, "is_share", bounds == (0.0, 1.0))))


def score_of(metric: StatefulMetric, key: str | None = None) -> float:
    """Return a metric's figure as a number.

    Args:
        metric: Of which batches were seen.
        key: Which of several figures, where `compute` gives a mapping.

    Raises:
        ModelError: It gives several and none is chosen, or something that is no single finite number.
    """
    found, name = metric.compute(), type(getattr(metric, "inner", metric)).__name__
    if isinstance(found, Mapping):
        if key not in found:
            asked = "none is chosen" if key is None else f"{key!r} is none of them"
            raise ModelError(
                f"the metric {name} gives {', '.join(map(str, found))}, and {asked}; set training.metric_key to one"
            )
        found = found[key]
    try:
        score = float(found)
    except (TypeError, ValueError, RuntimeError) as fault:
        shape = f"a tensor {list(found.shape)}" if isinstance(found, Tensor) else f"a {type(found).__name__}"
        raise ModelError(f"the metric {name} gave {shape}; expected one number, or a mapping of numbers") from fault
    if not math.isfinite(score):
        raise ModelError(
            f"the metric {name} gave {score}; expected a finite number: look for inf or nan in the outputs, and "
            "whether the samples hold what it measures"
        )
    return score


def described(value: Any) -> str:
    """Say what a value is: the shape and type of a tensor, the class of anything else."""
    if isinstance(value, Tensor):
        return f"a tensor {list(value.shape)} of {str(value.dtype).removeprefix('torch.')}"
    return f"a {type(value).__name__}"


def of_one_shape(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return both in the targets' shape; [N, 1] and [N] are the same, and torch would make [N, N] of them.

    Raises:
        ModelError: They are of other shapes.
    """
    if targets.shape in ((*outputs.shape, 1), outputs.shape[:-1] if outputs.shape[-1:] == (1,) else None):
        outputs = outputs.reshape(targets.shape)
    if outputs.shape != targets.shape:
        raise ModelError(f"of shape {list(outputs.shape)} for targets {list(targets.shape)}; expected the same shape")
    return outputs, targets


class _Sums:
    """Named sums in float64."""

    higher_is_better = True
    is_share = True
    name = ""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget all batches."""
        self._sums = dict[str, Tensor]()

    def _add(self, **sums: Tensor) -> None:
        for name, found in sums.items():
            one = found.detach().to("cpu", torch.float64)
            self._sums[name] = self._sums[name] + one if name in self._sums else one

    def _sum(self, name: str) -> Tensor:
        if name not in self._sums:
            raise ModelError(f"the metric {type(self).__name__} has seen no batch")
        return self._sums[name]


class _PerClass(_Sums):
    def per_class(self) -> dict[int, float]:
        """Return the figure of each class."""
        raise NotImplementedError

    def compute(self) -> float:
        """Return the mean over the classes."""
        return float(torch.tensor(list(self.per_class().values()), dtype=torch.float64).mean())


class _Confusion(_PerClass):
    """Counts of (target, prediction), [C, C]; C grows with the classes that occur."""

    def __init__(self, ignore_index: int = IGNORED) -> None:
        self._ignored = ignore_index
        super().__init__()

    def update(self, predictions: Tensor, targets: Tensor) -> None:
        """Add a batch: class indices, or scores [N, C, ...]; targets [N, ...]."""
        found = predictions.argmax(1) if predictions.ndim == targets.ndim + 1 else predictions
        if found.shape != targets.shape:
            raise ModelError(
                f"predictions {list(predictions.shape)} for targets {list(targets.shape)}; expected class indices "
                "of the same shape, or scores with the classes on axis 1"
            )
        valid = targets != self._ignored
        pairs = torch.stack([targets[valid].long(), found[valid].long()]).cpu()
        size = int(pairs.max()) + 1 if pairs.numel() else 1
        if pairs.numel() and int(pairs.min()) < 0:
            raise ModelError(f"class {int(pairs.min())} among targets or predictions; expected 0 or more")
        counts = torch.bincount(pairs[0] * size + pairs[1], minlength=size * size).reshape(size, size)
        before = self._sums.get("counts", torch.zeros(0, 0))
        more = max(size, len(before))
        wide = torch.zeros(more, more, dtype=torch.float64)
        for part in (before, counts):
            wide[: len(part), : len(part)] += part
        self._sums["counts"] = wide

    def _share(self, hits: Tensor, targets: Tensor, predictions: Tensor) -> Tensor:
        """Return the figure of each class."""
        raise NotImplementedError

    def per_class(self) -> dict[int, float]:
        """Return the figure of each class that occurs among targets or predictions."""
        counts = self._sum("counts")
        hits, targets, predictions = counts.diagonal(), counts.sum(1), counts.sum(0)
        shares = self._share(hits, targets, predictions)
        return {label: float(shares[label]) for label in (targets + predictions).nonzero().flatten().tolist()}


class MeanIoU(_Confusion):
    """Mean over the classes that occur of |target ∩ prediction| / |target ∪ prediction|, counted over all samples.

    Source: Everingham et al. 2010, "The PASCAL Visual Object Classes (VOC) challenge".
    """

    name = "mean IoU"

    def _share(self, hits: Tensor, targets: Tensor, predictions: Tensor) -> Tensor:
        return hits / (targets + predictions - hits)


class MacroF1(_Confusion):
    """Mean over the classes that occur of 2 · hits / (targets + predictions)."""

    name = "macro F1"

    def _share(self, hits: Tensor, targets: Tensor, predictions: Tensor) -> Tensor:
        return 2 * hits / (targets + predictions)


class ValidAccuracy(_Confusion):
    """Share of the positions, but those that are ignored, whose class is right."""

    name = "accuracy"

    def _share(self, hits: Tensor, targets: Tensor, predictions: Tensor) -> Tensor:  # noqa: ARG002
        return hits / targets.clamp(min=1)

    def compute(self) -> float:
        """Return it."""
        counts = self._sum("counts")
        return float(counts.diagonal().sum() / counts.sum())


class MultiLabelF1(_PerClass):
    """Mean over labels of 2 · hits / (targets + predictions): 0 for a label that neither has.

    Predictions are logits [N, C] (a label is predicted above 0) or booleans, targets 0 or 1, [N, C].
    """

    name = "macro F1"

    def update(self, predictions: Tensor, targets: Tensor) -> None:
        """Add a batch."""
        found, wanted = predictions > 0, targets > 0.5
        self._add(hits=(found & wanted).sum(0), found=found.sum(0), wanted=wanted.sum(0))

    def per_class(self) -> dict[int, float]:
        """Return the figure of each label."""
        either = self._sum("found") + self._sum("wanted")
        return dict(enumerate((2 * self._sum("hits") / either.clamp(min=1)).tolist()))


class RootMeanSquaredError(_Sums):
    """√(Σ (prediction − target)² / count), over all values of all samples."""

    name, higher_is_better, is_share = "RMSE", False, False

    def update(self, predictions: Tensor, targets: Tensor) -> None:
        """Add a batch."""
        predictions, targets = of_one_shape(predictions, targets)
        differences = predictions.double() - targets.double()
        self._add(squares=differences.square().sum(), count=torch.tensor(differences.numel()))

    def mean_square(self) -> float:
        """Return the mean square of the differences."""
        return float(self._sum("squares") / self._sum("count"))

    def compute(self) -> float:
        """Return it."""
        return math.sqrt(self.mean_square())


class MeanAbsoluteError(_Sums):
    """Mean over the samples of the mean of |prediction − target|; it holds that of each, 8 bytes a sample."""

    name, higher_is_better, is_share = "mean absolute error", False, False

    def reset(self) -> None:
        """Forget all batches."""
        self.values = torch.empty(0, dtype=torch.float64)

    def update(self, predictions: Tensor, targets: Tensor) -> None:
        """Add a batch."""
        predictions, targets = of_one_shape(predictions, targets)
        each = (predictions.double() - targets.double()).abs().reshape(len(targets), -1).mean(1)
        self.values = torch.cat([self.values, each.cpu()])

    def compute(self) -> float:
        """Return it."""
        return float(self.values.mean())


class PeakSignalToNoiseRatio(RootMeanSquaredError):  # noqa: N818 - no exception: the error is measured
    """10 · log₁₀(range² / mean square), in decibels, the mean being over all values of all samples.

    Not the mean of each image's: that is infinite as soon as one of them is perfect.
    """

    name, higher_is_better, is_share = "PSNR", True, False

    def __init__(self, data_range: float = 1.0) -> None:
        """Take the difference between the largest and the smallest value that an image can have."""
        self._range = data_range
        super().__init__()

    def compute(self) -> float:
        """Return it."""
        return 10 * math.log10(self._range**2 / max(self.mean_square(), 1e-20))


class CoefficientOfDetermination(_Sums):
    """R²: 1 − Σ (prediction − target)² / Σ (target − mean target)²; the mean of it over several outputs."""

    name, is_share = "R²", False

    def update(self, predictions: Tensor, targets: Tensor) -> None:
        """Add a batch."""
        pair = of_one_shape(predictions, targets)
        found, wanted = (one.double().reshape(len(one), -1) for one in pair)
        count = torch.tensor(len(wanted))
        self._add(
            left=(found - wanted).square().sum(0), squares=wanted.square().sum(0), sums=wanted.sum(0), count=count
        )

    def compute(self) -> float:
        """Return it."""
        around = self._sum("squares") - self._sum("sums").square() / self._sum("count")
        return float((1 - self._sum("left") / around.clamp(min=1e-20)).mean())


class Perplexity(_Sums):
    """exp(Σ cross entropy / number of tokens), over all tokens that are not ignored.

    Predictions are logits [N, C, ...], targets class indices [N, ...].
    """

    name, higher_is_better, is_share = "perplexity", False, False

    def __init__(self, ignore_index: int = IGNORED) -> None:
        self._ignored = ignore_index
        super().__init__()

    def update(self, predictions: Tensor, targets: Tensor) -> None:
        """Add a batch."""
        each = nn.functional.cross_entropy(predictions, targets, ignore_index=self._ignored, reduction="none")
        self._add(total=each.double().sum(), count=(targets != self._ignored).sum())

    def compute(self) -> float:
        """Return it."""
        count = self._sum("count")
        return math.exp(min(float(self._sum("total") / count), 700.0)) if count else math.nan
