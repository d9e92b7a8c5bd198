"""A forward pass kept as a tape: the operators in the order of their calls, run again on other values as far as asked.

A pass over the layers of a network that stops at each of them, for all batches in turn, runs every layer once. What is
alive between two calls is all that has to be kept of a batch; it can be parked in a file meanwhile.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pruning.allocation.dataflow import Unsuitable, address, tensors_of
from pruning.containers import Inputs
from pruning.graph.dispatch import Listeners, OnCall, Place, below_autograd, watch
from pruning.graph.rules.call import arguments_of, operator_name


@dataclass(frozen=True)
class _Value:
    """Stands in a tape for a tensor."""

    number: int


@dataclass(frozen=True)
class _Call:
    """One call of an operator, with numbers in place of tensors.

    Attributes:
        function: The overload that was called.
        args: Its arguments.
        kwargs: Its keyword arguments.
        results: The tensors that it gave; None for what it left out.
        written: Those of its arguments that it writes into.
        place: Where it was called.
        last: The tensors that nothing reads after it.
    """

    function: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    results: tuple[int | None, ...]
    written: tuple[int, ...]
    place: Place
    last: tuple[int, ...] = ()


@dataclass(frozen=True)
class Tape:
    """A pass as `watch` sees it: the same calls on tensors of the same shapes, whatever their values.

    Attributes:
        calls: In their order.
        state: The number of each parameter and buffer, tied ones under each name.
        inputs: The numbers of the input tensors.
        outputs: The numbers of the tensors that the outputs hold.
        constants: Tensors that the model's code made of numbers, or keeps.
        first_reads: The first call that reads the memory of each parameter and buffer; those that none reads are left
            out.
    """

    calls: tuple[_Call, ...]
    state: Mapping[str, int]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    constants: Mapping[int, Tensor]
    first_reads: Mapping[str, int]


def record(model: nn.Module, inputs: Inputs) -> Tape:
    """Run one pass in evaluation mode and keep it as a tape.

    Args:
        model: Left as it was. Its code must not look at values: the engine's trace says whether it does.
        inputs: [N, ...], on the model's device.

    Raises:
        Unsuitable: Another pass may be another one: an operator gives numbers, code takes values out of PyTorch or
            draws random ones, or what was there before the pass is written into.
    """
    recorder = _TapeRecorder()
    listeners = Listeners(recorder.on_call, recorder.begin, recorder.on_leaving)
    outputs = watch(model, inputs, listeners, tensors="real", steady=False)
    return recorder.tape(outputs)


class _TapeRecorder:
    def __init__(self) -> None:
        self._numbers: dict[int, tuple[weakref.ref[Tensor], int]] = {}
        self._count = 0
        self._outside: set[int] = set()  # memory that was there before the pass
        self._first_reads: dict[int, int] = {}
        self._calls: list[_Call] = []
        self._constants: dict[int, Tensor] = {}
        self._fault: Unsuitable | None = None

    def begin(self, state: dict[str, Tensor], inputs: list[Tensor]) -> None:
        self._state = {name: self._number(tensor) for name, tensor in state.items()}
        self._memories = {name: address(tensor) for name, tensor in state.items()}
        self._inputs = tuple(map(self._number, inputs))
        self._alive = [*state.values(), *inputs]  # an address is told from another only while both live
        self._outside = set(map(address, self._alive))
        self._random = _random_states(inputs)

    def on_leaving(self, _tensor: Tensor, place: Place) -> None:
        self._refuse(f"code {place} takes values out of PyTorch")

    def on_call(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any], result: Any, place: Place) -> None:
        results = result if isinstance(result, list | tuple) else [result]
        if any(not isinstance(value, Tensor | None) for value in results):
            self._refuse(f"{operator_name(func)} gives a number, at which the model's code may look")
        if torch.Tag.nondeterministic_seeded in func.tags:
            now = _random_states(tensors_of(args, kwargs))
            if len(now) != len(self._random) or not all(map(torch.equal, now, self._random)):
                self._refuse(f"{operator_name(func)} draws random numbers")
        for memory in {address(tensor) for tensor in tensors_of(args, kwargs)} & self._outside:
            self._first_reads.setdefault(memory, len(self._calls))
        known = self._with_numbers((tuple(args), kwargs))  # first, because an argument can be a result too
        named, written = arguments_of(func, args, kwargs), list[Tensor]()
        if func._schema.is_mutable:
            written = tensors_of([named[one.name] for one in func._schema.arguments if one.is_write])
        elif named.get("training") or named.get("use_input_stats"):  # norms write into these, and don't say so
            written = tensors_of(named.get("running_mean"), named.get("running_var"))
        if not self._outside.isdisjoint(map(address, written)):
            self._refuse(f"{operator_name(func)} writes into what was there before")
        made = tuple(None if one is None else self._number(one) for one in results)
        self._calls.append(_Call(func, known[0], known[1], made, tuple(map(self._number, written)), place))

    def _refuse(self, reason: str) -> None:
        self._fault = self._fault or Unsuitable(reason)
        raise self._fault

    def _number(self, tensor: Tensor) -> int:
        reference, number = self._numbers.get(id(tensor), (None, -1))
        if reference is None or reference() is not tensor:  # its identity was another one's, which is gone
            number, self._count = self._count, self._count + 1
            self._numbers[id(tensor)] = (weakref.ref(tensor), number)
        return number

    def _with_numbers(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            before = self._count
            number = self._number(value)
            if number == before:  # no call gave it
                self._constants[number] = value
                self._outside.add(address(value))
            return _Value(number)
        if isinstance(value, list | tuple):
            return type(value)(map(self._with_numbers, value))
        return {key: self._with_numbers(inner) for key, inner in value.items()} if isinstance(value, dict) else value

    def tape(self, outputs: list[Tensor]) -> Tape:
        if self._fault is not None:  # the model's code may have caught it
            raise self._fault
        given = tuple(map(self._number, outputs))
        seen = {*given, *self._state.values(), *self._constants}  # kept for good
        calls = []
        for call in reversed(self._calls):
            used = {*_numbers_in((call.args, call.kwargs)), *(one for one in call.results if one is not None)}
            calls.append(replace(call, last=tuple(used - seen)))
            seen |= used
        known = self._first_reads
        reads = {name: known[memory] for name, memory in self._memories.items() if memory in known}
        return Tape(tuple(reversed(calls)), self._state, self._inputs, given, self._constants, reads)


def _numbers_in(value: Any) -> list[int]:
    if isinstance(value, _Value):
        return [value.number]
    if isinstance(value, list | tuple | dict):
        inner = value.values() if isinstance(value, dict) else value
        return [number for one in inner for number in _numbers_in(one)]
    return []


def _random_states(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The state of every generator from which operators on these tensors may draw."""
    devices = {tensor.device for tensor in tensors if tensor.device.type not in ("cpu", "meta")}
    found: list[Tensor] = [torch.get_device_module(one).get_rng_state(one) for one in sorted(devices, key=str)]
    return [torch.default_generator.get_state(), *found]


