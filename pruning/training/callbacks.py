"""What takes part in training beside model, data and recipe; what validation decides: epochs undone, an early end."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pruning.evaluation import Progress, interval_of_mean
from pruning.training.recipe import EarlyStopping

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
    """

    penalty: Penalty | None = None
    after_step: AfterStep | None = None
    memory: Stateful | None = None
    progress: Progress | None = None
    checkpointer: Checkpointer | None = None
    judge: Judge | None = None
    validate: Judge | None = None


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
        found = {f"best.{name}": tensor.cpu() for name, tensor in self._state.items()}
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
        found = {f"best.{name}": tensor.cpu() for name, tensor in self._state.items()}
        scores = torch.tensor(self.scores, dtype=torch.float64)
        return found | {"scores": scores, "epoch": torch.tensor(self.epoch)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Remember that instead."""
        self._state = {name.removeprefix("best."): one for name, one in state.items() if name.startswith("best.")}
        self.scores, self.epoch = state["scores"].tolist(), int(state["epoch"])
