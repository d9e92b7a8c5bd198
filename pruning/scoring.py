"""From a metric to a score: the value of each sample where it is a mean of these, and what it is of each class."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from pruning.errors import ModelError
from pruning.metrics import Measure, Metric, StatefulMetric, described, measure_of


def values_of_each(metric: Metric, outputs: Any, targets: Any) -> Tensor:
    """Return the metric of each sample, [N], and hold it to its contract.

    Raises:
        ModelError: it isn't one value per sample.
    """
    values: Any = metric(outputs, targets)
    if not isinstance(values, Tensor) or values.shape != (len(targets),):
        raise ModelError(
            f"the metric gave {described(values)} for {len(targets)} samples; expected a tensor [{len(targets)}]: one "
            "value per sample"
        )
    return values


@runtime_checkable
class PartialMetric(StatefulMetric, Protocol):
    """A metric whose work on a batch can be done in one process, and added in another: `update` is both."""

    def part(self, predictions: Any, targets: Any) -> Any:
        """Return what a batch adds, changing nothing."""

    def add(self, part: Any) -> None:
        """Add it."""


class MeanOf:
    """The mean of a function that gives one value for each sample; its values are kept, 8 bytes a sample."""

    higher_is_better = True

    def __init__(self, of_each: Callable[[Any, Any], Tensor]) -> None:
        """Take the function: (outputs, targets) -> [N]."""
        self.of_each = of_each
        self.reset()

    def reset(self) -> None:
        """Forget all samples."""
        self._total, self._values = 0.0, list[Tensor]()

    def update(self, predictions: Any, targets: Any) -> None:
        """Add a batch."""
        self.add(self.part(predictions, targets))

    def part(self, predictions: Any, targets: Any) -> tuple[float, Tensor]:
        """Return what a batch adds: the sum, and the value of each sample on the CPU."""
        values = values_of_each(self.of_each, predictions, targets).to(torch.float64)
        return values.sum().item(), values.cpu()

    def add(self, part: tuple[float, Tensor]) -> None:
        """Add what `part` gave."""
        self._total += part[0]
        self._values.append(part[1])

    def compute(self) -> float:
        """Return the mean."""
        return self._total / max(1, sum(map(len, self._values)))

    @property
    def values(self) -> Tensor:
        """The value of each sample, [N] float64."""
        return torch.cat(self._values) if self._values else torch.empty(0, dtype=torch.float64)


class Scorer:
    """A metric of what a task predicts, for `evaluate`."""

    def __init__(
        self,
        metric: Metric | StatefulMetric,
        predict: Callable[[Any], Any],
        key: str | None = None,
        wanted: Callable[[Any], Any] | None = None,
    ) -> None:
        """Take a metric, what is predicted of outputs, which of several figures counts, and how it takes targets.

        A function of one value per sample is given the outputs as the model returns them; an object what is predicted.
        """
        is_object = isinstance(metric, StatefulMetric)
        self._predict = predict if is_object else lambda outputs: outputs
        self.inner: StatefulMetric = metric if isinstance(metric, StatefulMetric) else MeanOf(metric)
        self.key = key or getattr(metric, "key", None)
        self._wanted = wanted
        self._forget()

    def _forget(self) -> None:
        self._labels = list[Tensor]() if isinstance(self.inner, MeanOf) else None

    def update(self, outputs: Any, targets: Any) -> None:
        """Add a batch."""
        self.add(self.part(outputs, targets))

    def part(self, outputs: Any, targets: Any) -> tuple[Tensor | None, Any]:
        """Return what a batch adds: the samples' classes where there are any, and what the metric takes."""
        is_class = isinstance(targets, Tensor) and targets.ndim == 1 and targets.dtype == torch.int64
        taken = self._predict(outputs), targets if self._wanted is None else self._wanted(targets)
        found = self.inner.part(*taken) if isinstance(self.inner, PartialMetric) else taken
        return (targets.cpu() if is_class else None), found

    def add(self, part: tuple[Tensor | None, Any]) -> None:
        """Add what `part` gave."""
        labels, found = part
        if self._labels is not None:
            self._labels = None if labels is None else [*self._labels, labels]
        if isinstance(self.inner, PartialMetric):
            self.inner.add(found)
        else:
            self.inner.update(*found)

    def compute(self) -> Any:
        """Return the figure of all batches."""
        return self.inner.compute()

    def reset(self) -> None:
        """Forget all batches."""
        self.inner.reset()
        self._forget()

    def measure(self, reference: str) -> Measure:
        """Return how the figure is to be read; see `measure_of`."""
        inner = self.inner.of_each if isinstance(self.inner, MeanOf) else self.inner
        if isinstance(inner, nn.ModuleDict) and self.key is not None and self.key in inner:  # torchmetrics' collection
            inner = inner[self.key]
            return measure_of(inner, reference)
        found, names = measure_of(inner, reference), getattr(inner, "names", {})
        if isinstance(names, Mapping) and self.key in names:
            return replace(found, name=names[self.key])
        if self.key is None or self.key.lower() == found.name.lower():
            return found
        return replace(found, name=f"{found.name} {self.key}".replace("_", " "))  # another figure, another name

    @property
    def values(self) -> Tensor | None:
        """The value of each sample, [N]; None where the figure is no mean of such values."""
        found = getattr(self.inner, "values", None)
        return found if isinstance(found, Tensor) and found.ndim == 1 else None

    def per_class(self) -> dict[int, float]:
        """Return the figure of each class by its number: empty where it has none by itself."""
        own = getattr(self.inner, "per_class", None)
        if own is not None:
            return dict(own(self.key) if hasattr(self.inner, "names") else own())
        if self.values is None or self._labels is None:
            return {}
        labels = torch.cat(self._labels)
        return {label: float(self.values[labels == label].mean()) for label in torch.unique(labels).tolist()}
