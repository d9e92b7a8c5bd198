"""Copy a module tree while choosing what stands in place of its tensors."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import TypeVar

from torch import Tensor, nn

from pruning.errors import ModelError

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
    memo = {id(t): t for t in (*model.parameters(), *model.buffers())} | dict(tensors or {})
    try:
        return deepcopy(model, memo)
    except Exception as fault:
        raise ModelError(
            f"{type(model).__name__} can't be copied: {fault}. A module may hold only what copy.deepcopy can copy: "
            "no open files, no generators, no tensors that were computed with gradients"
        ) from fault
