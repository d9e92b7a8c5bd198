"""Type one forward pass: by the operators' rules, every tensor's axes become expressions over the parameters' axes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from pruning.containers import Inputs, find_tensors
from pruning.errors import ModelError, describe, pass_on
from pruning.graph.axes import SINGLE, Atom, Axis, leaves, mix, unify
from pruning.graph.contexts import no_leftovers
from pruning.graph.dispatch import Listeners, Place, Tensors, examples_of, watch
from pruning.graph.module_copy import copy_module
from pruning.graph.rules import find_rule
from pruning.graph.rules.call import Call, Facts, Inapplicable, Typed, arguments_in, freeze_all, frozen
from pruning.graph.rules.reshaping import slice_start, steps_of
from pruning.graph.unwrapping import wrappers_inside

_SMALL = 16  # values of a tensor that are compared as constants
# PyTorch inserts these where it caches a shape or not, so they say nothing of the model.
IDENTITIES = frozenset({"alias", "contiguous", "detach", "lift_fresh"})


@dataclass(frozen=True)
class Operation:
    """One operator call of a trace, kept for the report, for confirming plans and for what reads a group.

    Attributes:
        name: The operator.
        place: Where it was called.
        constants: Its arguments that are no tensors.
        inputs: The axes of each tensor that it read.
        outputs: The axes of each tensor that it gave.
        start: Where a slice begins.
        steps: Of windows by strides, how many positions along each axis of the input each axis of theirs leads on.
        summed: The axes over which it sums or computes a statistic.
        made: The axes of its outputs that parameters alone make, as the filters of a convolution do.
        decided: Where the pass had values, those of its outputs that decide on a way, as indices and truths made of
            numbers that follow from weights and inputs; None for its other outputs.
    """

    name: str
    place: Place
    constants: tuple[Any, ...]
    inputs: tuple[tuple[Axis, ...], ...]
    outputs: tuple[tuple[Axis, ...], ...]
    start: int = 0
    steps: tuple[tuple[int, ...], ...] = ()
    summed: tuple[Axis, ...] = ()
    made: tuple[Axis, ...] = ()
    decided: tuple[Tensor | None, ...] = ()


def constants_of(args: Sequence[Any], kwargs: dict[str, Any], tensors: Tensors) -> tuple[Any, ...]:
    """The arguments of an operator that are no tensors, and the values of small tensors that code made of numbers."""
    found: list[Any] = []
    for argument in arguments_in(args, kwargs):
        if not isinstance(argument, Tensor):
            found.append(argument)
        elif argument.numel() <= _SMALL and tensors != "real":  # where all have values, they say nothing of code
            known = argument.constant if isinstance(argument, FakeTensor) else argument
            found.extend([] if known is None or known.is_meta else known.flatten().tolist())
    return tuple(found)


def start_of(call: Call) -> int:
    """Where a slice begins; 0 for any other operator."""
    if call.name not in ("slice", "narrow"):
        return 0
    return slice_start(call["start"], call["self"].shape[call.dim(call["self"], call["dim"])])


UNREAD = "the example inputs don't read all of it, so it may be positions and no channels"


@dataclass
class Trace:
    """What one forward pass says about the axes of all parameters and buffers.

    Attributes:
        parameters: The axes of each parameter and buffer.
        facts: What the rules stated beside the axes.
        operations: Every operator that was called, in order.
        unknown: Operators without a rule, with the places that called them.
        tensors: What the pass ran on: tensors without values unless "real".
        training: Whether the pass ran in training mode.
        branches: Further passes over the same axes: of further examples, and of branches that run in training alone.
        allow_mixed: Whether channels over which an operator computes a statistic may go.
        training_fault: Why there is no pass in training mode, although there are parameters that this one doesn't use.
        example: What it was called with.
        ignore_unused: Whether parameters that no pass uses are known to be of no use at all.
        called: Paths of the modules that it called.
        handed: By the path of a module, the axes of what its code gave to other modules and got from them.
    """

    parameters: dict[str, list[Axis]]
    facts: Facts = field(default_factory=Facts)
    operations: list[Operation] = field(default_factory=list)
    unknown: dict[str, list[Place]] = field(default_factory=dict)
    tensors: Tensors = "meta"
    training: bool = False
    branches: list[Trace] = field(default_factory=list)
    allow_mixed: bool = False
    training_fault: str = ""
    example: Inputs = ()
    ignore_unused: bool = False
    called: set[str] = field(default_factory=set)
    handed: dict[str, dict[int, Axis]] = field(default_factory=dict)

    @property
    def passes(self) -> list[Trace]:
        """This pass and its branches."""
        return [self, *self.branches]

    @property
    def reached(self) -> set[str]:
        """Parameters and buffers that some pass used."""
        return set().union(*(traced.facts.reached for traced in self.passes))


_CODE = -1  # stands for a memory: what the model's code knows of values


def trace(model: nn.Module, example_inputs: Inputs) -> Trace:
    """Trace a forward pass of each example in eval mode, and in training mode too if parameters are left unused.

    The model's inputs and outputs are frozen.

    Raises:
        ModelError: The forward pass itself fails on these inputs.
    """
    first, *others = examples_of(example_inputs)
    with no_leftovers():
        traced, outputs = type_pass(model, first)
    for example in others:
        with no_leftovers():
            branch, more = type_pass(model, example, known=traced)
        traced.branches.append(branch)
        outputs += more
    for example in (first, *others):
        if all(name in traced.reached for name, _ in model.named_parameters()):
            break
        with no_leftovers():
            try:
                branch, more = type_pass(model, example, known=traced, training=True)
            except ModelError as fault:  # it may need targets; what it alone uses stays whole
                traced.training_fault = str(fault.__cause__ or fault)
            else:
                traced.branches.append(branch)
                outputs += more
    for output in outputs:
        freeze_all(output.axes, "it is an output of the model")
    _freeze_unread(traced)
    return traced


def _freeze_unread(traced: Trace) -> None:
    """Freeze what no pass read: the rows of a table of positions beyond the example's length are no channels.

    Channels are read where an operator sums over them. A slice of what parameters alone made has to be one of several
    that read all of it between them, or it may read more where the inputs are longer.
    """
    read = {atom for one in traced.passes for axis in one.facts.summed for atom in leaves(axis)}
    for name in traced.reached.intersection(traced.parameters):
        for atom in (atom for axis in traced.parameters[name] for atom in leaves(axis)):
            if atom not in read:
                atom.frozen = atom.frozen or UNREAD
    for one in traced.passes:
        sliced: dict[tuple[int, int], set[Atom]] = {}
        for place, _, piece in one.facts.cuts:
            sliced.setdefault(place, set()).update(leaves(piece))
        for place, whole, _ in one.facts.cuts:
            for atom in leaves(whole):
                if atom not in sliced[place]:
                    atom.frozen = atom.frozen or UNREAD


def type_pass(
    model: nn.Module, example: Inputs, known: Trace | None = None, *, training: bool = False
) -> tuple[Trace, list[Typed]]:
    """Type one forward pass, and say what is known of its outputs.

    It runs on tensors without values, and on copies of the real ones only where control flow depends on values.

    Args:
        model: Any module.
        example: What to call it with.
        known: Another pass, over whose axes this one runs.
        training: Run in training mode.
    """
    faults: list[Exception] = []
    # What the model has computed before and kept may belong to a device, and is found again only there.
    for tensors in get_args(Tensors)[int(_keeps_tensors(model)) :]:
        parameters = known.parameters if known else {}
        typing = _Typing(Trace(parameters, tensors=tensors, training=training, example=example), model)
        try:
            # On a copy, because a model may keep what it computes, and fake tensors must not stay in it.
            listeners = Listeners(typing.on_call, typing.begin, typing.on_leaving, typing.on_module)
            outputs = watch(copy_module(model), example, listeners, tensors, training=training)
            break
        except ModelError:
            raise
        except Exception as fault:  # noqa: BLE001 - fake tensors refuse some things that real ones do
            pass_on(fault)
            faults.append(fault)
    else:
        last = faults[-1]
        raise ModelError(
            f"the forward pass of {type(model).__name__} fails on the example inputs: {describe(last)}"
            ". Check the inputs' shapes and types (several arguments are a tuple, a list is several examples); "
            "the model has to run as it is before it can be pruned." + wrappers_inside(model)
        ) from last
    typing.finish(outputs)
    return typing.trace, [typing.typed(output) for output in outputs]


def _keeps_tensors(model: nn.Module) -> bool:
    """Whether some module holds a tensor that is neither parameter nor buffer."""
    for module in model.modules():
        for name, value in vars(module).items():
            inner = (
                value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else (value,)
            )
            if name not in ("_parameters", "_buffers") and any(isinstance(v, Tensor) for v in inner):
                return True
    return False


class _Typing:
    """Give every tensor of a forward pass its axes, by the operators' rules."""

    def __init__(self, traced: Trace, model: nn.Module) -> None:
        self.trace = traced
        self.masked = {name for name, _ in model.named_parameters(remove_duplicate=False)}  # no buffer is
        self.table: dict[int, tuple[Tensor, Typed]] = {}
        self.unclean: set[int] = set()
        self.flow: list[tuple[set[int], set[int]]] = []  # memory that each operator reads and writes
        self.fed: set[int] = set()  # tensors that follow from inputs or state, not from sizes alone

    def begin(self, state: dict[str, Tensor], inputs: list[Tensor]) -> None:
        self.fed.update(map(id, (*inputs, *state.values())))
        for tensor in inputs:
            self.table[id(tensor)] = (tensor, Typed(frozen(tensor.shape, "it is an input of the model")))
        tied: dict[int, list[Axis]] = {}
        for name, tensor in state.items():
            axes = tied.setdefault(id(tensor), self.trace.parameters.get(name) or _fresh(tensor))
            self.trace.parameters[name] = axes
            known = self.table.get(id(tensor))
            sources = (known[1].sources if known else frozenset()) | {name}
            self.table[id(tensor)] = (
                tensor,
                Typed(axes, None if self.masked.isdisjoint(sources) else (), frozenset(sources)),
            )

    def typed(self, tensor: Tensor) -> Typed:
        entry = self.table.get(id(tensor))
        if entry is None:
            reason = "it belongs to a tensor that is neither parameter nor buffer"
            entry = self.table[id(tensor)] = (tensor, Typed(frozen(tensor.shape, reason)))
        typed = entry[1]
        if typed.nonzero is not None and _memory(tensor) in self.unclean:
            typed.nonzero = None
        return typed

    def on_call(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any], result: Any, place: Place) -> None:
        call = Call(func, args, kwargs, result, self.typed, self.trace.facts, place.module)
        if not call.outputs:
            self._flows(call.inputs, _CODE)
            return
        self.flow.append(({_memory(t) for t in call.inputs}, {_memory(t) for t in call.outputs}))
        if any(id(tensor) in self.fed for tensor in call.inputs):
            self.fed.update(map(id, call.outputs))
        given = [(t, self.typed(t)) for t in call.inputs]
        inputs = tuple(tuple(typed.axes) for _, typed in given)
        facts = self.trace.facts
        before = len(facts.summed), len(facts.mixed), len(facts.contractions)
        axes = self._apply(call, place)
        summed = (*facts.summed[before[0] :], *(axis for _, axis, _ in facts.mixed[before[1] :]))
        operands = [operand for one in facts.contractions[before[2] :] for operand in one.operands]
        made = tuple({id(axis): axis for operand in operands for axis in operand.made}.values())
        sources = [typed.sources for _, typed in given]
        self.trace.facts.reached.update(*sources)
        source = frozenset().union(*sources) if sources and all(sources) else frozenset()
        self.trace.facts.operations += 1
        for output, found in zip(call.outputs, axes, strict=True):
            known = self.table.get(id(output))
            if known is not None and [axis.size for axis in known[1].axes] != list(output.shape):
                known = None  # its shape was changed in place
            if known is not None:  # an in-place operator returns its first argument
                for old, new in zip(known[1].axes, found, strict=True):
                    if old.size == new.size:
                        unify(old, new)
                if not call.zero and func._schema.is_mutable:
                    self.unclean.add(_memory(output))
                continue
            self.table[id(output)] = (output, Typed(list(found), call.nonzero, source))
        if call.name in IDENTITIES:
            return
        constants, start = constants_of(args, kwargs, self.trace.tensors), start_of(call)
        decided = self._decided(call) if self.trace.tensors == "real" else ()
        outputs = tuple(map(tuple, axes))
        steps = steps_of(call["stride"], call["self"]) if call.name == "as_strided" else ()
        self.trace.operations.append(
            Operation(call.name, place, constants, inputs, outputs, start, steps, summed, made, decided)
        )

    def _decided(self, call: Call) -> tuple[Tensor | None, ...]:
        fed = [tensor for tensor in call.inputs if id(tensor) in self.fed]
        if not any(tensor.is_floating_point() for tensor in fed):
            return ()
        return tuple(None if one.is_floating_point() or one.is_complex() else one.clone() for one in call.outputs)

    def on_leaving(self, tensor: Tensor, place: Place) -> None:
        """Keep a tensor whole whose values code takes: arrays and lists are an output that nothing else shows."""
        freeze_all(self.typed(tensor).axes, f"code {place} takes its values out of PyTorch")
        self._flows([tensor], _CODE)

    def on_module(self, called: str, caller: str, values: Any) -> None:
        """Note what the calling module's code gave to another module and got from it."""
        self.trace.called.add(called)
        handed = self.trace.handed.setdefault(caller, {})
        for tensor in find_tensors(values, iterators="leave"):
            while torch._C._functorch.is_functorch_wrapped_tensor(tensor):  # operators see what vmap has wrapped
                tensor = torch._C._functorch.get_unwrapped(tensor)
            handed.update((id(axis), axis) for axis in self.typed(tensor).axes)

    def _flows(self, tensors: Sequence[Tensor], memory: int) -> None:
        self.flow.append(({_memory(t) for t in tensors}, {memory}))
        self.trace.facts.operations += 1

    def finish(self, outputs: Sequence[Tensor]) -> None:
        """Mix the axes over which an operator computes a statistic that reaches an output, or code as a number."""
        needed = {_CODE, *(_memory(t) for t in outputs)}
        live = set()
        for index in reversed(range(len(self.flow))):
            read, written = self.flow[index]
            if written & needed:
                needed |= read
                live.add(index)
        for index, axis, reason in self.trace.facts.mixed:
            if index in live:
                mix(axis, reason)

    def _apply(self, call: Call, place: Place) -> list[list[Axis]]:
        chosen = find_rule(call.func)
        reason = f"no rule covers {call.name}, called {place}"
        if chosen is not None:
            try:
                axes = chosen(call)
            except (Inapplicable, ValueError) as fault:
                reason = f"{call.name}, called {place}, is used in a way its rule doesn't cover: {fault}"
            else:
                sizes = [[axis.size for axis in found] for found in axes]
                if sizes == [list(t.shape) for t in call.outputs]:
                    return axes
                reason = (
                    f"the rule of {call.name}, called {place}, gives {sizes} where the operator gives another shape"
                )
        self.trace.unknown.setdefault(call.name, []).append(place)
        for tensor in call.inputs:
            freeze_all(self.typed(tensor).axes, reason)
        return [frozen(t.shape, reason) for t in call.outputs]


def _memory(tensor: Tensor) -> int:
    """What tells whether two tensors share memory: a view's storage is its base's."""
    return tensor.untyped_storage()._cdata if tensor.layout == torch.strided else id(tensor)


def _fresh(tensor: Tensor) -> list[Axis]:
    if not tensor.is_floating_point() and not tensor.is_complex():
        return frozen(tensor.shape, "it belongs to a table of integers")
    return [Atom(size, SINGLE if size == 1 else None) for size in tensor.shape]
