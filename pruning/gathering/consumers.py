"""Where a group's activations are read: the inputs of the layers that consume it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from pruning.gathering.observation import Observer
from pruning.structure.groups import Group, Groups, Slice
from pruning.structure.layers import LayerCall, input_channels
from pruning.structure.slices import places_of

Readers = Mapping[str, list[tuple[Group, Slice]]]
"""weights -> the groups that they consume, each with its slice."""


def readers_of(groups: Groups) -> Readers:
    """Return which weights consume which groups."""
    found: dict[str, list[tuple[Group, Slice]]] = {}
    for group in groups:
        for piece in group.slices:
            if piece.role == "consumer":
                found.setdefault(piece.parameter, []).append((group, piece))
    return found


def by_channel(values: Tensor, channels: Tensor, size: int) -> Tensor | None:
    """Arrange [samples, channels of a layer, positions] by a group's channels, [samples, size, positions].

    Returns:
        None where the channels have unequal numbers of places.
    """
    places = places_of(channels, size)
    return None if places is None else values[:, places.to(values.device)].flatten(2)


class ConsumerObserver(Observer):
    """An observer of what consumers read. It knows which groups it could not see whole, and why."""

    def __init__(self, groups: Groups) -> None:
        self.groups = groups
        self._readers = readers_of(groups)
        self._refused: dict[str, str] = {}
        self._seen: set[tuple[str, str]] = set()

    def on_layer(self, call: LayerCall) -> None:
        """Hand each group that the layer consumes to `on_consumer`."""
        for group, piece in self._readers.get(call.weight, ()):
            self._seen.add((group.name, call.weight))
            if piece.axis != call.geometry.input_axis:
                self.refuse(group, f"{call.weight} is read along axis {piece.axis}, which is not its input's")
            elif group.name not in self._refused:
                self.on_consumer(group, piece, call)

    def on_consumer(self, group: Group, piece: Slice, call: LayerCall) -> None:
        """Be told that a layer reads a group."""

    def refuse(self, group: Group, reason: str) -> None:
        """Note why a group has no values."""
        self._refused.setdefault(group.name, reason)

    def values(self, group: Group, piece: Slice, call: LayerCall) -> Tensor | None:
        """Return what the layer reads by the group's channels, [samples, size, positions]; None if refused."""
        found = by_channel(call.channels_first(), input_channels(piece, call.geometry), group.size)
        if found is None:
            self.refuse(group, f"its channels have unequal numbers of places in what {call.weight} reads")
        return found

    def reason(self, group: Group) -> str | None:
        """Return why a group has no values; None if it has."""
        consumers = [piece.parameter for piece in group.slices if piece.role == "consumer"]
        if not consumers:
            return "no layer's weights read its channels"
        for name in consumers:
            if (group.name, name) not in self._seen:
                return f"{name} consumes it, but not as the weights of a convolution or linear layer"
        return self._refused.get(group.name)


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
def changed_inputs(model: nn.Module, readers: Readers, change: Change) -> Iterator[None]:
    """Change what each consumer's module reads while the block runs.

    What others read of the same tensor stays as it is.
    """
    handles = []
    for weight in readers:
        module = owner_of(model, weight)
        if module is not None:
            handles.append(module.register_forward_pre_hook(_hook(weight, module, change)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


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


def unowned(model: nn.Module, group: Group) -> str | None:
    """Return why a group's consumers can't be hooked; None if they can."""
    consumers = [piece for piece in group.slices if piece.role == "consumer"]
    if not consumers:
        return "no layer's weights read its channels"
    for piece in consumers:
        if owner_of(model, piece.parameter) is None:
            return f"{piece.parameter} consumes it, but by a function: it belongs to no convolution or linear module"
    return None
