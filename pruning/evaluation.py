"""Measure a model on samples: score and loss, in evaluation mode, changing nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from pruning.batches import Batch, Batches, Samples, checked_batches
from pruning.containers import Inputs, as_call, count_samples, take, with_tensors
from pruning.errors import DataError, ModelError, NotFiniteError, pass_on
from pruning.metrics import Metric, StatefulMetric, described, score_of
from pruning.scoring import MeanOf, PartialMetric
from pruning.world import ALONE, World

Loss = Callable[[Any, Any], Any]
"""(outputs, targets) -> scalar: the mean over the samples; or (sum, number of what was summed over), such as the tokens
that count, so that the mean over many batches is exact. A `pruning.task.Task` is one.
"""

NORMAL_95 = 1.96
"""Standard deviations of a normal distribution between its mean and either end of the middle 95 %."""

Forward = Callable[[nn.Module, int, Inputs], Any]
"""(model, number of the batch, its inputs) -> outputs: how a model is run on a batch of the samples."""

Progress = Callable[[int, int], None]
"""(done, total): called after each batch with the number of batches done and the number in all."""


class TensorSamples(Protocol):
    """Samples for models of one input."""

    @property
    def inputs(self) -> Tensor:
        """What the model is given, [N, ...]."""

    @property
    def targets(self) -> Tensor:
        """What the loss and the metric compare with, [N, ...]."""


@dataclass(frozen=True)
class Evaluation:
    """What a model scored.

    Attributes:
        score: the metric over all samples; for the built-in one the accuracy, in [0, 1].
        loss: mean of the loss over the samples, or over what it counts.
        num_samples: how many samples were seen.
        losses: what each sample adds to the loss, [N] float64, where it was asked for; their mean is the loss.
        values: the metric of each sample, [N] float64 on the CPU; None where the score is no mean of such values.
        per_class: the metric of each class by its number, where it has one by itself.
    """

    score: float
    loss: float
    num_samples: int
    losses: Tensor | None = field(default=None, compare=False, repr=False)
    values: Tensor | None = field(default=None, compare=False, repr=False)
    per_class: Mapping[int, float] = field(default_factory=dict, compare=False, repr=False)


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the mean cross entropy of logits [N, classes, ...] against class indices [N, ...]."""
    return nn.functional.cross_entropy(outputs, targets)


def distillation_loss(outputs: Tensor, teacher_outputs: Tensor, temperature: float) -> Tensor:
    """Return T² · KL(softmax(teacher/T) ‖ softmax(student/T)), the mean over samples (and positions, if any).

    The factor T² keeps the gradient's size independent of T.

    Source: Hinton, Vinyals & Dean 2015, arXiv 1503.02531.

    Args:
        outputs: the student's logits, [N, classes, ...].
        teacher_outputs: the teacher's, of the same shape.
        temperature: T, above 0.

    Raises:
        ModelError: the two differ in shape.
    """
    check_same_shape(outputs, teacher_outputs)
    student = torch.log_softmax(outputs / temperature, dim=1)
    teacher = torch.log_softmax(teacher_outputs / temperature, dim=1)
    divergence = (teacher.exp() * (teacher - student)).sum(dim=1)
    return divergence.mean() * temperature**2


def check_same_shape(outputs: Tensor, teacher_outputs: Tensor) -> None:
    """See that a student's outputs can be compared with its teacher's.

    Raises:
        ModelError: The two differ in shape.
    """
    if outputs.shape != teacher_outputs.shape:
        raise ModelError(
            f"the student's outputs are {tuple(outputs.shape)}, the teacher's {tuple(teacher_outputs.shape)}; "
            "distillation needs both of one shape: set distillation to 0 or bring another teacher"
        )


def check_finite(targets: Tensor) -> None:
    """See that targets hold numbers alone.

    Args:
        targets: Floating point, [N, ...].

    Raises:
        NotFiniteError: They don't.
    """
    broken = (~targets.isfinite()).reshape(len(targets), -1).any(1)
    if bool(broken.any()):
        raise NotFiniteError(
            f"targets of {int(broken.sum())} of {len(targets)} samples hold values that are not finite, the first of "
            f"them number {int(broken.int().argmax())}, counted from 0; clean the data"
        )


