"""Measure a model on samples: accuracy and loss, in evaluation mode, changing nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pruning.containers import Inputs, as_call, count_samples, take
from pruning.errors import DataError, ModelError, pass_on

Loss = Callable[[Tensor, Tensor], Tensor]
"""(outputs, targets) -> scalar: the mean over the samples."""

Metric = Callable[[Tensor, Tensor], Tensor]
"""(outputs, targets) -> [N] float: one value per sample; their mean is called the accuracy."""

NORMAL_95 = 1.96
"""Standard deviations of a normal distribution between its mean and either end of the middle 95 %."""

Forward = Callable[[nn.Module, int, Inputs], Any]
"""(model, number of the batch, its inputs) -> outputs: how a model is run on a batch of the samples."""

Progress = Callable[[int, int], None]
"""(done, total): called after each batch with the number of batches done and the number in all."""


class Samples(Protocol):
    """Inputs and their targets, both with the samples on axis 0."""

    @property
    def inputs(self) -> Inputs:
        """What the model is given: a tensor [N, ...], or a tuple or dict of several."""

    @property
    def targets(self) -> Tensor:
        """What the loss and the metric compare with, [N, ...]."""


class TensorSamples(Samples, Protocol):
    """Samples for models of one input."""

    @property
    def inputs(self) -> Tensor:
        """What the model is given, [N, ...]."""


@dataclass(frozen=True)
class Evaluation:
    """What a model scored.

    Attributes:
        accuracy: mean of the metric over the samples, a fraction in [0, 1] for the built-in metric.
        loss: mean of the loss over the samples.
        num_samples: how many samples were seen.
        losses: the loss of each sample by itself, [N] float64, where it was asked for.
        values: the metric of each sample, [N] float64 on the CPU; their mean is the accuracy.
    """

    accuracy: float
    loss: float
    num_samples: int
    losses: Tensor | None = field(default=None, compare=False, repr=False)
    values: Tensor = field(default_factory=lambda: torch.empty(0), compare=False, repr=False)


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the mean cross entropy of logits [N, classes, ...] against class indices [N, ...]."""
    return nn.functional.cross_entropy(outputs, targets)


def top1(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return 1.0 for each sample whose largest logit is its target's, else 0.0.

    Logits are [N, classes, ...]; where there are positions beside the classes, the mean over them is taken.
    """
    hits = (outputs.argmax(dim=1) == targets).to(torch.float32)
    return hits if hits.ndim == 1 else hits.flatten(1).mean(dim=1)


def mean_loss(loss: Loss, outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the loss of a batch, and hold it to its contract.

    Raises:
        ModelError: it isn't one number that gradients can flow through.
    """
    value: Any = loss(outputs, targets)
    if not isinstance(value, Tensor) or value.ndim or not value.is_floating_point():
        raise ModelError(
            f"the loss gave {described(value)} for {len(targets)} samples; expected a tensor [] of floating point: the "
            "mean over the samples, as losses with reduction='mean' give it"
        )
    return value


def losses_of_each(loss: Loss, outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the loss of each sample by itself, [N]: in one call where that works, to the bits of one for each."""
    try:
        return torch.vmap(loss)(outputs.unsqueeze(1), targets.unsqueeze(1))
    except Exception as fault:  # noqa: BLE001 - a loss that looks at values or draws random numbers isn't vectorised
        pass_on(fault)
        return torch.stack([mean_loss(loss, outputs[i : i + 1], targets[i : i + 1]) for i in range(len(targets))])


def values_of_each(metric: Metric, outputs: Tensor, targets: Tensor) -> Tensor:
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


def interval_of_mean(values: Tensor) -> tuple[float, float]:
    """Return the lower and upper end of the 95 % interval of a mean: mean ± 1.96 s/√N.

    Args:
        values: one for each sample, [N]; for two models, the differences sample by sample.
    """
    mean = float(values.double().mean())
    half = NORMAL_95 * float(values.double().std(correction=0)) / math.sqrt(len(values))
    return mean - half, mean + half


def described(value: Any) -> str:
    """Say what a value is: the shape and type of a tensor, the class of anything else."""
    if isinstance(value, Tensor):
        return f"a tensor {list(value.shape)} of {str(value.dtype).removeprefix('torch.')}"
    return f"a {type(value).__name__}"


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


def check_samples(samples: Samples) -> int:
    """Return the number of samples.

    Raises:
        DataError: there are none, or inputs and targets differ in number.
    """
    num_inputs, num_targets = count_samples(samples.inputs), len(samples.targets)
    if num_inputs != num_targets:
        raise DataError(f"{num_inputs} inputs but {num_targets} targets; each input needs one target")
    if num_inputs == 0:
        raise DataError("no samples; at least one is needed")
    return num_inputs


def whole_pass(model: nn.Module, _batch: int, inputs: Inputs) -> Any:
    """Run all of a model."""
    args, kwargs = as_call(inputs)
    return model(*args, **kwargs)


@torch.no_grad()
def evaluate(
    model: nn.Module,
    samples: Samples,
    *,
    loss: Loss = cross_entropy,
    metric: Metric = top1,
    batch_size: int = 256,
    each: bool = False,
    forward: Forward = whole_pass,
    progress: Progress | None = None,
) -> Evaluation:
    """Evaluate a model on all samples, in their order.

    Args:
        model: run in evaluation mode on its own device; its modes are restored.
        samples: moved to the model's device batch by batch.
        loss: mean loss of a batch.
        metric: one value per sample.
        batch_size: samples per forward pass.
        each: whether to give the loss of each sample by itself too.
        forward: runs the model on a batch.
        progress: told after each batch.

    Raises:
        DataError: no samples, or inputs and targets differ in number.
        ModelError: the loss is not one finite number, or the metric doesn't give one value per sample.
    """
    num_samples, device = check_samples(samples), device_of(model)
    num_batches = -(-num_samples // batch_size)
    total_loss, total_metric = 0.0, 0.0
    losses, scores = [], []
    with restored_modes(model):
        model.eval()
        for index in range(num_batches):
            here = slice(index * batch_size, (index + 1) * batch_size)
            targets = samples.targets[here].to(device)
            outputs = forward(model, index, take(samples.inputs, here, device))
            scores.append(values_of_each(metric, outputs, targets).to(torch.float64))
            total_metric += scores[-1].sum().item()
            total_loss += mean_loss(loss, outputs, targets).item() * len(targets)
            if each:
                losses.append(losses_of_each(loss, outputs, targets).to("cpu", torch.float64))
            if progress is not None:
                progress(index + 1, num_batches)
    average = total_loss / num_samples
    if not torch.tensor([average, total_metric]).isfinite().all():
        raise ModelError(
            f"evaluation gave loss {average} over {num_samples} samples; expected a finite number: "
            "look for inf or nan in the inputs and the weights"
        )
    return Evaluation(
        accuracy=total_metric / num_samples,
        loss=average,
        num_samples=num_samples,
        losses=torch.cat(losses) if each else None,
        values=torch.cat([one.cpu() for one in scores]),
    )
