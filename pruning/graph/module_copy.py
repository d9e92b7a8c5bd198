"""Copy a module tree while choosing what stands in place of its tensors."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from copy import deepcopy
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pruning.errors import ModelError, describe, pass_on

Module = TypeVar("Module", bound=nn.Module)


def copy_module(model: Module, tensors: Mapping[int, Tensor] | None = None) -> Module:
    """Copy modules, attributes and caches of a model, but not its parameters and buffers.

    Args:
        model: Any module.
        tensors: What stands in place of each parameter and buffer, by the id of the tensor; by default the tensors
            themselves, which are then shared with the original.

    Raises:
        ModelError: The module can't be copied.
    """
    return _copy(model, {id(t): t for t in (*model.parameters(), *model.buffers())} | dict(tensors or {}))


def copy_whole(model: Module) -> Module:
    """Copy a model with its parameters and buffers; what else it keeps (activations) is copied without its graph.

    Raises:
        ModelError: The module can't be copied.
    """
    return _copy(model, {})


def _copy(model: Module, memo: dict[int, Any]) -> Module:
    try:
        with _WithoutGraphs():
            return deepcopy(model, _empty(model) | memo)
    except Exception as fault:
        pass_on(fault)
        raise ModelError(
            f"{type(model).__name__} can't be copied: {describe(fault)}. A module may hold only what "
            "copy.deepcopy can copy: no open files, no generators"
        ) from fault


def _empty(model: nn.Module) -> dict[int, Any]:
    """What `deepcopy` makes of the containers that hold nothing: the tables of hooks, a dozen to a module.

    It takes each of them apart, which takes longer than all else of most models.
    """
    held = [value for module in model.modules() for value in vars(module).values()]
    return {id(value): type(value)() for value in held if type(value) in (OrderedDict, set) and not value}


class _WithoutGraphs(TorchFunctionMode):
    """Copy tensors that were computed with gradients as values, where PyTorch refuses to copy them."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.__deepcopy__ and not args[0].is_leaf:
            tensor, memo = args
            if id(tensor) not in memo:
                memo[id(tensor)] = tensor.detach().clone()
            return memo[id(tensor)]
        return func(*args, **(kwargs or {}))
