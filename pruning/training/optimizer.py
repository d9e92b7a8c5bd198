"""Make the optimizer that a recipe names, and carry one over to a narrowed model as if nothing had happened."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
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
from pruning.training.recipe import Recipe, find_optimizer, parameters_of

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
