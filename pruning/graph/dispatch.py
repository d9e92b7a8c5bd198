"""Run one forward pass on tensors that have shapes and no values, and see every operator it calls.

Nothing is computed and no weight is read: the tensors lie on the meta device, or are fake ones where code minds the
device, or copies of the real ones where it minds the values. The pass runs below autograd, where operators arrive whole
(`linear`, `scaled_dot_product_attention`, `lstm`) and are decomposed only where no rule knows them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from pruning.containers import Inputs as Inputs
from pruning.containers import as_call as as_call
from pruning.containers import find_tensors, outputs_in, with_tensors
from pruning.errors import ModelError
from pruning.graph.computed_sizes import Calls, Listen, SizeArgument, calling_frame, line_of
from pruning.graph.contexts import (
    OnModule,
    in_mode,
    module_paths,
    no_attention_fastpath,
    quiet,
    remember,
    seeded,
    whole_operators,
)
from pruning.graph.module_copy import narrowable
from pruning.graph.rules import find_rule
from pruning.graph.rules.call import is_pointwise, operator_name, tensors_in

# What the tensors of a pass are: the fastest first, the most tolerant last.
Tensors = Literal["meta", "fake", "real"]


@dataclass(frozen=True)
class Place:
    """Where an operator was called: the module's path, the line of code, and the function of PyTorch it called.

    Sent to another process it lacks the last one, which holds code. So groups serve statistics and reconstruction
    there; narrowing by them, where the model's code works out sizes, fails its verification.
    """

    module: str
    line: str
    written: SizeArgument | None = field(default=None, compare=False, repr=False)

    def __reduce__(self) -> tuple[Any, ...]:
        """Be sent without code."""
        return Place, (self.module, self.line)

    def __str__(self) -> str:
        return f"in {'module ' + repr(self.module) if self.module else 'the model itself'} at {self.line}"


OnCall = Callable[[Any, Sequence[Any], dict[str, Any], Any, Place], None]


class _Outputs(nn.Module):
    """Run a model and find the tensors in what it returns while its state is in place, as a generator needs it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
        return outputs_in(self.model, self.model(*args, **kwargs))