class Replay:
    """A pass by a tape, as far as it has come."""

    def __init__(self, tape: Tape, state: Mapping[str, Tensor], inputs: Sequence[Tensor]) -> None:
        """Begin a pass.

        Args:
            tape: Of a pass over as many samples.
            state: Parameters and buffers. Never written into; others may take their places on the way.
            inputs: The tensors among the inputs. Never written into.
        """
        self.tape, self.at = tape, 0
        self._state = state
        self._names = {number: name for name, number in tape.state.items()}
        self._values = dict(zip(tape.inputs, inputs, strict=True))
        self._parked: Path | None = None

    def advance(self, until: int) -> None:
        """Carry out the calls up to one, and forget what nothing reads after them."""
        with below_autograd():
            for call in self.tape.calls[self.at : until]:
                self._carry_out(call, self._values)
        self.at = max(self.at, until)

    def look_ahead(self, listener: OnCall) -> None:
        """Carry out the calls that follow, tell of each, and take them back; whatever it raises ends that."""
        values, before = dict(self._values), {address(tensor) for tensor in self._values.values()}
        saved: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}
        try:
            with below_autograd():
                for call in self.tape.calls[self.at :]:
                    for storage in (values[number].untyped_storage() for number in call.written):
                        if storage._cdata in before and storage._cdata not in saved:
                            saved[storage._cdata] = storage, storage.clone()  # type: ignore[no-untyped-call]
                    self._carry_out(call, values, listener)
        finally:
            for storage, copy in saved.values():
                storage.copy_(copy)

    def outputs(self) -> list[Tensor]:
        """Go to the end and return the tensors that the outputs hold."""
        self.advance(len(self.tape.calls))
        return [self._value(number, self._values) for number in self.tape.outputs]

    def _carry_out(self, call: _Call, values: dict[int, Tensor], listener: OnCall | None = None) -> None:
        args, kwargs = self._filled(call.args, values), self._filled(call.kwargs, values)
        result = call.function(*args, **kwargs)
        given = zip(call.results, result if isinstance(result, list | tuple) else [result], strict=True)
        values.update((number, tensor) for number, tensor in given if number is not None)
        if listener is not None:
            listener(call.function, args, kwargs, result, call.place)
        for number in call.last:
            del values[number]

    def _value(self, number: int, values: Mapping[int, Tensor]) -> Tensor:
        if number in values:
            return values[number]
        return self._state[self._names[number]] if number in self._names else self.tape.constants[number]

    def _filled(self, value: Any, values: Mapping[int, Tensor]) -> Any:
        if isinstance(value, _Value):
            return self._value(value.number, values)
        if isinstance(value, list | tuple):
            return type(value)([self._filled(one, values) for one in value])
        return {key: self._filled(one, values) for key, one in value.items()} if isinstance(value, dict) else value

    def _storages(self) -> list[torch.UntypedStorage]:
        outside = {address(tensor) for tensor in (*self._state.values(), *self.tape.constants.values())}
        found = {address(tensor): tensor.untyped_storage() for tensor in self._values.values()}
        return [storage for memory, storage in found.items() if memory not in outside]

    @property
    def num_bytes(self) -> int:
        """What it holds in memory: 0 while it is parked."""
        return sum(storage.nbytes() for storage in self._storages())

    def park(self, file: Path) -> None:
        """Write what it holds to a file, and free the memory until it goes on."""
        self._sizes = [storage.nbytes() for storage in self._storages()]
        with file.open("wb") as stream:
            for storage in self._storages():
                _bytes_of(storage).to("cpu", copy=True).numpy().tofile(stream)  # NumPy pins what it shares
        for storage in self._storages():
            storage.resize_(0)
        self._parked = file

    def unpark(self) -> None:
        """Read it again, if it was parked."""
        if self._parked is None:
            return
        with self._parked.open("rb") as stream:
            for storage, size in zip(self._storages(), self._sizes, strict=True):
                storage.resize_(size)
                read = torch.from_numpy(np.fromfile(stream, dtype=np.uint8, count=size))
                _bytes_of(storage).copy_(read)
        self._parked = None


def _bytes_of(storage: torch.UntypedStorage) -> Tensor:
    found: Tensor = torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
    return found
