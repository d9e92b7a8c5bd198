"""What a gatherer is; and what reads a group's channels: which layers by their weights, and which other operators.

To read channels is to sum over them, or to compute a statistic over them. The trace says which operators do.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from pruning.containers import Inputs, as_call, count_samples, with_tensors
from pruning.errors import CriterionError
from pruning.evaluation import device_of
from pruning.graph.axes import leaves
from pruning.graph.groups import Group, Groups, Slice
from pruning.graph.layers import LayerCall, input_channels, is_product, places_of
from pruning.graph.recurrent import is_recurrent
from pruning.graph.trace import Operation
from pruning.statistics.layer_hooks import Observer, OperatorCall, observe
from pruning.statistics.module_hooks import owner_of


@dataclass(frozen=True)
class Batch:
    """Some of the samples.

    Attributes:
        inputs: what the model is given, on its device: a tensor, a tuple or a dict, all tensors [N, ...].
        targets: a tensor [N, ...], or a tuple or dict of several; None where the samples have none.
        generator: on the CPU, for gatherers that draw.
        number: among all batches.
        shard: of the samples, to which it belongs.
    """

    inputs: Inputs
    targets: Any
    generator: torch.Generator
    number: int = 0
    shard: int = 0

    @property
    def num_samples(self) -> int:
        """N."""
        return count_samples(self.inputs)

    def run(self, model: Callable[..., Any]) -> Any:
        """Return what a model makes of the inputs."""
        args, kwargs = as_call(self.inputs)
        return model(*args, **kwargs)

    def labels(self) -> Any:
        """Return the targets.

        Raises:
            CriterionError: there are none.
        """
        if self.targets is None:
            raise CriterionError("the criterion needs the loss: pass samples with targets, not inputs alone")
        return self.targets


@dataclass(frozen=True)
class Uncounted:
    """Why a group has no values.

    Attributes:
        kind: The reason, the same for all groups of this kind.
        where: What it is about in this group, such as the weights that read it.
    """

    kind: str
    where: str = ""

    def __str__(self) -> str:
        return f"{self.kind} ({self.where})" if self.where else self.kind


Collected = Mapping[str, Mapping[str, Tensor | Uncounted]]
"""need -> group name -> [size] values, or the reason why this group has none."""


class Summing:
    """What adds up over batches, and over shards of them.

    Attributes:
        SUMS: the attributes that add up, as `pruning.world.joined` adds them.
    """

    SUMS: ClassVar[tuple[str, ...]] = ()

    def sums(self) -> dict[str, Any]:
        """Return what was added up."""
        return {name: getattr(self, name) for name in self.SUMS}

    def go_on_from(self, sums: Mapping[str, Any]) -> None:
        """Put what was added up in the place of these sums."""
        for name in self.SUMS:
            setattr(self, name, sums[name])


class Collector(Summing, ABC):
    """Adds up statistics over batches.

    Attributes:
        NEEDS: what it gathers, by the names that criteria ask for it by.
        in_order: whether what it does with a batch depends on what it learned from those before.
    """

    NEEDS: ClassVar[tuple[str, ...]]
    in_order: ClassVar[bool] = False

    @abstractmethod
    def update(self, batch: Batch) -> None:
        """Add a batch."""

    @abstractmethod
    def compute(self) -> Collected:
        """Return what was gathered, float64 on the CPU."""


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


class _LayerCalls(Observer):
    """How often a pass calls operators of each name, and the weights of the layers among the calls."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.weights: dict[tuple[str, int], set[str]] = {}

    def on_operation(self, call: OperatorCall, layers: Sequence[LayerCall]) -> None:
        self.calls[call.name] += 1
        self.weights[call.name, call.number] = {layer.weight for layer in layers}


def numbered(operations: Sequence[Operation]) -> list[tuple[str, int]]:
    """Return the name of each operation of a trace, and how many of that name came before."""
    calls: Counter[str] = Counter()
    found = []
    for operation in operations:
        found.append((operation.name, calls[operation.name]))
        calls[operation.name] += 1
    return found


_other_readers: WeakKeyDictionary[Groups, dict[int, tuple[Group, ...]]] = WeakKeyDictionary()


def other_readers(groups: Groups) -> Mapping[int, tuple[Group, ...]]:
    """Return which operators read which groups in another way than a layer reads by its weights.

    To read channels is to sum over them, or to compute a statistic over them. The model is run on its example. The
    products within a recurrent layer are layers for the groups that layers alone read. For any other group it is an
    operator like those: what gives its gates has no place in the model's outputs at which errors could be compared.

    Returns:
        The place among the trace's operations -> the groups.
    """
    if groups not in _other_readers:
        _other_readers[groups] = _find_other_readers(groups)
    return _other_readers[groups]


