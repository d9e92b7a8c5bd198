"""Run one forward pass on tensors that have shapes and no values, and see every operator it calls.

Nothing is computed and no weight is read. The pass runs below autograd, where operators arrive whole (`linear`,
`scaled_dot_product_attention`, `lstm`) and are decomposed only where no rule knows them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from pruning.attention import narrowable
from pruning.conditions import in_mode, module_paths, no_attention_fastpath, quiet, remember, seeded
from pruning.rules import find_rule
from pruning.rules.call import is_pointwise, operator_name
from pruning.written import Calls, Listen, Written, calling_frame, line_of

Inputs = Tensor | Sequence[Any] | Mapping[str, Any]


@dataclass(frozen=True)
class Place:
    """Where an operator was called: the module's path, the line of code, and the function of PyTorch it called."""

    module: str
    line: str
    written: Written | None = field(default=None, compare=False, repr=False)

    def __str__(self) -> str:
        return f"in {'module ' + repr(self.module) if self.module else 'the model itself'} at {self.line}"


OnCall = Callable[[Any, Sequence[Any], dict[str, Any], Any, Place], None]


class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it untyped
    """Hand every operator of a forward pass to `on_call`, decomposing those that have no rule."""

    def __init__(self, on_call: OnCall, path: list[str], listen: Listen) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.on_call = on_call
        self.path = path
        self.listen = listen

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "prim":
            return func(*args, **kwargs)
        if find_rule(func) is None and not is_pointwise(func):
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        place = Place(self.path[-1] if self.path else "", line_of(calling_frame()), self.listen.current)
        try:
            result = func(*args, **kwargs)
        except (DataDependentOutputException, DynamicOutputShapeException):
            raise
        except Exception as fault:
            fault.add_note(f"raised by {operator_name(func)} {place}")
            raise
        for tensor in (leaf for leaf in tree_flatten(result)[0] if isinstance(leaf, Tensor)):
            if isinstance(tensor, FakeTensor):
                remember(tensor)
            elif torch.Tag.nondeterministic_seeded in func.tags and tensor.is_floating_point():
                tensor.fill_(0.5)  # code that branches on a random number takes the same branch at any width
        self.on_call(func, args, kwargs, result, place)
        return result


def _as_fake(tensor: Tensor, device: torch.device, mode: FakeTensorMode) -> Tensor:
    """Make a fake tensor of the same shape; where nothing else shares its memory, without torch's costly conversion."""
    plain = type(tensor) in (Tensor, nn.Parameter) and tensor.layout == torch.strided
    if not plain or tensor.untyped_storage().nbytes() != tensor.numel() * tensor.element_size():
        return mode.from_tensor(tensor)
    shape = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
    return FakeTensor(mode, shape, device)


def as_call(inputs: Inputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Turn example inputs (a tensor, a tuple, or a dict of keyword arguments) into args and kwargs."""
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    if isinstance(inputs, Tensor):
        return (inputs,), {}
    return tuple(inputs), {}


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """All parameters and buffers by name, tied ones under each of their names."""
    return {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }


def watch(
    model: nn.Module,
    example_inputs: Inputs,
    begin: Callable[[dict[str, Tensor], list[Tensor]], None],
    on_call: OnCall,
    fake: bool,
    devices: Mapping[str, torch.device] | None = None,
    training: bool = False,
) -> list[Tensor]:
    """Run one forward pass, in eval mode unless `training`, without autograd, handing each operator to `on_call`.

    Args:
        model: Any module; it is left as it was.
        example_inputs: A tensor, a tuple of arguments, or a dict of keyword arguments.
        begin: Called with the state and the input tensors that the pass runs on.
        on_call: Called for each operator.
        fake: Run on fake tensors; otherwise on copies of the real ones (for data-dependent control flow).
        devices: Devices on which the state is to lie, where the model's own tensors have shapes only.
        training: Run in training mode.

    Returns:
        The tensors among the outputs.
    """
    real = state_of(model)
    args, kwargs = as_call(example_inputs)
    with ExitStack() as stack:
        stack.enter_context(in_mode(model, training))
        stack.enter_context(no_attention_fastpath())
        stack.enter_context(narrowable(model))
        stack.enter_context(quiet())
        stack.enter_context(seeded())
        path: list[str] = []
        calls: list[Calls] = []
        stack.enter_context(module_paths(model, path, calls))
        mode = FakeTensorMode(allow_non_fake_inputs=True) if fake else None
        made: dict[int, Tensor] = {}

        def convert(t: Tensor, device: torch.device) -> Tensor:
            if id(t) not in made:
                made[id(t)] = t.detach().clone() if mode is None else _as_fake(t, device, mode)
            return made[id(t)]

        state = {name: convert(t, (devices or {}).get(name, t.device)) for name, t in real.items()}
        args, kwargs = tree_map(lambda v: convert(v, v.device) if isinstance(v, Tensor) else v, (args, kwargs))
        if mode is not None:
            stack.enter_context(mode)
        begin(state, [v for v in tree_flatten((args, kwargs))[0] if isinstance(v, Tensor)])
        stack.enter_context(torch.no_grad())
        stack.enter_context(torch._C._AutoDispatchBelowAutograd())
        listen = stack.enter_context(Listen(calls))
        stack.enter_context(Watch(on_call, path, listen))
        result = torch.func.functional_call(model, state, args, kwargs)
    return [v for v in tree_flatten(result)[0] if isinstance(v, Tensor)]
