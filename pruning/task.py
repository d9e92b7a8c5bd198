"""What a model is for: how a batch is taken apart, what is minimised, what is measured, what stands for the labels.

    batch ──unpack──► inputs ──model──► outputs ──loss──► mean, or (sum, count)
                      targets ──────────────────predict──► metric: update … update, compute

A task of one's own is a subclass with `loss` and `metric`, the rest where its default doesn't fit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from pruning.containers import Inputs, main_output
from pruning.errors import DataError, ModelError
from pruning.evaluation import Loss, check_finite, check_same_shape, cross_entropy, distillation_loss, mean_loss, top1
from pruning.metrics import (
    IGNORED,
    MacroF1,
    MeanIoU,
    MultiLabelF1,
    PeakSignalToNoiseRatio,
    Perplexity,
    RootMeanSquaredError,
    StatefulMetric,
    described,
    of_one_shape,
)
from pruning.scoring import MeanOf


class Task:
    """The contract, and what most tasks have in common."""

    targets: ClassVar[str] = "targets as the loss takes them"
    """What a target is, for messages."""
    by_class: ClassVar[bool] = False
    """Whether axis 1 of the outputs holds classes, of which the largest is chosen."""
    mean_over_samples: ClassVar[bool] = False
    """Whether the score is a mean of one value per sample."""
    collate: Callable[[list[Any]], Any] | None = None
    """Joins samples to a batch where the data set brings nothing for it; None: as torch does."""

    def unpack(self, batch: Any) -> tuple[Inputs, Any]:
        """Divide what the data set gives into what the model is given, and the targets.

        A pair is (inputs, targets), a tensor inputs without targets. Of a mapping, `labels`, `label`, `targets` or
        `target` is the target and everything else an input by name.

        Raises:
            DataError: It is something else.
        """
        if isinstance(batch, Mapping):
            named = [name for name in ("labels", "label", "targets", "target") if name in batch]
            if len(named) != 1:
                raise DataError(
                    f"a sample has the keys {', '.join(map(str, batch))}; expected exactly one of labels, label, "
                    "targets, target beside the inputs, or a task with an `unpack` of its own"
                )
            return {name: value for name, value in batch.items() if name != named[0]}, batch[named[0]]
        if isinstance(batch, Sequence) and not isinstance(batch, str | bytes) and len(batch) == 2:
            return batch[0], batch[1]
        if isinstance(batch, Tensor):
            return batch, None
        what = f"{len(batch)} values" if isinstance(batch, tuple | list) else described(batch)
        raise DataError(
            f"a sample is {what}; expected (inputs, targets), a mapping with labels, or a task with its own `unpack`"
        )

    def loss(self, outputs: Any, targets: Any) -> Any:
        """Return the mean over the samples, [] floating point; or the pair (sum, number of what was summed over)."""
        raise NotImplementedError

    def predict(self, outputs: Any) -> Any:
        """Return what the metric compares with the targets."""
        return main_output(outputs)

    def metric(self) -> StatefulMetric:
        """Return a new metric: update(predictions, targets), compute(), reset(), higher_is_better."""
        raise NotImplementedError

    def wanted(self, targets: Any) -> Any:
        """Return targets as the metric takes them, beside what `predict` gives."""
        return targets

    def join(self, targets: Sequence[Tensor]) -> Tensor:
        """Return the targets of several batches as those of one."""
        return torch.cat(list(targets))

    def adapt(self, model: nn.Module) -> nn.Module:
        """Let a model that was just built return what this task reads; parameters keep their names."""
        return model

    def answers(self, outputs: Any) -> Tensor:
        """Return what stands for the targets where there are none: what the baseline answers."""
        return main_output(outputs)

    def distillation(self, outputs: Any, teacher_outputs: Any, temperature: float) -> Tensor:
        """Return how far the outputs are from the teacher's: the mean squared difference."""
        student, teacher = _pair(outputs, teacher_outputs)
        return functional.mse_loss(student, teacher)

    def smoothed(self, amount: float) -> Loss | None:
        """Return the loss with a share of each target spread over all classes; None if it knows no such thing."""
        return None

    def check_targets(self, targets: Any, classes: Sequence[str]) -> None:
        """See that targets are those of this task.

        Raises:
            DataError: They aren't.
        """

    def check_outputs(self, outputs: Tensor, targets: Any, classes: Sequence[str]) -> None:
        """See that a model's outputs are those of this task.

        Raises:
            ModelError: They aren't.
        """

    def with_loss(self, loss: Loss) -> Task:
        """Return the same task with another loss, of which no smoothed targets are known."""
        other = copy(self)
        vars(other).update(loss=loss, smoothed=lambda _amount: None)
        return other

    def sum_and_count(self, outputs: Any, targets: Any) -> Any:
        """Return the loss as `loss` gives it, for what adds up batches."""
        return self.loss(outputs, targets)

    def __call__(self, outputs: Any, targets: Any) -> Tensor:
        """Return the loss as a mean: a task is a loss."""
        return mean_loss(self.sum_and_count, outputs, targets)


