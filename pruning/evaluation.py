"""Measure a model on samples: accuracy and loss, in evaluation mode, changing nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pruning.errors import DataError, ModelError

Loss = Callable[[Tensor, Tensor], Tensor]
"""(outputs, targets) -> scalar: the mean over the samples."""

Metric = Callable[[Tensor, Tensor], Tensor]
"""(outputs, targets) -> [N] float: one value per sample; their mean is called the accuracy."""

Forward = Callable[[nn.Module, int, Tensor], Any]
"""(model, number of the batch, its inputs) -> outputs: how a model is run on a batch of the samples."""

Progress = Callable[[int, int], None]
"""(done, total): called after each batch with the number of batches done and the number in all."""


class Samples(Protocol):
    """Inputs and their targets, both with the samples on axis 0."""

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
        accuracy: mean of the metric over the samples, a fraction in [0, 1] for the built-in metric.
        loss: mean of the loss over the samples.
        num_samples: how many samples were seen.
        losses: the loss of each sample by itself, [N] float64, where it was asked for.
    """

    accuracy: float
    loss: float
    num_samples: int
    losses: Tensor | None = field(default=None, compare=False, repr=False)


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the mean cross entropy of logits [N, classes, ...] against class indices [N, ...]."""
    return nn.functional.cross_entropy(outputs, targets)


def top1(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return 1.0 for each sample whose largest logit is its target's, else 0.0.

    Logits are [N, classes, ...]; where there are positions beside the classes, the mean over them is taken.
    """
    hits = (outputs.argmax(dim=1) == targets).to(torch.float32)
    return hits if hits.ndim == 1 else hits.flatten(1).mean(dim=1)


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
    num_inputs, num_targets = len(samples.inputs), len(samples.targets)
    if num_inputs != num_targets:
        raise DataError(f"{num_inputs} inputs but {num_targets} targets; each input needs one target")
    if num_inputs == 0:
        raise DataError("no samples; at least one is needed")
    return num_inputs


def whole_pass(model: nn.Module, _batch: int, inputs: Tensor) -> Any:
    """Run all of a model."""
    return model(inputs)


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
        ModelError: the loss is not a finite number, or the metric doesn't give one value per sample.
    """
    num_samples, device = check_samples(samples), device_of(model)
    num_batches = -(-num_samples // batch_size)
    total_loss, total_metric = 0.0, 0.0
    losses = []
    with restored_modes(model):
        model.eval()
        for index in range(num_batches):
            here = slice(index * batch_size, (index + 1) * batch_size)
            targets = samples.targets[here].to(device)
            outputs = forward(model, index, samples.inputs[here].to(device))
            values = metric(outputs, targets)
            if values.shape != (len(targets),):
                raise ModelError(
                    f"the metric gave shape {tuple(values.shape)} for {len(targets)} samples; "
                    f"expected ({len(targets)},): one value per sample"
                )
            total_metric += values.to(torch.float64).sum().item()
            total_loss += loss(outputs, targets).item() * len(targets)
            if each:
                alone = [loss(outputs[i : i + 1], targets[i : i + 1]) for i in range(len(targets))]
                losses.append(torch.stack(alone).to("cpu", torch.float64))
            if progress is not None:
                progress(index + 1, num_batches)
    mean_loss = total_loss / num_samples
    if not torch.tensor([mean_loss, total_metric]).isfinite().all():
        raise ModelError(
            f"evaluation gave loss {mean_loss} over {num_samples} samples; expected a finite number: "
            "look for inf or nan in the inputs and the weights"
        )
    return Evaluation(total_metric / num_samples, mean_loss, num_samples, torch.cat(losses) if each else None)
