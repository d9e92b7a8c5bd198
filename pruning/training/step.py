"""One step of training: forward, loss, backward, optimizer; and all that a run remembers between two of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pruning.batches import Batch, Batches
from pruning.containers import as_call, with_tensors
from pruning.evaluation import Loss, device_of, mean_and_count
from pruning.training.averaging import MovingAverage
from pruning.training.callbacks import Augment, Callbacks, Distillation, Stateful
from pruning.training.mixup import mix
from pruning.training.precision import Precision
from pruning.training.recipe import Recipe
from pruning.training.schedule import LearningRates
from pruning.training.validation import Best, Patience


@dataclass(frozen=True)
class Run:
    """What takes part in a run, and what it remembers."""

    model: nn.Module
    samples: Batches
    recipe: Recipe
    loss: Loss
    distillation: Distillation
    optimizer: torch.optim.Optimizer
    seed: int
    teacher: nn.Module | None
    augment: Augment | None
    callbacks: Callbacks
    forward: Callable[..., Any]
    rates: LearningRates
    precision: Precision
    best: Best | None
    patience: Patience | None
    average: MovingAverage | None
    position: Position

    def state_dict(self) -> dict[str, Tensor]:
        """Return what is remembered beside model and optimizer, by name, as tensors on the CPU."""
        return {f"{part}.{name}": one for part, kept in self._parts() for name, one in kept.state_dict().items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Remember that instead."""
        for part, kept in self._parts():
            found = {name.removeprefix(f"{part}."): t for name, t in state.items() if name.startswith(f"{part}.")}
            kept.load_state_dict(found)

    def _parts(self) -> list[tuple[str, Stateful]]:
        parts: dict[str, Stateful | None] = {"memory": self.callbacks.memory, "position": self.position}
        parts |= {"best": self.best, "patience": self.patience, "average": self.average, "precision": self.precision}
        return [(name, part) for name, part in parts.items() if part is not None]


class Position:
    """How far an epoch has got, and the states of the random generators there; nothing between two epochs."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.begin()

    def begin(self) -> None:
        """Be at the beginning of an epoch."""
        self.steps, self.total = 0, 0.0
        self._states: dict[str, Tensor] = {}

    def note(self, steps: int, total: float, generator: torch.Generator) -> None:
        """Be behind so many steps, of this sum of the samples' losses."""
        self.steps, self.total = steps, total
        self._states = {"own": generator.get_state(), "global": torch.get_rng_state()}
        if self._device.type == "cuda":
            self._states["cuda"] = torch.cuda.get_rng_state(self._device)

    def restore(self, generator: torch.Generator) -> None:
        """Give the generators their states, if this is within an epoch."""
        if self._states:
            generator.set_state(self._states["own"])
            torch.set_rng_state(self._states["global"])
        if "cuda" in self._states:
            torch.cuda.set_rng_state(self._states["cuda"], self._device)

    def state_dict(self) -> dict[str, Tensor]:
        """Return it by name, as tensors on the CPU."""
        return self._states | {"numbers": torch.tensor([self.steps, self.total], dtype=torch.float64)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Be there."""
        self._states = {name: one for name, one in state.items() if name != "numbers"}
        steps, self.total = state["numbers"].tolist()
        self.steps = int(steps)


def run_step(
    run: Run, parts: Iterable[Batch], num_parts: int, generator: torch.Generator, at: tuple[int, int]
) -> float:
    """Take one optimizer step, unless its loss is not finite, and return the loss.

    Args:
        run: What takes part.
        parts: Of the batch, which are read one after the other.
        num_parts: Their number.
        generator: Of the augmentation.
        at: Epoch and step, the step counted over the whole run.
    """
    run.optimizer.zero_grad(set_to_none=True)
    result, weight, whole = 0.0, 0.0, 0.0
    for number, part in enumerate(parts):
        value, count = _loss_of(run, part, generator, (run.seed, *at, number))
        if not math.isfinite(one := value.item()):
            return one
        of_part = float(part.size) if count is None else count
        if number == 0:  # what counts in all is only known at the end
            whole = max(1.0, of_part) * num_parts
        run.precision.backward(value if num_parts == 1 else value * (of_part / whole))
        result, weight = result + one * of_part, weight + of_part
    if num_parts == 1:
        result = one
    else:
        result /= max(1.0, weight)
        for parameter in run.model.parameters():
            if parameter.grad is not None:
                parameter.grad.mul_(whole / max(1.0, weight))
    rate = run.rates.set(at[1], 1.0 if run.best is None else run.best.rate)
    run.precision.step(run.optimizer, run.model.parameters(), run.recipe.largest_gradient)
    run.rates.after_step()
    if (after_step := run.callbacks.after_step) is not None:
        after_step(at[1] + 1, run.rates.num_steps, rate)
    if run.average is not None:
        run.average.update(run.model)
    return result


def _loss_of(run: Run, batch: Batch, generator: torch.Generator, key: tuple[int, ...]) -> tuple[Tensor, float | None]:
    """Return the loss of these samples as a mean, and how many it is the mean of where the loss says so."""
    device, recipe = device_of(run.model), run.recipe
    if run.augment is not None:
        batch = batch._replace(inputs=run.augment(batch.inputs, generator))
    inputs, targets, _ = batch.to(device)
    mixed = None
    if recipe.mixup > 0 or recipe.cutmix > 0:
        mixed = mix(inputs, targets, recipe, *key)
        inputs = mixed.inputs
    if recipe.channels_last:
        inputs = with_tensors(inputs, _channels_last)
    args, kwargs = as_call(inputs)
    outputs = run.precision.run(lambda: run.forward(*args, **kwargs))
    value, count = (
        mean_and_count(run.loss, outputs, targets) if mixed is None else (mixed.loss(run.loss, outputs, targets), None)
    )
    if (teacher := run.teacher) is not None:
        with torch.no_grad():
            answers = run.precision.run(lambda: teacher(*args, **kwargs))
        weight = recipe.distillation
        value = (1 - weight) * value + weight * run.distillation(outputs, answers, recipe.temperature)
    if (penalty := run.callbacks.penalty) is not None:
        value = value + penalty()
    return value, count


def _channels_last(tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor


def deal_batches(
    num_samples: int, batch_size: int, generator: torch.Generator, window: int | None = None
) -> list[Tensor]:
    """Deal all samples into shuffled batches, none of a single sample unless there is only one.

    Args:
        num_samples: How many there are.
        batch_size: Of a batch.
        generator: Of the order.
        window: So many samples at a time are shuffled; None: all.
    """
    starts = range(0, num_samples, window or max(1, num_samples))
    sizes = (min(window or num_samples, num_samples - start) for start in starts)
    order = [start + torch.randperm(size, generator=generator) for start, size in zip(starts, sizes, strict=True)]
    batches = list(torch.split(torch.cat(order), batch_size))
    if len(batches) > 1 and len(batches[-1]) == 1:
        last = batches.pop()
        batches[-1] = torch.cat([batches[-1], last])
    return batches
