"""What validation decides while a model is trained: epochs that are undone, and training that ends early."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from pruning.evaluation import interval_of_mean
from pruning.training.recipe import EarlyStopping

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
