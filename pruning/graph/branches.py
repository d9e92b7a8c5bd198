"""Residual branches, from one forward pass: what lies between a tensor and the addition that adds to it.

        x ──┬──────────────────────► +      the stream: an operand of the addition from which the other one comes
            └─► norm ─► attention ──►┘      the branch: what only that other operand needs

Operators are followed by the memory that they read and write, so that nothing is known of any class of modules.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from pruning.containers import find_tensors
from pruning.errors import pass_on
from pruning.graph.dispatch import Listeners, Place, watch
from pruning.graph.module_copy import copy_module
from pruning.graph.rules.call import is_pointwise, operator_name, tensors_in
from pruning.graph.trace import Trace

Value = tuple[int, int]
"""A memory, and how often it had been written into."""

Lie = tuple[torch.Size, tuple[int, ...], int]
"""Shape, strides and offset of a tensor in its memory."""


@dataclass(frozen=True)
class Step:
    """One operator that makes or writes memory; views make none.

    Attributes:
        name: The operator, without the mark of those that work in place.
        function: The overload that was called.
        module: Path of the module that called it.
        reads: What it reads, one for each of its tensors.
        writes: What it makes.
        inputs: How the tensors lie that it reads.
        output: How the first tensor lies that it gives.
        constants: Its arguments after the first, where the first is its only tensor; otherwise None.
        adds: Whether it is the plain sum of two tensors.
    """

    name: str
    function: Any
    module: str
    reads: tuple[Value, ...]
    writes: tuple[Value, ...]
    inputs: tuple[Lie, ...]
    output: Lie | None
    constants: tuple[Any, ...] | None
    adds: bool


@dataclass
class ModuleCall:
    """How a module was called.

    Attributes:
        count: How often.
        callers: Paths of the modules that called it.
        given: The memory and position of the first tensor that it was given the last time.
        result: What it returned.
        returned: The value and position of each tensor in it.
    """

    count: int = 0
    callers: set[str] = field(default_factory=set)
    given: tuple[int, Lie] | None = None
    result: Any = None
    returned: tuple[tuple[Value, Lie], ...] = ()


@dataclass(frozen=True)
class Branch:
    """The branch of one residual addition.

    Attributes:
        name: Path of the module of its last layer.
        addition: The step that adds it to the stream.
        stream: Which of the two operands the stream is.
        steps: The operators that nothing but the branch needs.
        parameters: Names of the parameters that it alone reads.
        parts: Paths of the largest modules that do nothing else.
        loose: Steps of it outside of these.
    """

    name: str
    addition: int
    stream: int
    steps: frozenset[int]
    parameters: tuple[str, ...]
    parts: tuple[str, ...]
    loose: frozenset[int]


class Flow:
    """What one forward pass reads and writes, operator by operator."""

    def __init__(self, model: nn.Module, traced: Trace, *, training: bool | None = None) -> None:
        """Run the pass of a trace once more.

        Args:
            model: The traced module; it is left as it was.
            traced: Says what to call it with, and on what kind of tensors.
            training: In which mode; the trace's, if not given.

        Raises:
            Exception: Whatever the model raises in a mode that it can't run in.
        """
        self.steps: list[Step] = []
        self.calls: dict[str, ModuleCall] = {}
        self.looked_at: set[Value] = set()
        self._versions: dict[int, int] = {}
        self._alive: list[Any] = []  # an address is told from another only while both live
        self.state: dict[Value, list[str]] = {}
        self.trained = {name for name, _ in model.named_parameters(remove_duplicate=False)}
        listeners = Listeners(self._on_call, self._begin, self._on_leaving, self._on_module)
        mode = traced.training if training is None else training
        outputs = watch(copy_module(model), traced.example, listeners, traced.tensors, training=mode)
        self.looked_at.update(map(self.value, outputs))
        self.readers: dict[Value, set[int]] = {}
        self.maker: dict[Value, int] = {}
        for index, step in enumerate(self.steps):
            for value in step.reads:
                self.readers.setdefault(value, set()).add(index)
            self.maker.update(dict.fromkeys(step.writes, index))

    def value(self, tensor: Tensor) -> Value:
        """Return the value that a tensor has by now."""
        self._alive.append(tensor)
        memory = tensor.untyped_storage()._cdata if tensor.layout == torch.strided else id(tensor)
        return memory, self._versions.get(memory, 0)

    def is_written_later(self, value: Value) -> bool:
        """Say whether something writes into the memory of a value once it is there."""
        return self._versions.get(value[0], 0) > value[1]

    def inside(self, path: str) -> frozenset[int]:
        """Return the steps that a module calls, or a module that it calls."""
        return frozenset(i for i, step in enumerate(self.steps) if path in self.around(step.module))

    def around(self, path: str) -> list[str]:
        """Return a module and those that called it, as far as each has one caller."""
        found: dict[str, None] = {}
        ahead = [path]
        while ahead:
            here = ahead.pop()
            if here not in found:
                found[here] = None
                ahead += self.calls[here].callers if here in self.calls else ()
        return list(found)

    def largest(self, steps: frozenset[int]) -> tuple[str, ...]:
        """Return the paths of the largest modules that are called once and call some of these steps, and no others."""
        within: dict[str, set[int]] = {}
        for index, step in enumerate(self.steps):
            for path in self.around(step.module):
                within.setdefault(path, set()).add(index)
        fitting = [p for p, found in within.items() if p and self.calls[p].count == 1 and found <= steps]
        return tuple(p for p in fitting if not any(caller in fitting for caller in self.calls[p].callers))

    def _begin(self, state: dict[str, Tensor], inputs: list[Tensor]) -> None:
        self._alive += inputs
        for name, tensor in state.items():
            self.state.setdefault(self.value(tensor), []).append(name)

    def _on_leaving(self, tensor: Tensor, _place: Place) -> None:
        self.looked_at.add(self.value(tensor))

    def _on_module(self, called: str, caller: str, values: Any) -> None:
        call = self.calls.setdefault(called, ModuleCall())
        call.count += 1
        call.callers.add(caller)
        if len(values) != 3:
            return
        *given, call.result = values
        tensors = find_tensors(given, iterators="leave")
        call.given = (self.value(tensors[0])[0], _lie(tensors[0])) if tensors else None
        returned = find_tensors(call.result, iterators="leave")
        call.returned = tuple((self.value(tensor), _lie(tensor)) for tensor in returned)

    def _on_call(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any], result: Any, place: Place) -> None:
        inputs, outputs = tensors_in(args, kwargs), tensors_in(result)
        reads = tuple(map(self.value, inputs))
        if not outputs:
            self.looked_at.update(reads)
            return
        known = {value[0] for value in reads}
        writes = tuple(value for value in dict.fromkeys(map(self.value, outputs)) if value[0] not in known)
        if func._schema.is_mutable:
            for memory in {self.value(tensor)[0] for tensor in outputs} & known:
                self._versions[memory] = self._versions.get(memory, 0) + 1
                writes += ((memory, self._versions[memory]),)
        if not writes:
            return
        name = operator_name(func)
        alone = len(inputs) == 1 and args and args[0] is inputs[0] and not kwargs
        adds = name == "add" and len(inputs) == 2 and len(args) == 2 and kwargs.get("alpha", 1) == 1
        lies = tuple(map(_lie, inputs))
        constants = tuple(args[1:]) if alone else None
        self.steps.append(Step(name, func, place.module, reads, writes, lies, _lie(outputs[0]), constants, adds))


def _lie(tensor: Tensor) -> Lie:
    if tensor.layout != torch.strided:
        return tensor.shape, (), 0
    return tensor.shape, tensor.stride(), int(tensor.storage_offset())


def find_branches(flow: Flow, is_zero: frozenset[int] = frozenset()) -> tuple[list[Branch], dict[str, str]]:
    """Find the branches of all residual additions of a pass.

    Args:
        flow: Of the pass.
        is_zero: Steps that stand for a branch that is gone: what is added of them is no branch any more.

    Returns:
        The branches that have parameters; and, by the name of the addition's module, why other branches that read
        parameters can't be told from the rest of the model.
    """
    earlier: dict[Value, set[Value]] = {}
    for step in flow.steps:
        behind = set(step.reads).union(*(earlier.get(value, ()) for value in step.reads))
        earlier.update(dict.fromkeys(step.writes, behind))
    found: list[Branch] = []
    reasons: dict[str, str] = {}
    for index, step in enumerate(flow.steps):
        if not step.adds or step.reads[0] == step.reads[1] or step.inputs[0][0] != step.inputs[1][0]:
            continue
        first, second = step.reads
        stream = 0 if first in earlier.get(second, ()) else 1 if second in earlier.get(first, ()) else None
        if stream is None:
            continue
        taken = _branch(flow, index, stream)
        if isinstance(taken, str):
            reasons.setdefault(step.module, taken)
        elif taken is not None and not taken.steps & is_zero:
            found.append(taken)
    return found, reasons


def _branch(flow: Flow, addition: int, stream: int) -> Branch | str | None:
    """Return the branch of an addition, or why there is none; None where it has no parameters at all."""
    given = flow.steps[addition].reads[1 - stream]
    own: set[int] = set()
    for index in range(addition - 1, -1, -1):
        step = flow.steps[index]
        needed = [value for value in step.writes if value in flow.readers]
        if not needed or any(value in flow.looked_at for value in step.writes):
            continue
        if any(version and flow.maker.get((memory, 0)) is None for memory, version in step.writes):
            continue  # it writes into what was there before the pass
        if all(flow.readers[value] <= own | {addition} for value in needed):
            if any(addition in flow.readers[value] and value != given for value in needed):
                continue  # the stream itself, where nothing else reads it
            own.add(index)
    if flow.maker.get(given) not in own:
        return "what it adds is read elsewhere too"
    read = {value: flow.readers[value] for index in own for value in flow.steps[index].reads if value in flow.state}
    shared = sorted(n for v, readers in read.items() if not readers <= own for n in flow.state[v] if n in flow.trained)
    names = sorted(name for value in read for name in flow.state[value] if name in flow.trained)
    if shared:
        return f"its parameter {shared[0]} is read elsewhere too"
    if not names:
        return None
    steps = frozenset(own)
    parts = flow.largest(steps)
    covered = frozenset[int]().union(*map(flow.inside, parts))
    return Branch(_last_layer(flow, steps), addition, stream, steps, tuple(names), parts, steps - covered)


def _last_layer(flow: Flow, steps: frozenset[int]) -> str:
    """Return the path of the module that reads the last parameter, of those that sum over channels if there are any."""
    reading = [i for i in sorted(steps) if any(value in flow.state for value in flow.steps[i].reads)]
    layers = [i for i in reading if not is_pointwise(flow.steps[i].function) and "norm" not in flow.steps[i].name]
    return flow.steps[(layers or reading)[-1]].module


def passes_of(model: nn.Module, traced: Trace) -> Iterator[Flow]:
    """Yield every pass of a trace, and the first one in training mode too if the model runs in it."""
    for one in traced.passes:
        yield Flow(model, one)
    if not any(one.training for one in traced.passes) and not traced.training_fault:
        try:
            yield Flow(model, traced, training=True)
        except Exception as fault:  # noqa: BLE001 - it may need targets; verification then leaves training out as well
            pass_on(fault)