def _pair(outputs: Any, others: Any) -> tuple[Tensor, Tensor]:
    student, teacher = main_output(outputs), main_output(others)
    check_same_shape(student, teacher)
    return student, teacher


class Classification(Task):
    """Logits [N, C], the index of a class for each sample: cross entropy, accuracy, softened KL divergence."""

    targets = "the index of each sample's class, [N] of int64"
    by_class = mean_over_samples = True

    def loss(self, outputs: Any, targets: Any) -> Any:
        """Return the mean cross entropy."""
        return cross_entropy(main_output(outputs), targets)

    def metric(self) -> StatefulMetric:
        """Return the accuracy."""
        return MeanOf(top1)

    def answers(self, outputs: Any) -> Tensor:
        """Return the class that is chosen."""
        found = main_output(outputs)
        if found.ndim != 2:
            raise DataError(
                "without labels the baseline's answers take their place, so the model has to return logits "
                "[N, classes]; for other outputs the data need labels"
            )
        return found.argmax(1)

    def distillation(self, outputs: Any, teacher_outputs: Any, temperature: float) -> Tensor:
        """Return T² · KL(teacher ‖ student)."""
        return distillation_loss(main_output(outputs), main_output(teacher_outputs), temperature)

    def smoothed(self, amount: float) -> Loss | None:
        """Return the cross entropy of smoothed targets."""
        return lambda outputs, targets: functional.cross_entropy(main_output(outputs), targets, label_smoothing=amount)

    def check_targets(self, targets: Any, classes: Sequence[str]) -> None:
        """See that they are indices of the classes."""
        _check(targets, self.targets, targets.ndim == 1 and targets.dtype == torch.int64)
        _check_range(targets, len(classes))

    def check_outputs(self, outputs: Tensor, targets: Any, classes: Sequence[str]) -> None:
        """See that they are logits of the classes."""
        if outputs.ndim != 2 or outputs.shape[1] < len(classes):
            raise ModelError(
                f"of shape {list(outputs.shape)}, but the data have {len(classes)} classes and the built-in "
                f"loss and metric take logits [N, {len(classes)}]; mend model.kwargs, or name a loss and a metric "
                "of your own"
            )


