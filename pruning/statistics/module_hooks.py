"""Modules that are given something else, or whose inputs are looked at, while a block runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from pruning.containers import Inputs, as_call
from pruning.errors import PlanError
from pruning.graph.dispatch import examples_of
from pruning.graph.groups import Slice
from pruning.graph.rules.call import tensors_in

Change = Callable[[str, Tensor, int], Tensor]
"""(weights, what their module reads, axis of its channels) -> what it is to read instead."""


def owner_of(model: nn.Module, weight: str) -> nn.Module | None:
    """Return the convolution or linear module that owns weights; None if they are used some other way."""
    path, _, attribute = weight.rpartition(".")
    module = model.get_submodule(path)
    if attribute == "weight" and isinstance(module, nn.Linear | nn.modules.conv._ConvNd):
        return module
    return None


@contextmanager
def changed_inputs(model: nn.Module, readers: Iterable[str], change: Change) -> Iterator[None]:
    """Change what each consumer's module reads while the block runs.

    What others read of the same tensor stays as it is.
    """
    handles = []
    for weight in readers:
        module = owner_of(model, weight)
        if module is not None:
            handles.append(module.register_forward_pre_hook(_hook(weight, module, change)))
    with hooked(handles):
        yield


def _hook(weight: str, module: nn.Module, change: Change) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]]:
    def hook(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        axis = args[0].ndim - 1 if isinstance(module, nn.Linear) else args[0].ndim - len(module.kernel_size) - 1  # type: ignore[arg-type]
        return (change(weight, args[0], axis), *args[1:])

    return hook


def module_channels(module: nn.Module, piece: Slice) -> Tensor:
    """Tell which channel of a group lies at each input channel of a convolution or linear module; -1 where none."""
    channels = piece.channels()
    if isinstance(module, nn.modules.conv._ConvNd) and not module.transposed:
        return channels.repeat(module.groups)
    return channels


def input_shapes(model: nn.Module, modules: Sequence[nn.Module], examples: Inputs) -> dict[int, torch.Size]:
    """Return the shape of what each module is given first."""
    shapes: dict[int, torch.Size] = {}

    def look(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if inputs and isinstance(inputs[0], Tensor):
            shapes.setdefault(id(module), inputs[0].shape)

    with hooked([module.register_forward_pre_hook(look) for module in modules]):
        run_each(model, examples)
    return shapes


@contextmanager
def hooked(handles: Sequence[RemovableHandle]) -> Iterator[None]:
    """Remove hooks at the end."""
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def run_each(model: nn.Module, examples: Inputs) -> None:
    """Run a model on each of some examples, without gradients."""
    for example in examples_of(examples):
        args, kwargs = as_call(example)
        with torch.no_grad():
            model(*args, **kwargs)


def reached(
    model: nn.Module, source: nn.Module, axis: int, size: int, ends: Sequence[nn.Module], examples: Inputs
) -> list[nn.Module]:
    """Return which modules are given something else where a module gives something else, and nothing in between is.

    What the modules give is held at what it was, so that a change goes no further than to the first of them.

    Args:
        model: The model.
        source: What gives something else.
        axis: Of its output, along which the channels lie.
        size: Number of channels.
        ends: Modules that are looked at.
        examples: What the model is given.

    Raises:
        PlanError: Its output has no such axis.
    """
    held: dict[int, list[tuple[list[Tensor], Any]]] = {id(end): [] for end in ends}
    found: dict[int, nn.Module] = {}

    def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], outputs: Any) -> None:
        held[id(module)].append(([one.clone() for one in tensors_in(args, kwargs)], outputs))

    with hooked([end.register_forward_hook(keep, with_kwargs=True) for end in ends]):
        run_each(model, examples)
    turns = {key: iter(calls) for key, calls in held.items()}
    moved = torch.linspace(0.5, 1.5, size)

    def move(module: nn.Module, _inputs: tuple[Any, ...], outputs: Tensor) -> Tensor:
        shape = [1] * outputs.ndim
        if outputs.ndim <= axis or outputs.shape[axis] != size:
            raise PlanError(f"it can't be told on which axis of what a {type(module).__name__} gives its channels lie")
        shape[axis] = size
        return outputs + moved.to(outputs).reshape(shape)

    def hold(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], _outputs: Any) -> Any:
        inputs, outputs = next(turns[id(module)])
        given = tensors_in(args, kwargs)
        if any(not torch.equal(one, other) for one, other in zip(given, inputs, strict=True)):
            found[id(module)] = module
        return outputs

    with hooked(
        [
            source.register_forward_hook(move),
            *(end.register_forward_hook(hold, with_kwargs=True) for end in ends),
        ]
    ):
        run_each(model, examples)
    return list(found.values())
