"""What may take part in training beside model, data and recipe."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pruning.evaluation import Progress
from pruning.training.validation import Judge

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