def top1(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return 1.0 for each sample whose largest logit is its target's, else 0.0.

    Logits are [N, classes, ...]; where there are positions beside the classes, the mean over them is taken.
    """
    hits = (outputs.argmax(dim=1) == targets).to(torch.float32)
    return hits if hits.ndim == 1 else hits.flatten(1).mean(dim=1)


def mean_loss(loss: Loss, outputs: Any, targets: Any) -> Tensor:
    """Return the loss of a batch as a mean, and hold it to its contract.

    Raises:
        ModelError: it isn't one number that gradients can flow through.
    """
    total, count = _pair(loss(outputs, targets), targets)
    return total if count is None else total / count.clamp(min=1)


def mean_and_count(loss: Loss, outputs: Any, targets: Any) -> tuple[Tensor, float | None]:
    """Return the loss of a batch as a mean, and how many it is the mean of where the loss says so itself.

    Raises:
        ModelError: it isn't one number that gradients can flow through.
    """
    total, count = _pair(_counted(loss)(outputs, targets), targets)
    return (total, None) if count is None else (total / count.clamp(min=1), float(count))


def _pair(value: Any, targets: Any) -> tuple[Tensor, Tensor | None]:
    """Return what a loss gave: a mean and None, or a sum and the number of what was summed over."""
    if isinstance(value, tuple) and len(value) == 2:
        total, count = value[0], torch.as_tensor(value[1])
        if isinstance(total, Tensor) and not total.ndim and total.is_floating_point() and not count.ndim:
            return total, count
    if not isinstance(value, Tensor) or value.ndim or not value.is_floating_point():
        samples = f" for {len(targets)} samples" if isinstance(targets, Tensor) else ""
        raise ModelError(
            f"the loss gave {described(value)}{samples}; expected a tensor [] of floating point: the "
            "mean over the samples, as losses with reduction='mean' give it, or a pair (sum, number of what was summed)"
        )
    return value, None


def _counted(loss: Loss) -> Loss:
    """Return what gives (sum, count) where the loss can: a task's own loss; called as a loss, a task gives the mean."""
    own: Loss = getattr(loss, "sum_and_count", loss)
    return own


def losses_of_each(loss: Loss, outputs: Any, targets: Any) -> Tensor:
    """Return the loss of each sample by itself, [N]: in one call where that works, to the bits of one for each."""
    sums, counts = sums_of_each(loss, outputs, targets)
    return sums / counts.clamp(min=1)


def sums_of_each(loss: Loss, outputs: Any, targets: Any) -> tuple[Tensor, Tensor]:
    """Return each sample's sum and number of what was summed over, [N] both; a mean counts as one."""
    if (at_once := getattr(loss, "sums_of_each", None)) is not None:
        found: tuple[Tensor, Tensor] = at_once(outputs, targets)
        return found
    own = _counted(loss)

    def of_one(one: Any, target: Any) -> tuple[Tensor, Tensor]:
        total, count = _pair(own(one, target), target)
        return total, torch.ones((), device=total.device) if count is None else count.to(total.device)

    try:
        first, second = (tree_map(lambda tensor: tensor.unsqueeze(1), part) for part in (outputs, targets))
        found = torch.vmap(of_one)(first, second)
    except Exception as fault:  # noqa: BLE001 - a loss that looks at values or draws random numbers isn't vectorised
        pass_on(fault)
        here = [slice(i, i + 1) for i in range(count_samples(targets))]
        pairs = [of_one(take(outputs, one), take(targets, one)) for one in here]
        found = torch.stack([total for total, _ in pairs]), torch.stack([count for _, count in pairs])
    return found


def interval_of_mean(values: Tensor) -> tuple[float, float]:
    """Return the lower and upper end of the 95 % interval of a mean: mean ± 1.96 s/√N.

    Args:
        values: one for each sample, [N]; for two models, the differences sample by sample.
    """
    mean = float(values.double().mean())
    half = NORMAL_95 * float(values.double().std(correction=0)) / math.sqrt(len(values))
    return mean - half, mean + half


def device_of(model: nn.Module) -> torch.device:
    """Return the device of the model's first parameter or buffer; the CPU if it has none."""
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")


@contextmanager
def restored_modes(model: nn.Module) -> Iterator[None]:
    """Give every module of the model its training flag back on leaving."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def whole_pass(model: nn.Module, _batch: int, inputs: Inputs) -> Any:
    """Run all of a model."""
    args, kwargs = as_call(inputs)
    return model(*args, **kwargs)


@torch.no_grad()
def evaluate(
    model: nn.Module,
    samples: Samples | Batches,
    *,
    loss: Loss = cross_entropy,
    metric: Metric | StatefulMetric = top1,
    batch_size: int = 256,
    each: bool = False,
    forward: Forward = whole_pass,
    progress: Progress | None = None,
) -> Evaluation:
    """Evaluate a model on all samples, in their order.

    Args:
        model: run in evaluation mode on its own device; its modes are restored.
        samples: read and moved to the model's device batch by batch.
        loss: of a batch; (sum, count) of one is added up exactly, however many count in each batch.
        metric: one value per sample, or an object with update(outputs, targets), compute and reset, which holds what it
            needs of the batches: outputs are never collected.
        batch_size: samples per forward pass.
        each: whether to give the loss of each sample by itself too.
        forward: runs the model on a batch.
        progress: told after each batch.

    Raises:
        DataError: no samples, inputs and targets differ in number, or one can't be read.
        ModelError: the loss is not one finite number, or the metric doesn't give one value per sample.
    """
    return _evaluate(model, samples, loss, metric, batch_size, each, forward, progress, ALONE)


@torch.no_grad()
def evaluate_together(
    world: World,
    model: nn.Module,
    samples: Samples | Batches,
    *,
    loss: Loss = cross_entropy,
    metric: Metric | StatefulMetric = top1,
    batch_size: int = 256,
    each: bool = False,
) -> Evaluation:
    """Evaluate a model as `evaluate` does, by several processes that all call this with the same, and get the same.

    They take turns at batches, and add up what all have found, in the order of the batches: the bits of one process.

    Args:
        world: the processes.
        model: as for `evaluate`, like the loss.
        samples: of which each process reads its own.
        loss: of a batch.
        metric: any; what it is given of another process's batch lies on the CPU.
        batch_size: samples per forward pass.
        each: whether to give the loss of each sample by itself too.
    """
    return _evaluate(model, samples, loss, metric, batch_size, each, whole_pass, None, world)


def _evaluate(
    model: nn.Module,
    samples: Samples | Batches,
    loss: Loss,
    metric: Metric | StatefulMetric,
    batch_size: int,
    each: bool,
    forward: Forward,
    progress: Progress | None,
    world: World,
) -> Evaluation:
    batches, device = checked_batches(samples), device_of(model)
    num_samples, total_loss, total_count = 0, 0.0, 0.0
    sums, counts = list[Tensor](), list[Tensor]()
    scored = metric if isinstance(metric, StatefulMetric) else MeanOf(metric)
    scored.reset()
    own = _counted(loss)

    def look(index: int, batch: Batch) -> _Seen:
        inputs, targets, size = batch.to(device)
        outputs = forward(model, index, inputs)
        total, count = _pair(own(outputs, targets), targets)
        of_each = tuple(one.to("cpu", torch.float64) for one in sums_of_each(loss, outputs, targets)) if each else ()
        given = outputs, targets
        if world.ranks > 1:
            given = (scored.part(*given), None) if isinstance(scored, PartialMetric) else given
            outputs, targets = (with_tensors(one, lambda tensor: tensor.cpu()) for one in given)
        return _Seen(size, total.item(), None if count is None else count.item(), of_each, outputs, targets)

    with restored_modes(model):
        model.eval()
        slices = [slice(start, start + batch_size) for start in range(0, len(batches), batch_size)]
        for index, seen in enumerate(world.take_turns(slices, batches.read, look)):
            if isinstance(scored, PartialMetric) and world.ranks > 1:
                scored.add(seen.outputs)
            else:
                scored.update(seen.outputs, seen.targets)
            num_samples += seen.size
            total_loss += seen.total * (seen.size if seen.count is None else 1)
            total_count += seen.size if seen.count is None else seen.count
            for kept, one in zip((sums, counts), seen.of_each, strict=False):
                kept.append(one)
            if progress is not None:
                progress(index + 1, len(slices))
    if num_samples != len(batches):
        raise DataError(f"{num_samples} samples were read of {len(batches)}; every one has to be seen once")
    average = total_loss / max(1.0, total_count)
    if not math.isfinite(average):
        raise ModelError(
            f"evaluation gave loss {average} over {num_samples} samples; expected a finite number: "
            "look for inf or nan in the inputs and the weights"
        )
    return Evaluation(
        score=score_of(scored, getattr(scored, "key", None)),
        loss=average,
        num_samples=num_samples,
        losses=torch.cat(sums) * (num_samples / float(torch.cat(counts).sum().clamp(min=1))) if each else None,
        values=getattr(scored, "values", None),
        per_class=scored.per_class() if hasattr(scored, "per_class") else {},
    )


@dataclass(frozen=True)
class _Seen:
    """What was found of a batch; of another process's, tensors on the CPU.

    Attributes:
        size: Number of its samples.
        total: Its loss: a mean, or the sum of `count`.
        count: Of what was summed.
        of_each: Each sample's sum and count, if asked for.
        outputs: Of the model; or what a `PartialMetric` adds.
        targets: Of the batch.
    """

    size: int
    total: float
    count: float | None
    of_each: tuple[Tensor, ...]
    outputs: Any
    targets: Any
