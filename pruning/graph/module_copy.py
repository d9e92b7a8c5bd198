"""Copy a module tree while choosing what stands in place of its tensors; and what stands in place of modules."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

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


class _Hollow(nn.Module):
    """Stands where a module stood, with its plain attributes, which code around it may read, and no tensors."""

    def __init__(self, replaced: nn.Module) -> None:
        super().__init__()
        plain = {k: v for k, v in vars(replaced).items() if v is None or isinstance(v, bool | int | float | str)}
        vars(self).update({name: value for name, value in plain.items() if name not in vars(self)})
        for name in (*replaced._parameters, *replaced._buffers):
            self.register_parameter(name, None)
        for name, child in replaced.named_children():
            self.add_module(name, _Hollow(child))
        self.training = replaced.training


class _InPlace(_Hollow):
    """Returns what a module returned, in the same container."""

    def __init__(self, replaced: nn.Module, result: Any) -> None:
        super().__init__(replaced)
        self._result = tree_map(lambda leaf: _Dims(leaf.ndim) if isinstance(leaf, Tensor) else leaf, result)

    def _give(self, make: Callable[[int], Tensor]) -> Any:
        return tree_map(lambda leaf: make(leaf.number) if isinstance(leaf, _Dims) else leaf, self._result)


def removed_tensors(model: nn.Module) -> set[str]:
    """Return the names of the parameters and buffers that blocks had which are gone from a model."""
    hollow = ((path, module) for path, module in model.named_modules() if isinstance(module, _Hollow))
    return {f"{path}.{name}" for path, module in hollow for name in module._parameters}


@dataclass(frozen=True)
class _Dims:
    """Stands for a tensor in what a module returned."""

    number: int


class NoBranch(_InPlace):
    """Gives zeros that broadcast, [1, ..., 1], in whatever container the module returned its tensors."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Give zeros of the type of the first tensor of floating point."""
        like = next(v for v in (*args, *kwargs.values()) if isinstance(v, Tensor) and v.is_floating_point())
        return self._give(lambda dims: like.new_zeros([1] * dims))


class PassOn(_InPlace):
    """Gives the first tensor that it is given, after functions of single values: operators and their constants."""

    def __init__(self, replaced: nn.Module, result: Any, functions: Sequence[tuple[Any, tuple[Any, ...]]] = ()) -> None:
        super().__init__(replaced, result)
        self.functions = tuple(functions)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Give the first tensor."""
        found = next(v for v in (*args, *kwargs.values()) if isinstance(v, Tensor))
        for function, constants in self.functions:
            found = function(found, *constants)
        return self._give(lambda _dims: found)
