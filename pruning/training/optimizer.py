"""The optimizer and the learning rate of each step, of a recipe's own or of torch's.

An optimizer is carried over to a narrowed model as if nothing had happened.
"""

from __future__ import annotations

import math
import warnings
from collections import defaultdict
from collections.abc import Callable, Sequence
from copy import copy, deepcopy
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pruning.errors import PlanError, SettingsError
from pruning.graph.groups import Groups
from pruning.graph.unwrapping import unwrap
from pruning.plan.constraints import parameters_in
from pruning.plan.plan import Plan
from pruning.plan.slicing import keep
from pruning.training.recipe import SCHEDULERS, Recipe, find_optimizer, imported, parameters_of

AnyOptimizer = TypeVar("AnyOptimizer", bound=Optimizer)


RATE = "layer_rate"
"""Key of a parameter group: the factor on the learning rate, where it isn't 1."""


def make_optimizer(recipe: Recipe, model: nn.Module) -> torch.optim.Optimizer:
    """Build the recipe's optimizer over the parameters that need a gradient; `auto` is SGD, see `recipe_for`.

    Raises:
        SettingsError: It can't be made, or `layer_rates` names what the model doesn't have.
    """
    place = f"recipe {recipe.name!r}: layer_rates"
    entries = parameters_in(model, recipe.layer_rates, place) if recipe.layer_rates else {}
    families: dict[float, list[list[nn.Parameter]]] = {1.0: [[], []]}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            factor = recipe.layer_rates[entries[name]] if name in entries else 1.0
            families.setdefault(factor, [[], []])[parameter.ndim <= 1].append(parameter)
    decays = (recipe.weight_decay, 0.0)
    groups = [
        {"params": owned, "weight_decay": decay} | ({} if factor == 1.0 else {RATE: factor})
        for factor, parts in families.items()
        for owned, decay in zip(parts, decays, strict=True)
        if owned or factor == 1.0
    ]
    given, name, place = recipe.optimizer_kwargs, recipe.optimizer, f"recipe {recipe.name!r}: optimizer"
    if name == "adamw":
        return _made(torch.optim.AdamW, place, groups, lr=recipe.peak_rate, **given)
    if name in ("auto", "sgd"):
        own = {"momentum": recipe.momentum, "nesterov": recipe.momentum > 0}
        return _made(torch.optim.SGD, place, groups, lr=recipe.peak_rate, **(own | given))
    make = find_optimizer(name)
    if "weight_decay" not in parameters_of(make) and isinstance(make, type):
        if recipe.weight_decay not in (0, type(recipe).model_fields["weight_decay"].default):
            raise SettingsError(f"{place} {name!r} takes no weight_decay; leave it out")
        groups = [{key: value for key, value in group.items() if key != "weight_decay"} for group in groups]
    return _made(make, f"{place} {name!r}", groups, lr=recipe.peak_rate, **given)


def _made(make: Callable[..., Any], place: str, groups: list[dict[str, Any]], **given: Any) -> torch.optim.Optimizer:
    found = call_with(make, place, [group for group in groups if group["params"]], **given)
    if not isinstance(found, torch.optim.Optimizer):
        raise SettingsError(f"{place} made a {type(found).__name__}; expected a torch.optim.Optimizer")
    closure = parameters_of(type(found).step).get("closure")
    if closure is not None and closure.default is closure.empty:
        raise SettingsError(f"{place} evaluates the loss in its step, which a recipe can't; choose another optimizer")
    return found


def call_with(make: Callable[..., Any], place: str, *given: Any, **kwargs: Any) -> Any:
    """Call what a recipe names; a fault is told in one line.

    Raises:
        SettingsError: It doesn't take what it is given, or raised.
    """
    try:
        return make(*given, **kwargs)
    except SettingsError:
        raise
    except Exception as fault:
        text = str(fault).strip().partition("\n")[0]
        raise SettingsError(f"{place} can't be made with {kwargs}: {type(fault).__name__}: {text}") from fault


def narrow_optimizer(
    optimizer: AnyOptimizer, model: nn.Module, dense: nn.Module, plan: Plan, groups: Groups
) -> AnyOptimizer:
    """Make the optimizer of a narrowed model: what it remembers of the channels that stay, it still remembers.

    Momentum and moments of a parameter lose the rows and columns that the parameter loses; numbers (steps) and the
    options of each parameter group are kept, learning rates as they are by now. A scheduler has to be made anew.

    Args:
        optimizer: Steps parameters of `model`; it is left as it was.
        model: The module that the plan was made for.
        dense: What `narrow` made of it.
        plan: Which channels went.
        groups: The groups of `model`.

    Returns:
        An optimizer of the same class that owns the parameters of `dense` in the same parameter groups.

    Raises:
        PlanError: The plan doesn't fit, the optimizer owns a parameter that isn't the model's, or it remembers
            something of another shape than the parameter's (as LBFGS and Adafactor do).
    """
    masks = plan.masks(groups)
    names = {id(parameter): name for name, parameter in unwrap(model).named_parameters()}
    narrowed = dict(dense.named_parameters(remove_duplicate=False))

    def successor(parameter: Tensor) -> nn.Parameter:
        if id(parameter) not in names:
            raise PlanError(
                f"the {type(optimizer).__name__} owns a parameter of shape {list(parameter.shape)} that is none of "
                f"{type(model).__name__}'s; give it the model that the optimizer was made for"
            )
        return narrowed[names[id(parameter)]]

    state: defaultdict[Tensor, dict[str, Any]] = defaultdict(dict)
    for parameter, remembered in optimizer.state.items():
        name = names.get(id(parameter), "")
        state[successor(parameter)] = {
            key: _carry(
                value, parameter, f"{type(optimizer).__name__} remembers {key!r} of {name!r}", name, groups, masks
            )
            for key, value in remembered.items()
        }
    carried = _copy(optimizer)
    carried.param_groups = [
        {**deepcopy({k: v for k, v in group.items() if k != "params"}), "params": list(map(successor, group["params"]))}
        for group in optimizer.param_groups
    ]
    carried.state = state
    return carried


def _copy(optimizer: AnyOptimizer) -> AnyOptimizer:
    """Copy an optimizer without its parameters and state; torch's own copies forget attributes of subclasses."""
    made: AnyOptimizer = object.__new__(type(optimizer))
    made.__dict__.update({name: copy(value) for name, value in vars(optimizer).items()})
    return made


def _carry(value: Any, parameter: Tensor, what: str, name: str, groups: Groups, masks: dict[Any, Tensor]) -> Any:
    if not isinstance(value, Tensor):
        return deepcopy(value)
    if value.shape == parameter.shape:
        return keep(value.detach(), groups.trace.parameters[name], masks)
    if value.numel() == 1:
        return value.detach().clone()
    raise PlanError(
        f"{what} in shape {list(value.shape)}, where the parameter has {list(parameter.shape)}, so it can't be "
        "narrowed along; make a new optimizer for the narrowed model"
    )


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
