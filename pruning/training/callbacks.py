"""What takes part in training beside model, data and recipe, or in its place: a function of the user's.

What validation decides is here, too: epochs that are undone, and training that ends early. After training by a function
of the user's the model has to have every parameter that it had, in its shape.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pruning.batches import Batches
from pruning.containers import Inputs
from pruning.errors import ModelError, SettingsError, describe_user_fault, pass_on
from pruning.evaluation import Progress, device_of, interval_of_mean, restored_modes
from pruning.graph.unwrapping import unwrap
from pruning.training.recipe import EarlyStopping, Recipe, imported
from pruning.world import ALONE, World, whole

Augment = Callable[[Any, torch.Generator], Any]
"""(inputs, generator) -> inputs of the same shapes, changed at random."""

Distillation = Callable[[Any, Any, float], Tensor]
"""(outputs, teacher's outputs, temperature) -> scalar: how far the two are from each other."""

Penalty = Callable[[], Tensor]
"""() -> a scalar that is added to the loss of the step whose forward pass has just run."""

AfterStep = Callable[[int, int, float], None]
"""(step from 1, steps of the run, learning rate): called after each step of the optimizer."""


class Stateful(Protocol):
    """What a penalty, or what is done after a step, remembers from epoch to epoch."""

    def state_dict(self) -> dict[str, Tensor]:
        """Return it by name, as tensors on the CPU."""

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Remember that instead."""


class Checkpointer(Protocol):
    """Keeps the state of a run after every epoch, and within it, so that a run that was stopped goes on."""

    def load(self, model: nn.Module, optimizer: torch.optim.Optimizer, memory: Stateful | None) -> list[float]:
        """Bring all of them to where they were, and return the losses of the epochs done; none at first."""

    def save(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, memory: Stateful | None, losses: Sequence[float]
    ) -> None:
        """Keep where they are after the epochs with these losses, and what `memory` says of the one under way."""

    def is_due(self) -> bool:
        """Say whether to keep the state within an epoch too: asked after each step."""


@dataclass(frozen=True)
class Callbacks:
    """What takes part in a training run beside model, data and recipe.

    Attributes:
        penalty: added to the loss of each step.
        after_step: called after each step, for what changes parameters beside the optimizer; needed where the recipe
            names `sparsity` (`pruning.training.sparsity.SparsityTraining`).
        memory: what `penalty` and `after_step` remember from epoch to epoch, for the keeper.
        progress: told after each batch.
        checkpointer: keeps the state after each epoch and when it is due; what it has kept is gone on from, to the same
            bits.
        judge: asked before the first epoch and after each: an epoch that ends worse than what was best before is
            undone, see `finetune`. Not for training that has to reach its end, as gates and sparsity do.
        validate: asked likewise, for recipes with `early_stopping`; it changes nothing but when training ends.
        world: into how many shards each batch is divided, and which of the processes that hold them this one is. All of
            them train with the same and end with the same model; the first one alone keeps its state. Where each holds
            a part of the model, all ask the checkpointer to save, and it has to write in the first one alone.
    """

    penalty: Penalty | None = None
    after_step: AfterStep | None = None
    memory: Stateful | None = None
    progress: Progress | None = None
    checkpointer: Checkpointer | None = None
    judge: Judge | None = None
    validate: Judge | None = None
    world: World = ALONE


Judge = Callable[[nn.Module], Tensor]
"""model -> what it scores on each of some samples that it doesn't learn from, [N]; higher is better."""


class Best:
    """The best model so far, and what it takes to go on."""

    def __init__(self, model: nn.Module, judge: Judge) -> None:
        """Judge a model before its training."""
        self._judge = judge
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
        found = {f"best.{name}": whole(tensor).cpu() for name, tensor in self._state.items()}
        scores = torch.tensor(self.scores, dtype=torch.float64)
        numbers = torch.tensor([self.epoch, self.at, self.rate], dtype=torch.float64)
        return found | {"values": self._values, "scores": scores, "numbers": numbers}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Remember that instead."""
        self._state = {name.removeprefix("best."): one for name, one in state.items() if name.startswith("best.")}
        self._values, self.scores = state["values"], state["scores"].tolist()
        epoch, at, self.rate = state["numbers"].tolist()
        self.epoch, self.at = int(epoch), int(at)

    def _ask(self, model: nn.Module) -> Tensor:
        return self._judge(model).detach().to("cpu", torch.float64)

    def _keep(self, model: nn.Module) -> None:
        self._state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


class Patience:
    """Ends training after so many epochs without a better mean of what a judge says."""

    def __init__(self, settings: EarlyStopping) -> None:
        """Take the recipe's settings."""
        self._settings = settings
        self.scores: list[float] = []
        self.epoch = 0  # after which the best was
        self._state: dict[str, Tensor] = {}

    def see(self, score: float, model: nn.Module) -> bool:
        """Take in the score before the first epoch or after one, and say whether to stop."""
        self.scores.append(score)
        at = len(self.scores) - 1
        if at == 0 or score > self.scores[self.epoch] + self._settings.min_delta:
            self.epoch = at
            if self._settings.restore_best:
                self._state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        return at - self.epoch >= self._settings.patience

    def finish(self, model: nn.Module) -> int:
        """Bring a model back to the best epoch, if that is asked for; return the epoch that it is at."""
        if not self._settings.restore_best:
            return len(self.scores) - 1
        model.load_state_dict(self._state)
        return self.epoch

    @property
    def is_over(self) -> bool:
        """Whether training has been stopped."""
        return len(self.scores) - 1 - self.epoch >= self._settings.patience

    def state_dict(self) -> dict[str, Tensor]:
        """Return it by name, as tensors on the CPU."""
        found = {f"best.{name}": whole(tensor).cpu() for name, tensor in self._state.items()}
        scores = torch.tensor(self.scores, dtype=torch.float64)
        return found | {"scores": scores, "epoch": torch.tensor(self.epoch)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Remember that instead."""
        self._state = {name.removeprefix("best."): one for name, one in state.items() if name.startswith("best.")}
        self.scores, self.epoch = state["scores"].tolist(), int(state["epoch"])


_SHOWN = 3


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


class ShuffledLoader:
    """All samples in batches (inputs, targets) on a device, in another order each time that one goes through it.

    Order and what a data set draws follow from (seed, how often it was gone through).
    """

    def __init__(self, samples: Batches, recipe: Recipe, seed: int, device: torch.device) -> None:
        """Read nothing yet."""
        self._samples, self._seed, self._device = samples, seed, device
        self.batch_size, self.epoch = recipe.batch_size, 0

    def __len__(self) -> int:
        """Count the batches."""
        return len(self._deal())

    def __iter__(self) -> Iterator[tuple[Inputs, Any]]:
        """Yield the inputs and targets of each batch."""
        batches, epoch = self._deal(), self.epoch
        self.epoch += 1
        for batch in self._samples.read(batches, seed=self._seed, epoch=epoch):
            inputs, targets, _ = batch.to(self._device)
            yield inputs, targets

    def _deal(self) -> list[Tensor]:
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + self.epoch)
        return deal_batches(len(self._samples), self.batch_size, generator, self._samples.window)


log = logging.getLogger(__name__)


def train_by_own(model: nn.Module, recipe: Recipe, seed: int, teacher: nn.Module | None, **offered: Any) -> None:
    """Train a model in place by the function that a recipe names as its `trainer`.

    It is given, by name, what its signature takes of: model, recipe, seed, teacher (None without distillation or
    baseline) and what else is offered. It trains the model in place and returns None, or returns a module that has the
    model's parameters. The global random state and module modes are restored.

    Raises:
        SettingsError: The function isn't there, takes something else, raised, rebuilt or changed the architecture, or
            left every weight as it was: no other step would help.
        ModelError: It left weights that are not finite.
    """
    assert recipe.trainer is not None, "the caller has looked"
    what = f"recipe {recipe.name!r}: trainer {recipe.trainer!r}"
    train = imported(recipe.trainer, f"recipe {recipe.name!r}: trainer")
    known: Mapping[str, Any] = {"model": model, "recipe": recipe, "seed": seed, "teacher": teacher, **offered}
    parameters = inspect.signature(train).parameters.values()
    takes_all = any(one.kind is one.VAR_KEYWORD for one in parameters)
    given = {name: value for name, value in known.items() if takes_all or name in inspect.signature(train).parameters}
    try:
        inspect.signature(train).bind(**given)
    except TypeError as fault:
        raise SettingsError(f"{what}: {fault}; it is given, by name, what it takes of {', '.join(known)}") from fault
    before = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    device = device_of(model)
    with restored_modes(model), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        model.train()
        try:
            returned = train(**given)
        except Exception as fault:
            pass_on(fault)
            raise SettingsError(f"{what} raised {describe_user_fault(fault)}") from fault
    if returned is not None and not isinstance(returned, nn.Module):
        raise SettingsError(f"{what} returned a {type(returned).__name__}; expected None, or the trained module")
    model.to(device)
    after = (model if returned is None else unwrap(returned)).state_dict()
    _compare(what, before, after, {} if teacher is None else teacher.state_dict())
    if returned is not None and returned is not model:
        model.load_state_dict(after)
    model.zero_grad(set_to_none=True)


def _compare(what: str, before: Mapping[str, Tensor], after: Mapping[str, Tensor], first: Mapping[str, Tensor]) -> None:
    """Hold what a trainer left to what it was given; `first` is what the baseline has."""
    reshaped = [name for name in before if name in after and after[name].shape != before[name].shape]
    if reshaped:
        again = all(name in first and after[name].shape == first[name].shape for name in reshaped)
        listed = [
            f"{name} is {tuple(after[name].shape)}{' again' if again else ''}, it was {tuple(before[name].shape)}"
            for name in reshaped[:_SHOWN]
        ]
        done = "rebuilt the architecture of the baseline" if again else "changed the architecture"
        raise SettingsError(f"{what} {done}: {_listed(listed, reshaped)}; {_MEND}")
    missing, new = ([name for name in a if name not in b] for a, b in ((before, after), (after, before)))
    if missing or new:
        parts = [f"{_listed(names[:_SHOWN], names)} {how}" for names, how in ((missing, "gone"), (new, "new")) if names]
        raise SettingsError(f"{what} changed the architecture: {', '.join(parts)}; {_MEND}")
    for name, tensor in after.items():
        if tensor.dtype != before[name].dtype:
            dtypes = [str(one.dtype).removeprefix("torch.") for one in (tensor, before[name])]
            raise SettingsError(
                f"{what} left {name} as {dtypes[0]}, it was {dtypes[1]}; convert the model back at its end"
            )
        if not bool(tensor.isfinite().all()):
            raise ModelError(f"{what} left values in {name} that are not finite; lower its learning rate")
    if all(torch.equal(tensor.to(before[name].device), before[name]) for name, tensor in after.items()):
        raise SettingsError(f"{what} left every weight as it was; {_MEND}")


_MEND = "train the module that is given, in place, or return a module with the same parameters"


def _listed(shown: list[str], names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return "; ".join(shown) + more if " " in shown[0] else ", ".join(shown) + more
