"""One step of training, and all that a run remembers between two of them.

Mixing samples, the forward pass in half precision, loss, backward pass with the scaled gradients that fp16 needs,
optimizer, moving average of the weights.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import sqrt
from typing import Any

import torch
from torch import Tensor, nn

from pruning.batches import Batch, Batches
from pruning.containers import as_call, find_tensors, take, with_tensors
from pruning.errors import SettingsError
from pruning.evaluation import Loss, device_of, mean_and_count, mean_loss
from pruning.training.callbacks import Augment, Best, Callbacks, Distillation, Patience, Stateful
from pruning.training.fsdp import Divided
from pruning.training.optimizer import LearningRates
from pruning.training.recipe import Recipe
from pruning.world import is_part, like, own_part, whole


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
    divided: Divided | None = None

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
        value, count = loss_of(run, part, generator, (run.seed, *at, number))
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
    change_weights(run, at[1])
    return result


def change_weights(run: Run, step: int) -> None:
    """Take the optimizer's step by the gradients that are there, and do what follows each step.

    Args:
        run: What takes part.
        step: Counted over the whole run, from 0.
    """
    rate = run.rates.set(step, 1.0 if run.best is None else run.best.rate)
    run.precision.step(run.optimizer, run.model.parameters(), run.recipe.largest_gradient)
    run.rates.after_step()
    if (after_step := run.callbacks.after_step) is not None:
        after_step(step + 1, run.rates.num_steps, rate)
    if run.average is not None:
        run.average.update(run.model)


def loss_of(run: Run, batch: Batch, generator: torch.Generator, key: tuple[int, ...]) -> tuple[Tensor, float | None]:
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


_EPSILON = 1e-6  # of `torch.nn.utils.clip_grad_norm_`
_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Precision:
    """Runs a model, its backward pass and its optimizer in a recipe's precision; give it to a checkpointer.

    fp16 has few exponents, so the loss is scaled up, by a factor that falls where gradients overflow, whose step is
    left out, and rises where they don't. Source: Micikevicius et al. 2018, arXiv 1710.03740.
    """

    def __init__(self, recipe: Recipe, device: torch.device) -> None:
        """Take the device that the model is on."""
        self._device, self._type = device.type, _TYPES.get(recipe.precision)
        self._scaler = torch.amp.GradScaler(device.type) if recipe.precision == "fp16" else None
        if self._scaler is not None:
            self._scaler.scale(torch.zeros((), device=device))  # makes the scale, which is kept before the first step

    def run(self, forward: Callable[[], Any]) -> Any:
        """Run a forward pass; its outputs are fp32, so that any loss can be computed of them."""
        if self._type is None:
            return forward()
        with torch.autocast(self._device, dtype=self._type):
            outputs = forward()
        return with_tensors(outputs, lambda one: one.float() if one.dtype == self._type else one)

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a loss to those of the parameters."""
        torch.autograd.backward(loss if self._scaler is None else self._scaler.scale(loss))

    def step(self, optimizer: torch.optim.Optimizer, parameters: Iterable[nn.Parameter], largest: float | None) -> None:
        """Take a step, the gradient's norm clipped to what is the largest allowed."""
        if self._scaler is not None:
            self._scaler.unscale_(optimizer)
        if largest is not None:
            _clip(list(parameters), largest)
        if self._scaler is None:
            optimizer.step()
        else:
            self._scaler.step(optimizer)
            self._scaler.update()

    def state_dict(self) -> dict[str, Tensor]:
        """Return scale and count of steps since it changed."""
        if self._scaler is None:
            return {}
        state = self._scaler.state_dict()
        return {name: torch.tensor(state[name], dtype=torch.float64) for name in ("scale", "_growth_tracker")}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from that."""
        if self._scaler is not None:
            found = {"scale": state["scale"].item(), "_growth_tracker": int(state["_growth_tracker"])}
            self._scaler.load_state_dict(self._scaler.state_dict() | found)


def _clip(parameters: list[nn.Parameter], largest: float) -> None:
    """Scale gradients down to a norm; those in parts are gathered one by one, so that it has the bits of whole ones."""
    gradients = [one.grad for one in parameters if one.grad is not None]
    if not any(map(is_part, gradients)):
        nn.utils.clip_grad_norm_(parameters, largest)
        return
    norms = torch.stack([torch.linalg.vector_norm(whole(one)) for one in gradients])
    factor = (largest / (torch.linalg.vector_norm(norms) + _EPSILON)).clamp(max=1.0)
    for one in gradients:
        own_part(one).mul_(factor)


class MovingAverage:
    """v ← d v + (1 − d) w after each step, d = min(decay, (1 + t)/(10 + t)) after t steps.

    All parameters and buffers of floating point are averaged, the rest are the last. The decay begins low, so that a
    short run forgets what it began with. Source: TensorFlow's ExponentialMovingAverage with `num_updates`.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        """Begin with a model's weights."""
        self._decay, self._steps = decay, 0
        self._values = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take in the model after a step."""
        self._steps += 1
        decay = min(self._decay, (1 + self._steps) / (10 + self._steps))
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                self._values[name].lerp_(tensor, 1 - decay)
            else:
                self._values[name].copy_(tensor)

    @contextmanager
    def swapped_in(self, model: nn.Module) -> Iterator[None]:
        """Give a model the averaged weights within the block."""
        own = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        model.load_state_dict(self._values)
        try:
            yield
        finally:
            model.load_state_dict(own)

    def write_to(self, model: nn.Module) -> None:
        """Give a model the averaged weights."""
        model.load_state_dict(self._values)

    def state_dict(self) -> dict[str, Tensor]:
        """Return it by name, as tensors on the CPU."""
        found = {f"of.{name}": whole(tensor).cpu() for name, tensor in self._values.items()}
        return found | {"steps": torch.tensor(self._steps)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Remember that instead."""
        self._steps = int(state["steps"])
        for name, tensor in self._values.items():
            tensor.copy_(like(tensor, state[f"of.{name}"]))


@dataclass(frozen=True)
class Mixed:
    """A batch that was mixed.

    Attributes:
        inputs: Of the model.
        order: Which sample each was mixed with, int64 [N].
        share: λ, what is left of the sample itself.
    """

    inputs: Any
    order: Tensor
    share: float

    def loss(self, loss: Loss, outputs: Any, targets: Any) -> Tensor:
        """Return the mixed loss of the outputs; targets are those of the samples themselves."""
        other = take(targets, self.order)
        return self.share * mean_loss(loss, outputs, targets) + (1 - self.share) * mean_loss(loss, outputs, other)


def mix(inputs: Any, targets: Any, recipe: Recipe, *key: int) -> Mixed:
    """Mix a batch with the same samples x' in another order, on its device.

        mixup    x ← λ x + (1 − λ) x'       loss ← λ · loss(f(x), y) + (1 − λ) · loss(f(x), y')
        cutmix   a box of x comes from x'   likewise, λ being the share of the image outside the box

    λ ~ Beta(α, α), the order and the box are a function of the key, so that a run that is taken up again mixes the
    same. Sources: Zhang et al. 2018, arXiv 1710.09412 (mixup); Yun et al. 2019, arXiv 1905.04899 (CutMix).

    Args:
        inputs: In any container, samples on axis 0.
        targets: Likewise.
        recipe: With `mixup`, `cutmix`, or both, of which each batch gets one.
        key: Seed, epoch, step, and whatever else tells this batch from others.

    Raises:
        SettingsError: They can't be mixed: integers, or no images for CutMix.
    """
    drawn = random.Random(" ".join(map(str, key)))  # noqa: S311 - no secret: the same key, the same numbers
    cuts = recipe.cutmix > 0 and (recipe.mixup == 0 or drawn.random() < 0.5)
    alpha = recipe.cutmix if cuts else recipe.mixup
    share = drawn.betavariate(alpha, alpha)
    found = find_tensors(inputs)
    number = len(found[0])
    order = torch.tensor(drawn.sample(range(number), number), device=found[0].device)
    what = f"recipe {recipe.name!r} sets {'cutmix' if cuts else 'mixup'}"
    if wrong := [tensor for tensor in found if not tensor.is_floating_point()]:
        raise SettingsError(
            f"{what}, which needs inputs of floating point; one is {str(wrong[0].dtype).removeprefix('torch.')} "
            f"{list(wrong[0].shape)}: set it to 0"
        )
    if not cuts:
        mixed = with_tensors(inputs, lambda tensor: share * tensor + (1 - share) * tensor[order])
        return Mixed(mixed, order, share)
    if len(found) != 1 or found[0].ndim != 4 or any(one.ndim > 2 for one in find_tensors(targets)):
        shown = ", ".join(str(list(one.shape)) for one in (*found, *find_tensors(targets)))
        raise SettingsError(
            f"{what}, which needs images [N, C, H, W] and targets of whole images; found {shown}: set it to 0"
        )
    height, width = found[0].shape[-2:]
    rows, columns = (_cut(size, sqrt(1 - share), drawn) for size in (height, width))
    pasted = found[0].clone()
    pasted[..., rows, columns] = found[0][order][..., rows, columns]
    area = (rows.stop - rows.start) * (columns.stop - columns.start)
    return Mixed(with_tensors(inputs, lambda _tensor: pasted), order, 1 - area / (height * width))


def _cut(size: int, share: float, drawn: random.Random) -> slice:
    """Return a side of the box: of this share, around a point anywhere, what lies outside the image left off."""
    half, centre = int(size * share) // 2, drawn.randrange(size)
    return slice(max(0, centre - half), min(size, centre + half))
