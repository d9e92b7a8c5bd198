"""The learning rate of each step: by a recipe's own schedule, or by a scheduler of torch's."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import torch

from pruning.errors import SettingsError
from pruning.training.optimizer import RATE, call_with
from pruning.training.recipe import SCHEDULERS, Recipe, imported, parameters_of


def learning_rate_at(recipe: Recipe, step: int, steps_per_epoch: int) -> float:
    """Return the learning rate of a step (counted from 0 over the whole run), of a schedule of ours.

    With p in [0, 1) the share of the run after the warm-up that lies behind:

        constant    peak
        linear      peak · (1 − p)
        cosine      peak · (1 + cos πp)/2
        one_cycle   rises by half a cosine from peak/25 over the warm-up (30 % of the run if none is set), then
                    falls by half a cosine to peak/10⁴; Source: Smith & Topin 2018, arXiv 1708.07120 (our momentum
                    stays constant)
    """
    total = num_steps(recipe, steps_per_epoch)
    warmup = _warmup_steps(recipe, steps_per_epoch)
    peak = recipe.peak_rate
    if recipe.schedule == "one_cycle":
        warmup = warmup or 0.3 * total
        if step < warmup:
            return _cosine(peak / 25, peak, step / warmup)
        return _cosine(peak, peak / 1e4, (step - warmup) / (total - warmup))
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    passed = (step - warmup) / (total - warmup)
    if recipe.schedule == "cosine":
        return _cosine(peak, 0.0, passed)
    return peak * (1 - passed) if recipe.schedule == "linear" else peak


def num_steps(recipe: Recipe, steps_per_epoch: int) -> int:
    """Return the steps of a run."""
    return recipe.epochs * steps_per_epoch if recipe.steps is None else recipe.steps


def _warmup_steps(recipe: Recipe, steps_per_epoch: int) -> float:
    if recipe.steps is None or recipe.warmup_epochs != "auto":
        return recipe.rise * steps_per_epoch
    return min(steps_per_epoch, 0.1 * recipe.steps) if recipe.rise else 0.0


def _cosine(start: float, end: float, passed: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * passed)) / 2


class LearningRates:
    """Sets the rates of an optimizer's parameter groups before each step."""

    def __init__(self, recipe: Recipe, optimizer: torch.optim.Optimizer, steps_per_epoch: int) -> None:
        """Make the scheduler, if the recipe names one.

        Raises:
            SettingsError: It can't be made, or the warm-up is as long as the run.
        """
        self._recipe, self._optimizer, self._steps_per_epoch = recipe, optimizer, steps_per_epoch
        self.num_steps = num_steps(recipe, steps_per_epoch)
        self._rates: list[float] = []
        if _warmup_steps(recipe, steps_per_epoch) >= self.num_steps:
            raise SettingsError(
                f"recipe {recipe.name!r}: warmup_epochs ({recipe.rise:g}) are as long as the run of {self.num_steps} "
                f"steps, {steps_per_epoch} an epoch"
            )
        self._scheduler = None if recipe.has_own_schedule else self._made()
        self._begin = self._options()

    def set(self, step: int, share: float) -> float:
        """Set the rates of a step.

        Args:
            step: Counted from 0 over the whole run.
            share: A factor on all of them.

        Returns:
            The rate of parameters whose layers have none of their own.
        """
        groups = self._optimizer.param_groups
        if self._scheduler is None:
            self._rates = [learning_rate_at(self._recipe, step, self._steps_per_epoch)] * len(groups)
        else:  # a scheduler goes on from the rates that it finds, so they are given back to it
            self._rates = [float(group["lr"]) for group in groups]
        for group, rate in zip(groups, self._rates, strict=True):
            group["lr"] = rate * share * group.get(RATE, 1.0)
        return self._rates[0] * share

    def after_step(self) -> None:
        """Go on after a step."""
        if self._scheduler is not None:
            for group, rate in zip(self._optimizer.param_groups, self._rates, strict=True):
                group["lr"] = rate
            if self._recipe.schedule_interval == "step":
                self._scheduler.step()

    def after_epoch(self, loss: float) -> None:
        """Go on after an epoch with this mean loss."""
        if self._scheduler is not None and self._recipe.schedule_interval == "epoch":
            if isinstance(self._scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
                self._scheduler.step(loss)
            else:
                self._scheduler.step()

    def go_on(self, steps: int, losses: Sequence[float]) -> None:
        """Bring a fresh scheduler to where it was after so many steps, and epochs of these losses.

        It takes all of its steps again: what it remembers needs no file then. The options of the optimizer stay.
        """
        if self._scheduler is None:
            return
        now = self._options()
        self._set(self._begin)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
            if self._recipe.schedule_interval == "step":
                for _ in range(steps):
                    self._scheduler.step()
            for loss in losses:
                self.after_epoch(loss)
        self._set(now)

    def _options(self) -> list[dict[str, Any]]:
        return [{k: one for k, one in group.items() if k != "params"} for group in self._optimizer.param_groups]

    def _set(self, options: list[dict[str, Any]]) -> None:
        for group, found in zip(self._optimizer.param_groups, options, strict=True):
            group.update(found)

    def _made(self) -> Any:
        recipe, name = self._recipe, self._recipe.schedule
        place = f"recipe {recipe.name!r}: schedule"
        make = imported(name, place) if ":" in name else SCHEDULERS[name]
        by_epoch = recipe.schedule_interval == "epoch"
        length = -(-self.num_steps // self._steps_per_epoch) if by_epoch else self.num_steps
        offered = {"T_max": length, "max_lr": recipe.peak_rate, "num_steps": self.num_steps}
        offered |= {"total_steps": length, "steps_per_epoch": self._steps_per_epoch}
        takes, given = parameters_of(make), recipe.schedule_kwargs
        lacking = {key for key, one in takes.items() if one.default is one.empty}
        if name == "OneCycleLR" and "epochs" not in given:
            lacking.add("total_steps")
        offered = {key: value for key, value in offered.items() if key in lacking and key not in given}
        for group in self._optimizer.param_groups:
            group["lr"] = recipe.peak_rate
        found = call_with(make, f"{place} {name!r}", self._optimizer, **offered, **given)
        if not callable(getattr(found, "step", None)):
            raise SettingsError(f"{place} {name!r} made a {type(found).__name__}, which has no step()")
        return found