class _AtPositions(Classification):
    """Logits [N, C, ...], a class at each position; those at `ignore_index` count for nothing."""

    mean_over_samples = False

    def __init__(self, ignore_index: int = IGNORED) -> None:
        """Take the target that counts for nothing."""
        self.ignore_index = ignore_index

    def logits(self, outputs: Any) -> Tensor:
        """Return the logits with the classes on axis 1."""
        return main_output(outputs)

    def aligned(self, outputs: Any, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits [N, C, ...] and the targets of their positions, [N, ...]."""
        return self.logits(outputs), targets

    def loss(self, outputs: Any, targets: Any) -> Any:
        """Return the sum of the cross entropies, and the number of positions that count."""
        return self._loss(0.0, outputs, targets)

    def smoothed(self, amount: float) -> Loss | None:
        """Return the same with smoothed targets."""
        return partial(self._loss, amount)

    def _loss(self, smoothing: float, outputs: Any, targets: Any) -> tuple[Tensor, Tensor]:
        logits, wanted = self.aligned(outputs, targets)
        total = functional.cross_entropy(
            logits, wanted, ignore_index=self.ignore_index, reduction="sum", label_smoothing=smoothing
        )
        return total, (wanted != self.ignore_index).sum()

    def predict(self, outputs: Any) -> Any:
        """Return the class at each position."""
        return self.logits(outputs).argmax(1)

    def answers(self, outputs: Any) -> Tensor:
        """Return the class at each position."""
        return self.logits(outputs).argmax(1)

    def distillation(self, outputs: Any, teacher_outputs: Any, temperature: float) -> Tensor:
        """Return T² · KL(teacher ‖ student), the mean over samples and positions."""
        return distillation_loss(self.logits(outputs), self.logits(teacher_outputs), temperature)

    def check_targets(self, targets: Any, classes: Sequence[str]) -> None:
        """See that they are indices of the classes, or ignored."""
        _check(targets, self.targets, targets.ndim >= 2 and targets.dtype == torch.int64)
        _check_range(targets[targets != self.ignore_index], len(classes), f", or {self.ignore_index} (ignore_index)")

    def check_outputs(self, outputs: Tensor, targets: Any, classes: Sequence[str]) -> None:
        """See that they are logits at the targets' positions."""
        logits, wanted = self.aligned(outputs, targets)
        fits = logits.ndim == wanted.ndim + 1 and logits.shape[:1] + logits.shape[2:] == wanted.shape
        if not fits or logits.shape[1] < len(classes):
            raise ModelError(
                f"of shape {list(outputs.shape)} for targets {list(targets.shape)} of {len(classes)} classes; expected "
                "logits of each class at each position of the targets"
            )


class Segmentation(_AtPositions):
    """Logits [N, C, H, W], masks [N, H, W]: cross entropy over the pixels that count, mean IoU."""

    targets = "masks of class indices, [N, H, W] of int64"

    def metric(self) -> StatefulMetric:
        """Return the mean IoU, from one confusion matrix of all samples."""
        return MeanIoU(self.ignore_index)


class TokenClassification(_AtPositions):
    """Logits [N, T, C], a class for each token [N, T]: cross entropy over the tokens that count, macro F1."""

    targets = "the class of each token, [N, T] of int64"

    def logits(self, outputs: Any) -> Tensor:
        """Bring the classes to axis 1."""
        return main_output(outputs).movedim(-1, 1)

    def metric(self) -> StatefulMetric:
        """Return the macro F1 over the classes that occur."""
        return MacroF1(self.ignore_index)


class CausalLM(TokenClassification):
    """Logits [N, T, C], token ids [N, T]: position t predicts token t + 1. Perplexity = exp(Σ loss / Σ tokens)."""

    targets = "token ids, [N, T] of int64"

    def aligned(self, outputs: Any, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Shift the targets by one, unless the logits are those of one position less already."""
        logits = self.logits(outputs)
        return logits[..., :-1], targets[..., 1:]

    def predict(self, outputs: Any) -> Any:
        """Return the logits, which perplexity needs."""
        return self.logits(outputs)

    def metric(self) -> StatefulMetric:
        """Return the perplexity."""
        return _ShiftedPerplexity(self.ignore_index)

    def check_targets(self, targets: Any, classes: Sequence[str]) -> None:
        """See that they are token ids."""
        _check(targets, self.targets, targets.ndim == 2 and targets.dtype == torch.int64)


class _ShiftedPerplexity(Perplexity):
    def update(self, predictions: Tensor, targets: Tensor) -> None:
        super().update(predictions[..., :-1], targets[..., 1:])


class MultiLabel(Task):
    """Logits [N, C], of each class whether it is there, 0 or 1: binary cross entropy, macro F1."""

    targets = "0 or 1 for each class, [N, C]"

    def loss(self, outputs: Any, targets: Any) -> Any:
        """Return the mean over samples and classes."""
        found = main_output(outputs)
        return functional.binary_cross_entropy_with_logits(found, targets.to(found.dtype))

    def metric(self) -> StatefulMetric:
        """Return the macro F1; a class is predicted where its logit is above 0."""
        return MultiLabelF1()

    def answers(self, outputs: Any) -> Tensor:
        """Return which classes are predicted."""
        return (main_output(outputs) > 0).to(torch.float32)

    def distillation(self, outputs: Any, teacher_outputs: Any, temperature: float) -> Tensor:
        """Return T² times the binary cross entropy to the teacher's probabilities, both softened, above its least."""
        student, teacher = _pair(outputs, teacher_outputs)
        soft = (teacher / temperature).sigmoid()
        above = functional.binary_cross_entropy_with_logits(student / temperature, soft)
        return (above - functional.binary_cross_entropy(soft, soft)) * temperature**2

    def check_targets(self, targets: Any, classes: Sequence[str]) -> None:
        """See that they are 0 or 1, one for each class."""
        what = f"0 or 1 for each class, [N, {len(classes) or 'C'}]"
        _check(targets, what, targets.ndim == 2 and (not classes or targets.shape[1] == len(classes)))
        if not bool(((targets == 0) | (targets == 1)).all()):
            raise DataError(f"targets lie in [{targets.min():g}, {targets.max():g}]; expected {what}")

    def check_outputs(self, outputs: Tensor, targets: Any, classes: Sequence[str]) -> None:
        """See that they are one logit for each."""
        of_one_shape(outputs, targets)


class Regression(Task):
    """Outputs and targets of one shape, [N] or [N, ...]: mean squared error, RMSE."""

    targets = "floating-point values, [N] or [N, ...]"

    def loss(self, outputs: Any, targets: Any) -> Any:
        """Return the mean squared error."""
        return functional.mse_loss(*self._aligned(outputs, targets))

    def _aligned(self, outputs: Any, targets: Tensor) -> tuple[Tensor, Tensor]:
        found, wanted = of_one_shape(main_output(outputs), targets)
        return found, wanted.to(found.dtype)

    def metric(self) -> StatefulMetric:
        """Return the RMSE."""
        return RootMeanSquaredError()

    def check_targets(self, targets: Any, classes: Sequence[str]) -> None:
        """See that they are floating point and finite."""
        _check(targets, self.targets, targets.is_floating_point())
        check_finite(targets)

    def check_outputs(self, outputs: Tensor, targets: Any, classes: Sequence[str]) -> None:
        """See that they have the targets' shape."""
        self._aligned(outputs, targets)


class ImageToImage(Regression):
    """Images [N, C, H, W] for images: mean absolute error, PSNR."""

    targets = "images, [N, C, H, W] of floating point"

    def __init__(self, data_range: float = 1.0) -> None:
        """Take the difference between the largest and the smallest value that an image can have."""
        self.data_range = data_range

    def loss(self, outputs: Any, targets: Any) -> Any:
        """Return the mean absolute error."""
        return functional.l1_loss(*self._aligned(outputs, targets))

    def metric(self) -> StatefulMetric:
        """Return the PSNR."""
        return PeakSignalToNoiseRatio(self.data_range)


def _check(targets: Any, expected: str, fits: bool) -> None:
    if not fits:
        raise DataError(f"targets are {described(targets)}; expected {expected}")


def _check_range(targets: Tensor, num_classes: int, also: str = "") -> None:
    if not num_classes:
        raise DataError("the data have no classes; expected their names, in the order of the targets")
    if targets.numel() and (int(targets.min()) < 0 or int(targets.max()) >= num_classes):
        raise DataError(
            f"targets lie in [{int(targets.min())}, {int(targets.max())}], expected [0, {num_classes - 1}]{also}"
        )
