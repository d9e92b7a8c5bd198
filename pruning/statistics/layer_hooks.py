"""Run a model and see what each of its layers reads and gives."""

from __future__ import annotations

import re
import weakref
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from pruning.containers import Inputs
from pruning.graph.dispatch import Listeners, Place, watch
from pruning.graph.layers import Geometry, LayerCall, read_call
from pruning.graph.recurrent import read_recurrent
from pruning.graph.rules.call import operator_name, tensors_in
from pruning.graph.trace import IDENTITIES

RECTIFIERS = frozenset({"relu", "hardtanh", "threshold", "clamp_min"})
"""Operators after which what was negative is zero; ReLU6 is a `hardtanh`."""


class Enough(Exception):  # noqa: N818 - a signal, no fault of anyone
    """Raised by an observer that needs no more of the pass."""


@dataclass(frozen=True)
class OperatorCall:
    """A call of an operator.

    Attributes:
        name: The operator's name.
        number: How many calls of operators of this name came before. So calls can be told from one another although
            PyTorch copies a tensor in one pass, before a view, and not in another.
        func: The operator.
        args: Its arguments.
        kwargs: Its keyword arguments.
        result: What it gave.
        reads: Names of the parameters and buffers among its arguments.
    """

    name: str
    number: int
    func: Any
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    result: Any
    reads: tuple[str, ...] = ()


class Observer:
    """What is told of a forward pass; override what is of interest."""

    def on_layer(self, call: LayerCall) -> None:
        """Be told of a layer's call."""

    def on_operation(self, call: OperatorCall, layers: Sequence[LayerCall]) -> None:
        """Be told of any operator's call, and of the layers' that it is: several where it is a recurrent layer."""

    def on_norm(self, weight: str, running_mean: str) -> None:
        """Be told that a batch norm reads what the layer with these weights gave."""

    def on_sum(self, weight: str, _total: Tensor, _place: str) -> None:
        """Be told of a sum of what a layer gave, or the batch norm after it, with something else of that shape.

        The place is the path of the module that adds.
        """

    def on_rectifier(self, index: int, outputs: Tensor) -> None:
        """Be told of the outputs of the index-th rectifier of the pass."""


def observe(
    model: nn.Module,
    inputs: Inputs,
    observers: Sequence[Observer],
    *,
    parts: bool = False,
    recurrent: bool = False,
) -> list[Tensor]:
    """Run one forward pass in evaluation mode, without gradients, and tell the observers.

    An observer that raises `Enough` ends the pass.

    Args:
        model: what to run.
        inputs: what to run it on.
        observers: what to tell.
        parts: tell of layers whose weights are an equal part of a parameter's rows too, by `name[index/count]`, such as
            the query's third of a packed projection.
        recurrent: tell of the products within recurrent layers too, as layers with weights of these names.

    Returns:
        The tensors that the outputs hold; none where the pass was ended.
    """
    watcher = Watcher(observers, parts, recurrent)
    try:
        return watch(model, inputs, Listeners(watcher.on_call, watcher.begin), tensors="real", steady=False)
    except Enough:
        return []


class Watcher:
    """Tells observers of the calls of a pass, once it knows the state that the pass runs on.

    Args:
        observers: What to tell.
        parts: See `observe`.
        recurrent: Likewise.
    """

    def __init__(self, observers: Sequence[Observer], parts: bool, recurrent: bool) -> None:
        self._observers = observers
        self._with_parts, self._with_recurrent = parts, recurrent
        self._parts: list[Tensor] = []
        self._names: dict[int, str] = {}
        self._state: dict[str, Tensor] = {}
        self._made_by: dict[int, tuple[weakref.ref[Tensor], str]] = {}
        self._rectifiers = 0
        self._calls: Counter[str] = Counter()

    def begin(self, state: dict[str, Tensor], _inputs: Sequence[Tensor] = ()) -> None:
        """Learn the names of the state's tensors."""
        self._state = state  # kept alive: a name belongs to the identity of a tensor
        for name, tensor in state.items():
            self._names.setdefault(id(tensor), name)

    def on_call(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any], result: Any, place: Place) -> None:
        """Be told of a call."""
        name = operator_name(func)
        layers: list[LayerCall] = []
        if name in RECTIFIERS:
            for observer in self._observers:
                observer.on_rectifier(self._rectifiers, result)
            self._rectifiers += 1
        elif name == "batch_norm":
            self._on_norm(args, result)
        elif name == "add":
            self._on_sum(args, result, place.module)
        elif name not in IDENTITIES:
            if self._with_parts and name == "linear":
                self._name_parts([given for given in args[1:] if isinstance(given, Tensor)])
            layer = read_call(func, args, kwargs, result, self._names)
            if layer is not None:
                self._remember(result, layer.weight)
            within = read_recurrent(func, args, kwargs, result, self._names) if self._with_recurrent else ()
            for call in within if layer is None else (layer,):
                layers.append(call)
                for observer in self._observers:
                    observer.on_layer(call)
        if name not in IDENTITIES and tensors_in(result):
            reads = tuple(self._names[id(one)] for one in tensors_in(args, kwargs) if id(one) in self._names)
            for observer in self._observers:
                observer.on_operation(OperatorCall(name, self._calls[name], func, args, kwargs, result, reads), layers)
            self._calls[name] += 1

    def _name_parts(self, tensors: Sequence[Tensor]) -> None:
        """Name tensors that are an equal part of a parameter's rows."""
        for tensor in tensors:
            for name, whole in self._state.items() if id(tensor) not in self._names else ():
                index = _place_in(tensor, whole)
                if index is not None:
                    self._names[id(tensor)] = f"{name}[{index}/{len(whole) // len(tensor)}]"
                    self._parts.append(tensor)  # kept alive: a name belongs to the identity of a tensor
                    break

    def _on_norm(self, args: Sequence[Any], result: Tensor) -> None:
        weight = self._maker(args[0])
        running_mean = self._names.get(id(args[3]))
        if weight is not None and running_mean is not None:
            self._remember(result, weight)
            for observer in self._observers:
                observer.on_norm(weight, running_mean)

    def _on_sum(self, args: Sequence[Any], result: Tensor, place: str) -> None:
        addends = [term for term in args[:2] if isinstance(term, Tensor)]
        if len(addends) == 2 and addends[0].shape == addends[1].shape:
            for addend in addends:
                weight = self._maker(addend)
                if weight is not None:
                    for observer in self._observers:
                        observer.on_sum(weight, result, place)

    def _remember(self, tensor: Tensor, weight: str) -> None:
        self._made_by[id(tensor)] = (weakref.ref(tensor), weight)

    def _maker(self, tensor: Tensor) -> str | None:
        reference, weight = self._made_by.get(id(tensor), (None, None))
        return weight if reference is not None and reference() is tensor else None