class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it untyped
    """Hand every operator of a forward pass to `on_call`, decomposing those that have no rule."""

    def __init__(self, on_call: OnCall, tensors: Tensors, path: list[str], listen: Listen, steady: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.steady = steady
        self.on_call = on_call
        self.tensors = tensors
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
        if torch.Tag.inplace_view in func.tags and (view := _view_of(func)) is not None:
            with self:  # what it makes of its argument shows in a tensor of its own; then the argument is that tensor
                seen = view(*args, **kwargs)
            result = func(*args, **kwargs)
            place = Place(self.path[-1] if self.path else "", line_of(calling_frame()), self.listen.current)
            self.on_call(torch.ops.aten.alias.default, (seen,), {}, result, place)
            return result
        place = Place(self.path[-1] if self.path else "", line_of(calling_frame()), self.listen.current)
        try:
            result = _on_meta(func, args, kwargs) if self.tensors == "meta" else func(*args, **kwargs)
        except (DataDependentOutputException, DynamicOutputShapeException):
            raise
        except Exception as fault:
            fault.add_note(f"raised by {operator_name(func)} {place}")
            raise
        for tensor in tensors_in(result):
            if self.tensors != "real":
                remember(tensor)
            drawn = torch.Tag.nondeterministic_seeded in func.tags and tensor.is_floating_point()
            if drawn and self.steady and not tensor.is_meta and not isinstance(tensor, FakeTensor):
                tensor.fill_(0.5)  # code that branches on a random number takes the same branch at any width
        self.on_call(func, args, kwargs, result, place)
        return result


def _view_of(func: Any) -> Any:
    """The operator that gives as a new tensor what this one makes of its argument, such as squeeze for squeeze_."""
    name = func._schema.name.removeprefix("aten::")
    packet = getattr(torch.ops.aten, name.removesuffix("_"), None) if name.endswith("_") else None
    return getattr(packet, func._overloadname, None)


def _on_meta(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Call an operator; where it meets tensors without values, what code made of numbers loses its values too."""
    tensors = tensors_in(args, kwargs)
    if any(t.is_meta for t in tensors) and not all(t.is_meta for t in tensors):
        if func._schema.is_mutable:
            raise NotImplementedError(f"{operator_name(func)} would lose what it writes")
        args, kwargs = tree_map(lambda v: v.to("meta") if isinstance(v, Tensor) else v, (args, kwargs))
    elif func._schema.name == "aten::batch_norm" and all(t.shape == tensors[0].shape[1:2] for t in tensors[1:]):
        return torch.empty_like(tensors[0])  # PyTorch takes it apart here, which is slow
    return _called_once(func, args, kwargs)


_MOST_KNOWN = 20_000  # results, a few hundred bytes each
_known: dict[Any, tuple[type[Any] | None, list[tuple[torch.Size, tuple[int, ...], torch.dtype] | None]]] = {}
_PLAIN = (int, float, complex, bool, str, type(None), torch.dtype, torch.device, torch.layout, torch.memory_format)


def _called_once(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Call an operator on tensors without values, or give what it gave for arguments of the same shapes.

    PyTorch works shapes out in Python, which is most of the time of a pass; and passes differ in a few axes.
    """
    described = None if func._schema.is_mutable else _described((tuple(args), kwargs))
    if described is None:
        return func(*args, **kwargs)
    key = (func, torch.get_default_dtype(), described)
    if key in _known:
        container, shapes = _known[key]
        made = [s and torch.empty_strided(s[0], s[1], dtype=s[2], device="meta") for s in shapes]
        return container(made) if container else made[0]
    result = func(*args, **kwargs)
    results = list(result) if isinstance(result, list | tuple) else [result]
    if any(one is not None and (type(one) is not Tensor or not one.is_meta) for one in results):
        return result
    read, made = ([one.untyped_storage()._cdata for one in tensors_in(some)] for some in ((args, kwargs), result))
    if read and len({*made}) == len(made) and set(read).isdisjoint(made):  # no view of what it was given
        if len(_known) >= _MOST_KNOWN:
            _known.clear()
        shapes = [one if one is None else (one.shape, one.stride(), one.dtype) for one in results]
        _known[key] = (type(result) if isinstance(result, list | tuple) else None, shapes)
    return result


def _described(value: Any) -> Any:
    """What the shapes of an operator's results depend on, hashable; None if that can't be told."""
    kind = type(value)
    if kind in (Tensor, nn.Parameter):
        plain = value.is_meta and value.layout == torch.strided and not (value.is_conj() or value.is_neg())
        return (value.shape, value.stride(), value.dtype) if plain else None
    if kind in (tuple, list, torch.Size):
        parts = tuple(map(_described, value))
        return None if None in parts else (kind, parts)
    if kind is dict:
        parts = tuple((name, _described(inner)) for name, inner in value.items())
        return None if any(part is None for _, part in parts) else parts
    return (kind, value) if kind in _PLAIN else None


def _convert(tensor: Tensor, device: torch.device, mode: FakeTensorMode | None) -> Tensor:
    """Make a tensor of the same shape without values: a fake one, where there is a mode for it."""
    plain = type(tensor) in (Tensor, nn.Parameter) and tensor.layout == torch.strided
    if not plain or tensor.untyped_storage().nbytes() != tensor.numel() * tensor.element_size():
        return tensor.detach().to("meta") if mode is None else mode.from_tensor(tensor)
    shape = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
    return shape if mode is None else FakeTensor(mode, shape, device)


def examples_of(inputs: Inputs) -> list[Inputs]:
    """The examples that are given: a list holds several, anything else is one.

    Raises:
        ModelError: The list is empty.
    """
    if not isinstance(inputs, list):
        return [inputs]
    if not inputs:
        raise ModelError("the list of example inputs is empty; give at least one example")
    return inputs


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """All parameters and buffers by name, tied ones under each of their names."""
    return {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }


def lacks_values(model: nn.Module) -> bool:
    """Whether some parameter or buffer lies on the meta device."""
    return any(tensor.is_meta for tensor in state_of(model).values())


@dataclass(frozen=True)
class _Copy:
    """A copy of a tensor, and the versions that both had then: each write into a tensor is a new version."""

    original: Tensor
    version: int
    copy: Tensor
    copy_version: int

    def holds(self, tensor: Tensor) -> bool:
        """Say whether it is a copy of this tensor still: neither of them has been written into."""
        versions = (self.version, self.copy_version)
        return self.original is tensor and (tensor._version, self.copy._version) == versions


_copies: ContextVar[dict[int, _Copy] | None] = ContextVar("_copies", default=None)


@contextmanager
def state_copied_once() -> Iterator[None]:
    """Let passes on real tensors share one copy of a model's state; what one of them writes into is copied again.

    Inside, the state must not be written into behind autograd's back, by `tensor.data`.
    """
    token = _copies.set({})
    try:
        yield
    finally:
        _copies.reset(token)


def _copied(tensor: Tensor) -> Tensor:
    """Return a copy of a tensor of the state: the one that is there, where passes share it."""
    known = _copies.get()
    if known is None or tensor.is_inference():
        return tensor.detach().clone()
    if id(tensor) not in known or not known[id(tensor)].holds(tensor):
        copy = tensor.detach().clone()
        if copy.is_inference():
            return copy
        known[id(tensor)] = _Copy(tensor, tensor._version, copy, copy._version)
    return known[id(tensor)].copy


def copied_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the copies of a model's parameters and buffers that passes on real tensors run on, tied ones the same."""
    return {name: _copied(tensor) for name, tensor in state_of(model).items()}


@dataclass(frozen=True)
class Listeners:
    """What is told of a pass.

    Attributes:
        on_call: Called for each operator.
        begin: Called with the state and the input tensors that the pass runs on.
        on_leaving: Called for each tensor whose values are handed to code outside PyTorch.
        on_module: Called at the end of each module's call, with its path, its caller's, arguments and result.
    """

    on_call: OnCall
    begin: Callable[[dict[str, Tensor], list[Tensor]], None] = lambda _state, _inputs: None
    on_leaving: Callable[[Tensor, Place], None] = lambda _tensor, _place: None
    on_module: OnModule = lambda _called, _caller, _values: None


@contextmanager
def below_autograd() -> Iterator[None]:
    """Call operators as a watched pass does, so that the same calls give the same bits."""
    with no_attention_fastpath(), whole_operators(), torch.no_grad(), torch._C._AutoDispatchBelowAutograd():
        yield


def watch(
    model: nn.Module,
    example: Inputs,
    listeners: Listeners,
    tensors: Tensors,
    *,
    devices: Mapping[str, torch.device] | None = None,
    training: bool = False,
    steady: bool = True,
) -> list[Tensor]:
    """Run one forward pass, in eval mode unless `training`, without autograd, and tell listeners of each operator.

    Args:
        model: Any module; it is left as it was.
        example: A tensor, a tuple of arguments, or a dict of keyword arguments.
        listeners: What is told.
        tensors: What it runs on.
        devices: Devices on which the state is to lie, where the model's own tensors have shapes only.
        training: Run in training mode.
        steady: Where tensors have values, let what may draw random numbers give one half. Dropout and attention do too:
            only what control flow depends on is right then, and no value may be looked at.

    Returns:
        The tensors that the outputs hold.

    Raises:
        ModelError: They hold none, or the inputs can't be copied.
    """
    real = state_of(model)
    args, kwargs = as_call(example)
    with ExitStack() as stack:
        stack.enter_context(in_mode(model, training))
        stack.enter_context(narrowable(model))
        stack.enter_context(quiet("torch._subclasses.fake_tensor"))  # refusing a shape is an answer here
        stack.enter_context(seeded())
        path: list[str] = []
        calls: list[Calls] = []
        stack.enter_context(module_paths(model, path, calls, listeners.on_module))
        mode = FakeTensorMode(allow_non_fake_inputs=True) if tensors == "fake" else None
        made: dict[int, Tensor] = {}  # tied tensors stay one, and so does what is an input and in the state

        def convert(t: Tensor, device: torch.device) -> Tensor:
            if id(t) not in made:
                made[id(t)] = _copied(t) if tensors == "real" else _convert(t, device, mode)
            return made[id(t)]

        # Fake tensors of a model without values lie where the inputs do, so that its code takes the usual way.
        given = next((t.device for t in find_tensors((args, kwargs))), None) if tensors == "fake" else None
        places = {name: given or t.device for name, t in real.items() if t.is_meta} | dict(devices or {})
        state = {name: convert(t, places.get(name, t.device)) for name, t in real.items()}
        token = _copies.set(None)  # inputs are others each time
        args, kwargs = with_tensors((args, kwargs), lambda tensor: convert(tensor, tensor.device))
        _copies.reset(token)
        if mode is not None:
            stack.enter_context(mode)
        listeners.begin(state, find_tensors((args, kwargs)))
        stack.enter_context(below_autograd())
        listen = stack.enter_context(
            Listen(calls, lambda tensor, line: listeners.on_leaving(tensor, Place(path[-1] if path else "", line)))
        )
        stack.enter_context(Watch(listeners.on_call, tensors, path, listen, steady))
        state = {f"model.{name}": tensor for name, tensor in state.items()}
        found: list[Tensor] = torch.func.functional_call(_Outputs(model), state, (args, kwargs))
    return found
