"""Where an attempt starts, and what a step makes of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from pruning.structure.plan import Plan
from pruning.training.recipe import Recipe
from tasks.loop.ledger import Ledger
from tasks.params.settings import Settings
from tasks.workspace import Workspace

Train = Callable[..., None]
"""(model, **hooks): fine-tune it by the recipe at hand; hooks are fields of `pruning.training.epochs.Callbacks`."""


@dataclass(frozen=True)
class Situation:
    """Where an attempt starts.

    Attributes:
        settings: Of the run.
        workspace: Data and curves lie in it.
        ledger: What came before.
        goal: The reduction to come to, against the baseline.
        model: The last accepted one, or one of the original's shape where channels may come back; it is left as it is.
        plan: From the original to it.
        example: One sample [1, ...].
        reference: A model of the shape of `model`, whose layers' outputs are to be kept: it itself, or the baseline
            where channels may come back that have not been trained along.
        start: A model of the original's shape whose weights the next training begins with; None keeps the last ones.
    """

    settings: Settings
    workspace: Workspace
    ledger: Ledger
    goal: float
    model: nn.Module
    plan: Plan
    example: Tensor
    reference: nn.Module
    start: nn.Module | None = None


@dataclass(frozen=True)
class Step:
    """A step taken, before training.

    Attributes:
        model: What it made of the last model.
        plan: Which channels of the last model are gone.
        train: Trains a copy of `model`, by a recipe, so that it stays what the step made it.
        reached: The reduction that it comes to; None where that is to be measured.
        unrounded: Channels that each group would have kept, had its count not been rounded; None where none was.
    """

    model: nn.Module
    plan: Plan
    train: Callable[[nn.Module, Recipe, Train], None]
    reached: float | None = None
    unrounded: Mapping[str, int] | None = None