def _place_in(tensor: Tensor, whole: Tensor) -> int | None:
    """Say which of the equal parts of a tensor's rows another one is a view of; None if of none."""
    rows = len(tensor) if tensor.ndim else 0
    alike = tensor.ndim == whole.ndim and tensor.shape[1:] == whole.shape[1:] and tensor.stride() == whole.stride()
    if not alike or not rows or len(whole) % rows or tensor.untyped_storage()._cdata != whole.untyped_storage()._cdata:
        return None
    index, within = divmod(int(tensor.storage_offset() - whole.storage_offset()), rows * tensor.stride(0))
    return None if within else index


def parameter_of(name: str) -> tuple[str, int, int]:
    """Return the parameter that a layer's weights are a part of, which part, and of how many."""
    found = re.fullmatch(r"(.+)\[(\d+)/(\d+)\]", name)
    return (found[1], int(found[2]), int(found[3])) if found else (name, 0, 1)


@dataclass(frozen=True)
class Layer:
    """A layer as one forward pass used it.

    Attributes:
        weight: name of its weights.
        bias: name of its bias.
        geometry: how it reads its input.
        num_calls: how often it was called.
        running_mean: of the batch norm that reads all it gives; None if there is none.
        summed: whether all that it gives, or that batch norm, goes into a sum with something of the same shape.
        sums: paths of the modules that add these sums.
        tied: whether something that is no layer reads its weights too, such as an embedding.
        recurrent: as of a call.
    """

    weight: str
    bias: str | None
    geometry: Geometry
    num_calls: int
    running_mean: str | None
    summed: bool
    sums: tuple[str, ...] = ()
    tied: bool = False
    recurrent: Literal["input", "state"] | None = None

    @property
    def parameters(self) -> tuple[str, ...]:
        """The parameters that hold its weights and bias, and the running mean, of what there is."""
        return tuple(parameter_of(name)[0] for name in (self.weight, self.bias, self.running_mean) if name is not None)


class _Census(Observer):
    def __init__(self) -> None:
        self.first: dict[str, LayerCall] = {}
        self.calls: Counter[str] = Counter()
        self.norms: dict[str, list[str]] = {}
        self.sums: dict[str, list[str]] = {}
        self.read_otherwise: set[str] = set()

    def on_operation(self, call: OperatorCall, layers: Sequence[LayerCall]) -> None:
        self.read_otherwise.update(set(call.reads).difference(layer.weight for layer in layers))

    def on_layer(self, call: LayerCall) -> None:
        self.first.setdefault(call.weight, call)
        self.calls[call.weight] += 1

    def on_norm(self, weight: str, running_mean: str) -> None:
        self.norms.setdefault(weight, []).append(running_mean)

    def on_sum(self, weight: str, _total: Tensor, place: str) -> None:
        self.sums.setdefault(weight, []).append(place)


def find_layers(model: nn.Module, inputs: Inputs, *, parts: bool = False, recurrent: bool = False) -> tuple[Layer, ...]:
    """Return the layers that a forward pass calls, in the order of their first calls; see `observe`."""
    census = _Census()
    observe(model, inputs, [census], parts=parts, recurrent=recurrent)
    uses = Counter(name for means in census.norms.values() for name in means)
    layers = []
    for weight, count in census.calls.items():
        means = census.norms.get(weight, [])
        alone = len(means) == count and len(set(means)) == 1 and uses[means[0]] == count
        call, sums, tied = census.first[weight], tuple(census.sums.get(weight, ())), weight in census.read_otherwise
        summed = len(sums) == count and (alone or not means)
        mean = means[0] if alone else None
        layers.append(Layer(weight, call.bias, call.geometry, count, mean, summed, sums, tied, call.recurrent))
    return tuple(layers)
