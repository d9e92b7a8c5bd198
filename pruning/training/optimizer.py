"""Carry an optimizer over to a narrowed model, so that training goes on as if nothing had happened."""

from __future__ import annotations

from collections import defaultdict
from copy import copy, deepcopy
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.optim import Optimizer

from pruning.errors import PlanError
from pruning.graph.groups import Groups
from pruning.graph.unwrapping import unwrap
from pruning.plan.plan import Plan
from pruning.plan.slicing import keep

AnyOptimizer = TypeVar("AnyOptimizer", bound=Optimizer)


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
