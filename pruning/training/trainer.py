"""Train a model on samples, or from a teacher: deterministic on the CPU, whatever happened before in the process.

All randomness of epoch e comes from (seed, e) alone, so that the state between two epochs is the model, the optimizer,
what a penalty remembers, the best model so far and the number of epochs done: nothing else has to be saved to go on
later.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pruning.batches import Batch, Batches, Samples, checked_batches
from pruning.containers import as_call
from pruning.errors import ModelError, SettingsError
from pruning.evaluation import (
    Loss,
    Progress,
    cross_entropy,
    device_of,
    distillation_loss,
    interval_of_mean,
    mean_loss,
    restored_modes,
)
from pruning.task import Task
from pruning.training.recipe import Recipe, learning_rate_at, make_optimizer, recipe_for

_log = logging.getLogger(__name__)


Augment = Callable[[Any, torch.Generator], Any]
"""(inputs, generator) -> inputs of the same shapes, changed at random."""

Distillation = Callable[[Any, Any, float], Tensor]
"""(outputs, teacher's outputs, temperature) -> scalar: how far the two are from each other."""

Penalty = Callable[[], Tensor]
"""() -> a scalar that is added to the loss of the step whose forward pass has just run."""

AfterStep = Callable[[int, int, float], None]
"""(step from 1, steps of the run, learning rate): called after each step of the optimizer."""


Judge = Callable[[nn.Module], Tensor]
"""model -> what it scores on each of some samples that it doesn't learn from, [N]; higher is better."""


class Stateful(Protocol):
    """What a penalty, or what is done after a step, remembers from epoch to epoch."""

    def state_dict(self) -> dict[str, Tensor]:
        """Return it by name, as tensors on the CPU."""

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Remember that instead."""


class Checkpointer(Protocol):
    """Keeps the state of a run after every epoch, so that a run that was stopped goes on."""

    def load(self, model: nn.Module, optimizer: torch.optim.Optimizer, memory: Stateful | None) -> list[float]:
        """Bring all of them to where they were, and return the losses of the epochs done; none at first."""

    def save(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, memory: Stateful | None, losses: Sequence[float]
    ) -> None:
        """Keep where they are after the epochs with these losses."""


@dataclass(frozen=True)
class Callbacks:
    """What takes part in a training run beside model, data and recipe.

    Attributes:
        penalty: added to the loss of each step.
        after_step: called after each step, for what changes parameters beside the optimizer; needed where the recipe
            names `sparsity` (`pruning.training.sparsity.SparsityTraining`).
        memory: what `penalty` and `after_step` remember from epoch to epoch, for the keeper.
        progress: told after each batch.
        checkpointer: keeps the state after each epoch; what it has kept is gone on from, to the same bits.
        judge: asked before the first epoch and after each: an epoch that ends worse than what was best before is
            undone, see `finetune`. Not for training that has to reach its end, as gates and sparsity do.
    """

    penalty: Penalty | None = None
    after_step: AfterStep | None = None
    memory: Stateful | None = None
    progress: Progress | None = None
    checkpointer: Checkpointer | None = None
    judge: Judge | None = None


@dataclass(frozen=True)
class History:
    """What a training run saw.

    Attributes:
        recipe: name of the recipe.
        losses: mean training loss of each epoch.
        scores: what the judge said on average: before the first epoch, and after each; empty without one.
        kept: the epoch whose end the model is at; 0: as it was before the first.
    """

    recipe: str
    losses: tuple[float, ...]
    scores: tuple[float, ...] = ()
    kept: int = 0


@dataclass(frozen=True)
class _Run:
    """What stays the same from epoch to epoch; but `best`, which is told how each ended."""

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
    best: _Best | None


def finetune(
    model: nn.Module,
    samples: Samples | Batches,
    recipe: Recipe,
    *,
    loss: Loss = cross_entropy,
    seed: int,
    teacher: nn.Module | None = None,
    augment: Augment | None = None,
    callbacks: Callbacks | None = None,
) -> History:
    """Train a model in place, by a recipe; module modes and the global random state are restored.

    The loss of a step is (1 − w) · loss + w · distillation + penalty, with w = `recipe.distillation`.

    With a judge, an epoch that ends worse than the best state so far, before training or after an epoch, by more than
    chance explains (the 95 % interval of the mean difference, sample by sample) is undone at once: training goes on
    from the best, with a fresh optimizer and half the rate. What is worse by less may be on its way, so training goes
    on from there; but where the end is below the beginning, by however little, the model stays as it was before. (The
    highest score of all epochs would not be the better model: of several that differ by chance it is the luckiest.)

    Args:
        model: changed in place, on its own device.
        samples: shuffled anew each epoch; a last batch of a single sample joins the one before it (batch norms
            can't train on one value). What a data set draws at random follows from seed, epoch and sample.
        recipe: the knobs; `auto` is filled in by the model, see `recipe_for`.
        loss: of a batch; a `pruning.task.Task` knows its distillation and its smoothed labels too.
        seed: of the order of the samples, of dropout, of `augment`, and of what a data set draws.
        teacher: needed where the recipe distils; run in evaluation mode.
        augment: applied to each batch of inputs on the CPU.
        callbacks: what else takes part.

    Raises:
        DataError: no samples, inputs and targets differ in number, or one can't be read.
        ModelError: a loss is not one finite number (the text names epoch and step).
        SettingsError: the recipe distils and there is no teacher, names `sparsity` and there is no `after_step`, or
            smooths labels of a loss other than the built-in cross entropy.
    """
    batches = checked_batches(samples)
    callbacks = Callbacks() if callbacks is None else callbacks
    checkpointer, memory = callbacks.checkpointer, callbacks.memory
    if recipe.sparsity is not None and callbacks.after_step is None:
        raise SettingsError(f"recipe {recipe.name!r} names sparsity but no after_step was given that brings it about")
    if recipe.distillation > 0 and teacher is None:
        raise SettingsError(f"recipe {recipe.name!r} distils (weight {recipe.distillation:g}) but no teacher was given")
    distillation = loss.distillation if isinstance(loss, Task) else distillation_loss
    if recipe.label_smoothing > 0:
        loss = _smoothed(loss, recipe)
    if recipe.optimizer == "auto":
        recipe = recipe_for(recipe, model)
        _log.info(
            "recipe %s: %s at %g, warm-up over %g epochs, largest norm of the gradient: %s",
            *(recipe.name, recipe.optimizer, recipe.peak_rate, recipe.rise, recipe.largest_gradient or "any"),
        )
    optimizer = make_optimizer(recipe, model.parameters())
    followed = teacher if recipe.distillation else None
    best = None if callbacks.judge is None else _Best(model, callbacks.judge, memory)
    run = _Run(model, batches, recipe, loss, distillation, optimizer, seed, followed, augment, callbacks, best)
    device = device_of(model)
    devices = [device] if device.type == "cuda" else []
    also = model if teacher is None else teacher
    with restored_modes(model), restored_modes(also), torch.random.fork_rng(devices=devices):
        model.train()
        if teacher is not None:
            teacher.eval()
        kept = memory if best is None else best
        losses = [] if checkpointer is None else checkpointer.load(model, optimizer, kept)
        for epoch in range(len(losses), recipe.epochs):
            losses.append(_run_epoch(run, epoch))
            if best is not None and best.see(model):
                optimizer.state.clear()
                _log.warning(
                    "recipe %s: epoch %d of %d ended at %.4f, worse than the %.4f of epoch %d beyond chance: undone; "
                    "training goes on from there at half the rate",
                    *(recipe.name, epoch + 1, recipe.epochs, best.scores[-1], best.scores[best.epoch], best.epoch),
                )
            if checkpointer is not None:
                checkpointer.save(model, optimizer, kept, losses)
    optimizer.zero_grad(set_to_none=True)
    if best is None:
        return History(recipe.name, tuple(losses), kept=len(losses))
    if best.scores[best.at] < best.scores[0]:
        _log.warning(
            "recipe %s: training ended at %.4f, below the %.4f that it began with: all of it is undone",
            *(recipe.name, best.scores[best.at], best.scores[0]),
        )
        best.restore_first(model)
    return History(recipe.name, tuple(losses), tuple(best.scores), best.at)


def _smoothed(loss: Loss, recipe: Recipe) -> Loss:
    amount = recipe.label_smoothing
    known = partial(nn.functional.cross_entropy, label_smoothing=amount) if loss is cross_entropy else None
    found = loss.smoothed(amount) if isinstance(loss, Task) else known
    if found is None:
        raise SettingsError(
            f"recipe {recipe.name!r} sets label_smoothing, which only the built-in cross entropy knows: "
            "set it to 0 and smooth inside your own loss"
        )
    return found


class _Best:
    """The best model so far, and what it takes to go on: kept beside what penalties remember."""

    def __init__(self, model: nn.Module, judge: Judge, memory: Stateful | None) -> None:
        self._judge, self._memory = judge, memory
        self._values = self._ask(model)
        self.scores, self.rate = [float(self._values.mean())], 1.0
        self.epoch = self.at = 0  # after which the best was, and the model is
        self._keep(model)
        self._first = self._state

    def see(self, model: nn.Module) -> bool:
        """Judge a model after an epoch; return whether it is so much worse that it was brought back to the best."""
        values = self._ask(model)
        self.scores.append(float(values.mean()))
        self.at = len(self.scores) - 1
        if self.scores[-1] >= self.scores[self.epoch]:
            self.epoch, self._values = self.at, values
            self._keep(model)
            return False
        if interval_of_mean(values - self._values)[1] >= 0:
            return False  # may be chance
        self.restore(model)
        self.rate /= 2
        return True

    def restore(self, model: nn.Module) -> None:
        """Bring a model back to the best."""
        model.load_state_dict(self._state)
        self.at = self.epoch

    def restore_first(self, model: nn.Module) -> None:
        """Bring a model back to where training began."""
        model.load_state_dict(self._first)
        self.at = 0

    def state_dict(self) -> dict[str, Tensor]:
        """Return it by name, as tensors on the CPU; not where training began, which is there again when it goes on."""
        found = {f"best.{name}": tensor.cpu() for name, tensor in self._state.items()}
        found |= {} if self._memory is None else {f"more.{k}": v for k, v in self._memory.state_dict().items()}
        scores = torch.tensor(self.scores, dtype=torch.float64)
        numbers = torch.tensor([self.epoch, self.at, self.rate], dtype=torch.float64)
        return found | {"values": self._values, "scores": scores, "numbers": numbers}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Remember that instead."""
        parts: dict[str, dict[str, Tensor]] = {"best": {}, "more": {}}
        for name, tensor in state.items():
            part, _, rest = name.partition(".")
            parts.setdefault(part, {})[rest] = tensor
        self._state, self._values, self.scores = parts["best"], state["values"], state["scores"].tolist()
        epoch, at, self.rate = state["numbers"].tolist()
        self.epoch, self.at = int(epoch), int(at)
        if self._memory is not None:
            self._memory.load_state_dict(parts["more"])

    def _ask(self, model: nn.Module) -> Tensor:
        return self._judge(model).detach().to("cpu", torch.float64)

    def _keep(self, model: nn.Module) -> None:
        self._state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def _run_epoch(run: _Run, epoch: int) -> float:
    """Train one epoch and return its mean loss."""
    generator = torch.Generator().manual_seed(run.seed * 1_000_003 + epoch)
    torch.manual_seed(run.seed * 1_000_003 + epoch)
    batches = _batches(len(run.samples), run.recipe.batch_size, generator)
    total = 0.0
    for index, batch in enumerate(run.samples.read(batches, seed=run.seed, epoch=epoch)):
        value = _run_step(run, batch, generator, epoch * len(batches) + index, len(batches))
        if not math.isfinite(value):
            raise ModelError(
                f"recipe {run.recipe.name!r}: the loss became {value} in epoch {epoch + 1} of {run.recipe.epochs}, "
                f"step {index + 1} of {len(batches)}; lower the learning rate ({run.recipe.peak_rate:g}) "
                "or set gradient_clip"
            )
        total += value * batch.size
        if (progress := run.callbacks.progress) is not None:
            progress(epoch * len(batches) + index + 1, run.recipe.epochs * len(batches))
    return total / len(run.samples)


def _run_step(run: _Run, batch: Batch, generator: torch.Generator, step: int, steps_per_epoch: int) -> float:
    """Take one optimizer step, unless its loss is not finite, and return the loss."""
    device, recipe = device_of(run.model), run.recipe
    if run.augment is not None:
        batch = batch._replace(inputs=run.augment(batch.inputs, generator))
    inputs, targets, _ = batch.to(device)
    args, kwargs = as_call(inputs)
    outputs = run.model(*args, **kwargs)
    value = mean_loss(run.loss, outputs, targets)
    if run.teacher is not None:
        with torch.no_grad():
            answers = run.teacher(*args, **kwargs)
        weight = recipe.distillation
        value = (1 - weight) * value + weight * run.distillation(outputs, answers, recipe.temperature)
    if (penalty := run.callbacks.penalty) is not None:
        value = value + penalty()
    if not math.isfinite(result := value.item()):
        return result
    rate = learning_rate_at(recipe, step, steps_per_epoch) * (1.0 if run.best is None else run.best.rate)
    for group in run.optimizer.param_groups:
        group["lr"] = rate
    run.optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward(value)
    if (largest := recipe.largest_gradient) is not None:
        nn.utils.clip_grad_norm_(run.model.parameters(), largest)
    run.optimizer.step()
    if (after_step := run.callbacks.after_step) is not None:
        after_step(step + 1, recipe.epochs * steps_per_epoch, rate)
    return result


def _batches(num_samples: int, batch_size: int, generator: torch.Generator) -> list[Tensor]:
    """Deal all samples into shuffled batches, none of a single sample unless there is only one."""
    batches = list(torch.split(torch.randperm(num_samples, generator=generator), batch_size))
    if len(batches) > 1 and len(batches[-1]) == 1:
        last = batches.pop()
        batches[-1] = torch.cat([batches[-1], last])
    return batches
