"""How much work a run is, as far as settings and samples say: attempts, epochs, evaluations, each within bounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil

import torch

from pruning.allocation.schedule import Outcome, ScheduleSettings, expected_goals
from pruning.training.callbacks import deal_batches
from pruning.training.recipe import Recipe
from tasks.config.schema import Settings


@dataclass(frozen=True)
class Bounds:
    """A number that isn't known before the run.

    Attributes:
        least: It is no less than this.
        expected: If every attempt is accepted at its goal and no training ends early.
        most: It is no more than this.
    """

    least: float
    expected: float
    most: float

    @classmethod
    def exactly(cls, number: float) -> Bounds:
        """Return a number that is known."""
        return cls(number, number, number)

    def __add__(self, other: Bounds) -> Bounds:
        """Add two numbers, bound by bound."""
        return Bounds(self.least + other.least, self.expected + other.expected, self.most + other.most)

    def times(self, other: Bounds) -> Bounds:
        """Multiply two numbers of which none is negative, bound by bound."""
        return Bounds(self.least * other.least, self.expected * other.expected, self.most * other.most)


NOTHING = Bounds.exactly(0)


@dataclass(frozen=True)
class Work:
    """What a stage does.

    Attributes:
        attempts: Of the loop; None for other stages.
        epochs: Passes over the training samples.
        evaluations: Passes of a model over the validation samples (of the report: the test samples) that a score comes
            from; in `analyze` over the share of them that the settings name.
    """

    attempts: Bounds | None = None
    epochs: Bounds = NOTHING
    evaluations: Bounds = NOTHING


def steps_per_epoch(recipe: Recipe, num_samples: int) -> int:
    """Return the steps of the optimizer in a pass over the samples."""
    return len(deal_batches(num_samples, recipe.batch_size, torch.Generator()))


def epochs_of(recipe: Recipe, num_samples: int) -> Bounds:
    """Return the passes of one training; a trainer of the user's own is taken to make as many as the recipe says."""
    whole = recipe.epochs if recipe.steps is None else recipe.steps / steps_per_epoch(recipe, num_samples)
    if recipe.early_stopping is None:
        return Bounds.exactly(whole)
    return Bounds(min(recipe.early_stopping.patience, whole), whole, whole)


def judged(recipe: Recipe, num_samples: int, undo: bool) -> Bounds:
    """Return the evaluations within one training and of what it gives.

    Args:
        recipe: Of the training.
        num_samples: It learns from.
        undo: Whether epochs that do harm are undone (`prune.undo_training`).
    """
    measured = Bounds.exactly(1)
    if recipe.trainer is not None or not (undo or recipe.early_stopping is not None):
        return measured
    epochs = epochs_of(recipe, num_samples)
    within = Bounds(1 + epochs.least, 1 + ceil(epochs.expected), 1 + ceil(epochs.most))
    to_its_end = recipe.sparsity is not None  # is trained so in any case, and so may not be judged within
    return measured + (Bounds(0, within.expected, within.most) if to_its_end else within)


def attempts_of(schedule: ScheduleSettings, history: Sequence[Outcome] = ()) -> Bounds:
    """Return how many attempts follow a history."""
    goals = expected_goals(schedule, history)
    return Bounds(1, len(goals), schedule.max_attempts - len(history)) if goals else NOTHING


def work_of(
    settings: Settings,
    num_samples: Mapping[str, int],
    schedule: ScheduleSettings,
    history: Sequence[Outcome] = (),
    curves: Sequence[int] | None = None,
) -> dict[str, Work]:
    """Return what each stage does that trains or evaluates.

    Bounds hold where every attempt finds a plan and no training breaks down; what fails does less.

    Args:
        settings: Of the run.
        num_samples: Of each split.
        schedule: Of the loop.
        history: Attempts that were made by the same settings, which the loop goes on from.
        curves: For each curve that `analyze` measures, how many points it may have; None where none is measured.
    """
    trained = num_samples["train"]
    found = {"baseline": Work(evaluations=Bounds.exactly(1)), "report": Work(evaluations=Bounds.exactly(2))}
    if (recipe := settings.baseline.recipe) is not None:
        evaluations = judged(recipe, trained, undo=False)
        found["baseline"] = Work(epochs=epochs_of(recipe, trained), evaluations=evaluations)
    attempts = attempts_of(schedule, history)
    epochs = evaluations = NOTHING
    for one in settings.prune.recipes:
        epochs += epochs_of(one, trained)
        evaluations += judged(one, trained, settings.prune.undo_training)
    if not settings.prune.recipes:
        evaluations = Bounds.exactly(1)
    found["prune"] = Work(attempts, attempts.times(epochs), attempts.times(evaluations))
    if curves is not None:
        most = sum(curves) + 1  # and the whole model, once in each process
        processes = settings.machine.processes
        least = sum(min(1, points) for points in curves)
        found["analyze"] = Work(evaluations=Bounds(least, most, most + processes - 1))
    return found
