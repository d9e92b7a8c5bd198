"""Embeddings: no labels, the baseline's own outputs are what a smaller model has to give."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from pruning.containers import main_output
from pruning.errors import DataError, ModelError
from pruning.evaluation import check_finite
from pruning.metrics import StatefulMetric, described, of_one_shape
from pruning.task import Task


class Embedding(Task):
    """Outputs [N, D] or [N, T, D], the baseline's for targets: 1 − cosine similarity along the last axis, its mean."""

    targets = "embeddings of the outputs' shape, floating point; without labels, the baseline's"

    def unpack(self, batch: Any) -> tuple[Any, Any]:
        """Divide what the data set gives as other tasks do; a mapping, or a list of one, may be inputs alone."""
        if isinstance(batch, list | tuple) and len(batch) == 1:
            return batch[0], None
        if isinstance(batch, Mapping) and not {"labels", "label", "targets", "target"} & batch.keys():
            return dict(batch), None
        return super().unpack(batch)

    def loss(self, outputs: Any, targets: Any) -> Any:
        """Return the sum of 1 − cosine similarity, and the number of embeddings."""
        found = _similarities(main_output(outputs), targets)
        return (1 - found).sum(), found.numel()

    def metric(self) -> StatefulMetric:
        """Return the mean cosine similarity."""
        return CosineSimilarity()

    def distillation(self, outputs: Any, teacher_outputs: Any, temperature: float) -> Tensor:  # noqa: ARG002
        """Return 1 − the mean cosine similarity to the teacher's; the temperature means nothing here."""
        return 1 - _similarities(main_output(outputs), main_output(teacher_outputs)).mean()

    def check_targets(self, targets: Any, classes: Sequence[str]) -> None:  # noqa: ARG002
        """See that they are floating point and finite."""
        if not targets.is_floating_point() or targets.ndim < 2:
            raise DataError(f"targets are {described(targets)}; expected {self.targets}: leave labels out")
        check_finite(targets)

    def check_outputs(self, outputs: Tensor, targets: Any, classes: Sequence[str]) -> None:  # noqa: ARG002
        """See that they are embeddings of the targets' shape."""
        if outputs.ndim < 2 or outputs.shape != targets.shape:
            raise ModelError(
                f"of shape {list(outputs.shape)} for targets {list(targets.shape)}; expected embeddings [N, D] of one "
                "shape"
            )


class CosineSimilarity:
    """Mean over all embeddings of a · b / (|a| |b|), in float64."""

    name, higher_is_better, is_share = "cosine similarity", True, False

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget all batches."""
        self._total, self._count = 0.0, 0
        self._each = list[Tensor]()

    def update(self, predictions: Tensor, targets: Tensor) -> None:
        """Add a batch of [N, …, D]."""
        found = _similarities(predictions.double(), targets.double())
        self._total, self._count = self._total + found.sum().item(), self._count + found.numel()
        self._each.append(found.cpu())

    @property
    def values(self) -> Tensor | None:
        """That of each sample, [N]; None where a sample has several embeddings."""
        return torch.cat(self._each) if self._each and all(one.ndim == 1 for one in self._each) else None

    def compute(self) -> float:
        """Return it."""
        if not self._count:
            raise ModelError("the metric CosineSimilarity has seen no batch")
        return self._total / self._count


def _similarities(outputs: Tensor, targets: Tensor) -> Tensor:
    outputs, targets = of_one_shape(outputs, targets)
    return functional.cosine_similarity(outputs, targets.to(outputs.dtype), dim=-1)