def _find_other_readers(groups: Groups) -> dict[int, tuple[Group, ...]]:
    by_atom = {groups.atom(group.name): group for group in groups}
    seen = _LayerCalls()
    device = device_of(groups.model)
    example = with_tensors(groups.example_inputs, lambda tensor: tensor.to(device))
    observe(groups.model, example, [seen], recurrent=True)
    places = numbered(groups.trace.operations)
    calls = Counter(name for name, _ in places)
    readers = readers_of(groups)
    read: dict[int, tuple[Group, ...]] = {}
    found: dict[int, tuple[Group, ...]] = {}
    for index, operation in enumerate(groups.trace.operations):
        atoms = dict.fromkeys(atom for axis in operation.summed for atom in leaves(axis) if atom in by_atom)
        same = seen.calls[operation.name] == calls[operation.name]
        layers = seen.weights[places[index]] if same else _weights_of(operation, groups)
        counted = {group.name for weight in layers for group, _ in readers.get(weight, ())}
        read[index] = tuple(by_atom[atom] for atom in atoms)
        found[index] = tuple(group for group in read[index] if group.name not in counted)
    otherwise = {group.name for others in found.values() for group in others}
    for index, operation in enumerate(groups.trace.operations):
        if is_recurrent(operation.name):
            found[index] = tuple(group for group in read[index] if group.name in otherwise)
    return {index: others for index, others in found.items() if others}


def _weights_of(operation: Operation, groups: Groups) -> set[str]:
    """Return the parameters by which an operator of the trace is a layer: where its operators have other numbers."""
    found = set()
    for axes in operation.inputs[1:] if is_product(operation.name) or is_recurrent(operation.name) else ():
        for name, known in groups.trace.parameters.items():
            if len(axes) == len(known) and all(a is b for a, b in zip(axes, known, strict=True)):
                found.add(name)
    return found


NOT_BY_SAMPLE = "the samples do not lie on axis 0 of what a layer reads"
UNEQUAL = "its channels have unequal numbers of places in what a layer reads"
NO_LAYERS_WEIGHTS = "a parameter consumes it, but not as the weights of a convolution or linear layer"
BY_A_FUNCTION = "a parameter consumes it, but by a function: it belongs to no convolution or linear module"
NO_READER = "nothing reads its channels"
BY_NO_LAYER = "an operator that is no convolution or linear layer reads its channels"


def other_reader_of(groups: Groups, group: Group) -> Uncounted | None:
    """Return the first operator that is no layer and reads a group, as the reason why layers alone don't tell."""
    for index, others in other_readers(groups).items():
        if any(other.name == group.name for other in others):
            operation = groups.trace.operations[index]
            return Uncounted(BY_NO_LAYER, f"{operation.name} {operation.place}")
    return None


def by_channel(values: Tensor, channels: Tensor, size: int) -> Tensor | None:
    """Arrange [samples, channels of a layer, positions] by a group's channels, [samples, size, positions].

    Returns:
        None where the channels have unequal numbers of places.
    """
    places = places_of(channels, size)
    return None if places is None else values[:, places.to(values.device)].flatten(2)


class ConsumerObserver(Observer, Summing):
    """An observer of what consumers read. It knows which groups it could not see whole, and why."""

    SUMS: ClassVar[tuple[str, ...]] = ("_refused", "_seen")

    def __init__(self, groups: Groups) -> None:
        self.groups = groups
        self._readers = readers_of(groups)
        self._refused: dict[str, Uncounted] = {}
        self._seen: set[tuple[str, str]] = set()

    def on_layer(self, call: LayerCall) -> None:
        """Hand each group that the layer consumes to `on_consumer`."""
        for group, piece in self._readers.get(call.weight, ()):
            self._seen.add((group.name, call.weight))
            if piece.axis != call.geometry.input_axis:
                self.refuse(group, "a layer reads it along another axis than its input's", call.weight)
            elif group.name not in self._refused:
                self.on_consumer(group, piece, call)

    def on_consumer(self, group: Group, piece: Slice, call: LayerCall) -> None:
        """Be told that a layer reads a group."""

    def refuse(self, group: Group, kind: str, where: str) -> None:
        """Note why a group has no values."""
        self._refused.setdefault(group.name, Uncounted(kind, where))

    def values(self, group: Group, piece: Slice, call: LayerCall) -> Tensor | None:
        """Return what the layer reads by the group's channels, [samples, size, positions]; None if refused."""
        found = by_channel(call.channels_first(), input_channels(piece, call.geometry), group.size)
        if found is None:
            self.refuse(group, UNEQUAL, call.weight)
        return found

    def reason(self, group: Group) -> Uncounted | None:
        """Return why a group has no values; None if it has."""
        consumers = [piece.parameter for piece in group.slices if piece.role == "consumer"]
        for name in consumers:
            if (group.name, name) not in self._seen:
                return Uncounted(NO_LAYERS_WEIGHTS, name)
        if not consumers:
            return other_reader_of(self.groups, group) or Uncounted(NO_READER)
        return self._refused.get(group.name) or other_reader_of(self.groups, group)


def unowned(groups: Groups, group: Group) -> Uncounted | None:
    """Return why a group's consumers can't be hooked; None if they can."""
    consumers = [piece for piece in group.slices if piece.role == "consumer"]
    for piece in consumers:
        if owner_of(groups.model, piece.parameter) is None:
            return Uncounted(BY_A_FUNCTION, piece.parameter)
    return other_reader_of(groups, group) or (None if consumers else Uncounted(NO_READER))
