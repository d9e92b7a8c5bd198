"""One call of an operator, as a rule sees it; what rules state; the table in which they are registered."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pruning.graph.axes import Atom, Axis, freeze, leaves
from pruning.graph.equation import Names, Pattern, Token, contracted, parse


@dataclass
class Typed:
    """What is known of a tensor: its axes, and where its values come from.

    Attributes:
        axes: One expression per axis.
        nonzero: Along which axes a channel that a plan removes may hold something else than zeros once its parameters
            are zeroed; None where nothing says that it holds zeros anywhere.
        sources: The parameters and buffers from which alone the tensor was computed; empty if inputs took part.
    """

    axes: list[Axis]
    nonzero: tuple[Axis, ...] | None = ()
    sources: frozenset[str] = frozenset()

    @property
    def zero(self) -> bool:
        """Whether every channel that a plan removes holds only zeros."""
        return self.nonzero is not None and not any(map(is_open, self.nonzero))

    def zero_along(self, axis: Axis) -> bool:
        """Whether those that it removes along one axis do."""
        if self.nonzero is None:
            return False
        others = {atom for one in self.nonzero for atom in leaves(one) if is_open(atom)}
        return others.isdisjoint(leaves(axis))


@dataclass(frozen=True)
class OperandAxis:
    """What a matrix product does with one axis of an operand that was computed from parameters alone.

    Attributes:
        sources: The parameters it was computed from.
        axis: The axis itself.
        made: The parts of it that no other operand has: this operand makes these channels.
        gone: The parts of it that are summed over.
    """

    sources: frozenset[str]
    axis: Axis
    made: tuple[Axis, ...]
    gone: tuple[Axis, ...]


@dataclass(frozen=True)
class Contraction:
    """One matrix product or convolution.

    Attributes:
        terms: Its MACs are the product of the sizes of these axes.
        operands: What it does with the axes of its parameters.
        module: Path of the module that called it.
    """

    terms: tuple[Axis, ...]
    operands: tuple[OperandAxis, ...]
    module: str


@dataclass(frozen=True)
class Count:
    """An integer attribute of a module, and the axis whose size it is.

    Attributes:
        module: The module's path.
        attribute: Name of the attribute.
        axis: The expression that gives its value under any plan.
    """

    module: str
    attribute: str
    axis: Axis

    @property
    def place(self) -> tuple[object, ...]:
        """What tells it from others."""
        return (self.module, self.attribute)


@dataclass(frozen=True)
class Argument:
    """A number that a module's code works out and hands to a function, and the axis whose size it is.

    Attributes:
        module: The module's path.
        spot: Line of code, function, which of its calls (None: all), and position among the flattened arguments.
        axis: The expression that gives its value under any plan; with `value`, what it would follow.
        value: The value that it keeps whatever goes, where it is no size.
    """

    module: str
    spot: tuple[str, str, int | None, int]
    axis: Axis
    value: float | None = None

    @property
    def place(self) -> tuple[object, ...]:
        """What tells it from others."""
        return (self.module, *self.spot)

    @property
    def argument(self) -> tuple[str, str, str, int]:
        """Which argument it is, in any call of its line: module, line, function, position."""
        line, function, _, index = self.spot
        return (self.module, line, function, index)


@dataclass
class Facts:
    """What the rules of one trace state beside the axes themselves.

    Attributes:
        contractions: Every matrix product and convolution.
        ties: Axes that have to lose equal counts, because code splits their concatenation in equal parts.
        uses: What each parameter is used as.
        reached: Parameters and buffers that were used.
        mixed: By which operator, over which axis, and why to remove a channel is not the same as to zero it.
        operations: Number of operators seen so far.
        counts: Numbers in the model's own code that follow an axis.
        constant: Attributes, with the class of their module, that code uses for more than sizes.
        moving: Numbers, by module, line, function and argument, that code works out from the sizes of its inputs.
        unmasked: Axes of parameters along which zeros would be divided by.
        summed: Axes over which an operator sums or computes a statistic: what lies there, the pass has read.
        cuts: For each slice of a tensor that was computed from parameters alone: which tensor and axis, what lies along
            it, and what the slice reads of that.
        multiples: Axes whose sizes have to stay multiples of a number, as the operator takes no others.
    """

    contractions: list[Contraction] = field(default_factory=list)
    ties: list[tuple[Axis, ...]] = field(default_factory=list)
    uses: dict[str, set[str]] = field(default_factory=dict)
    reached: set[str] = field(default_factory=set)
    mixed: list[tuple[int, Axis, str]] = field(default_factory=list)
    operations: int = 0
    unmasked: set[tuple[str, int]] = field(default_factory=set)
    counts: list[Count | Argument] = field(default_factory=list)
    constant: set[tuple[type, str]] = field(default_factory=set)
    moving: set[tuple[str, str, str, int]] = field(default_factory=set)
    summed: list[Axis] = field(default_factory=list)
    cuts: list[tuple[tuple[int, int], Axis, Axis]] = field(default_factory=list)
    multiples: list[tuple[Axis, int]] = field(default_factory=list)


class Inapplicable(Exception):  # noqa: N818 - a signal from a rule to the trace, no fault of anyone
    """A rule doesn't cover this call: what it touches is frozen, with the text as the reason."""


class Call:
    """One call of an operator with typed tensor arguments."""

    def __init__(
        self,
        func: Any,
        args: Sequence[Any],
        kwargs: dict[str, Any],
        result: Any,
        typed: Callable[[Tensor], Typed],
        facts: Facts,
        module: str,
    ) -> None:
        self.func = func
        self.arguments = arguments_of(func, args, kwargs)
        self.typed = typed
        self.facts = facts
        self.module = module
        self.inputs = tensors_in(args, kwargs)
        self.outputs = tensors_in(result)
        given = [self.typed(t).nonzero for t in self.inputs]
        # As in `Typed`, of the outputs: unless the rule says otherwise, what all inputs are.
        self.nonzero: tuple[Axis, ...] | None = None
        if all(axes is not None for axes in given):
            self.nonzero = tuple(dict.fromkeys(axis for axes in given for axis in axes or ()))

    def __getitem__(self, name: str) -> Any:
        return self.arguments.get(name)

    @property
    def zero(self) -> bool:
        """Whether every channel that a plan removes holds only zeros in the outputs."""
        return Typed([], self.nonzero).zero

    @zero.setter
    def zero(self, value: bool) -> None:
        self.nonzero = () if value else None

    @property
    def name(self) -> str:
        """The operator's name, without overload and without the trailing underscore of in-place forms."""
        return operator_name(self.func)

    def axes(self, tensor: Tensor) -> list[Axis]:
        """The axes of a tensor argument."""
        return self.typed(tensor).axes

    def dim(self, tensor: Tensor, index: int) -> int:
        """Turn a possibly negative index of an axis into a non-negative one."""
        return index % max(1, tensor.ndim)

    def dims(self, tensor: Tensor, indices: int | Sequence[int] | None) -> list[int]:
        """The same for several axes; None or an empty list stand for all."""
        if indices is None or (not isinstance(indices, int) and not len(indices)):
            return list(range(tensor.ndim))
        return [self.dim(tensor, i) for i in ([indices] if isinstance(indices, int) else indices)]

    def mix(self, axis: Axis, reason: str) -> None:
        """State that the operator computes over the axis: to remove a channel is not the same as to zero it."""
        self.facts.mixed.append((self.facts.operations, axis, reason))

    def use(self, label: str, tensor: Tensor | None) -> None:
        """Note what a parameter is used as, e.g. "batch_norm.weight"."""
        if tensor is not None:
            for source in self.typed(tensor).sources:
                self.facts.uses.setdefault(source, set()).add(label)

    def equation(self, equation: str, *operands: Tensor | None, **sizes: int) -> list[list[Axis]]:
        """State an axis equation over operands (None is passed over); return the axes of each output."""
        names, _, outputs, _ = self._state(equation, operands, sizes)
        return [names.build(pattern, out.shape) for pattern, out in zip(outputs, self.outputs, strict=False)]

    def contraction(self, equation: str, *operands: Tensor | None, **sizes: int) -> list[list[Axis]]:
        """The same for a matrix product or a convolution of one output; its MACs are noted.

        A channel that is contracted has to be zero on one side at least, or zeroing it would not remove it.
        """
        names, patterns, outputs, present = self._state(equation, operands, sizes)
        gone = contracted(equation)
        axes = names.build(outputs[0], self.outputs[0].shape)
        kernel = self._spatial(patterns[1], present[1])
        # What only one operand has is summed up before the product, and costs no multiplication.
        shared = [name for name in gone if sum(name in _names(pattern) for pattern in patterns) > 1]
        terms = (*axes, *(names.axes[name] for name in shared), *kernel)
        self.facts.contractions.append(Contraction(terms, self._roles(names, patterns, present, gone), self.module))
        self.nonzero = self._nonzero_after(names, patterns, outputs[0], axes, present)
        for name in gone:
            holders = [self.typed(t) for p, t in zip(patterns, present, strict=True) if name in _names(p)]
            if not any(typed.zero_along(names.axes[name]) for typed in holders):
                self.mix(names.axes[name], f"{self.name} sums over it although its removed channels are not zero")
        return [axes]

    def _roles(
        self, names: Names, patterns: Sequence[Pattern], present: Sequence[Tensor], gone: Sequence[str]
    ) -> tuple[OperandAxis, ...]:
        # A bias has nothing to sum over; it makes no channels and takes none from others.
        summing = [index for index, pattern in enumerate(patterns) if any(name in gone for name in _names(pattern))]
        notes = []
        for index in summing:
            typed = self.typed(present[index])
            elsewhere = {name for other in summing if other != index for name in _names(patterns[other])}
            for token, axis in zip(
                self._tokens(patterns[index]), self._fixed(patterns[index], typed.axes), strict=True
            ):
                made = tuple(names.axes[n] for n in token.names if n not in gone and n not in elsewhere)
                summed = tuple(names.axes[n] for n in token.names if n in gone)
                notes.append(OperandAxis(typed.sources, axis, made, summed))
        return tuple(note for note in notes if note.sources)

    def _state(
        self, equation: str, operands: Sequence[Tensor | None], sizes: dict[str, int]
    ) -> tuple[Names, list[Pattern], tuple[Pattern, ...], list[Tensor]]:
        inputs, outputs = parse(equation)
        present = [t for t in operands if t is not None]
        patterns = [p for p, t in zip(inputs, operands, strict=True) if t is not None]
        names = Names(sizes)
        for pattern, tensor in zip(patterns, present, strict=True):
            names.match(pattern, self.axes(tensor))
        self.facts.summed.extend(names.axes[name] for name in contracted(equation))
        return names, patterns, outputs, present

    def _spatial(self, pattern: Pattern, tensor: Tensor) -> list[Axis]:
        kinds = [token.kind for token in pattern]
        return self.axes(tensor)[kinds.index("spatial") :] if "spatial" in kinds else []

    def _fixed(self, pattern: Pattern, axes: list[Axis]) -> list[Axis]:
        run = next((i for i, token in enumerate(pattern) if token.kind in ("run", "spatial")), None)
        if run is None:
            return axes
        after = len(pattern) - run - 1
        return axes[:run] + (axes[-after:] if after else [])

    def _nonzero_after(
        self,
        names: Names,
        patterns: Sequence[Pattern],
        output: Pattern,
        axes: Sequence[Axis],
        present: Sequence[Tensor],
    ) -> tuple[Axis, ...]:
        """A removed channel of the output is zero if a factor that has it is zero there, and so is every bias."""
        gone = {name for pattern in patterns for name in _names(pattern)} - _names(output)
        given = [(_names(p), self.typed(t)) for p, t in zip(patterns, present, strict=True)]
        factors, biases = [one for one in given if one[0] & gone], [one for one in given if not one[0] & gone]

        def is_zero(axis: Axis, name: str) -> bool:
            by_factor = any(name in held and typed.zero_along(axis) for held, typed in factors)
            return by_factor and all(name in held and typed.zero_along(axis) for held, typed in biases)

        fixed = self._fixed(output, list(axes))
        run = [axis for axis in axes if not any(axis is other for other in fixed)]
        named = {name: names.axes[name] for name in _names(output) if name in names.axes}
        return (
            *(axis for name, axis in named.items() if is_open(axis) and not is_zero(axis, name)),
            *(axis for axis in run if biases or not all(typed.zero_along(axis) for _, typed in factors)),
        )

    def _tokens(self, pattern: Pattern) -> list[Token]:
        return [token for token in pattern if token.kind not in ("run", "spatial")]


def is_open(axis: Axis) -> bool:
    """Whether an axis still holds channels that could be pruned."""
    return any(not atom.frozen and atom.size > 1 for atom in leaves(axis))


def _names(pattern: Pattern) -> set[str]:
    return {name for token in pattern for name in token.names}


Rule = Callable[[Call], "list[list[Axis]]"]
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule for operators of ATen, by their names without overload; in-place forms are included.

    A rule states what it knows of the axes of its inputs and returns the axes of each output tensor.
    """

    def register(function: Rule) -> Rule:
        for name in names:
            if name in RULES:
                raise ValueError(f"operator {name!r} has two rules")
            RULES[name] = function
        return function

    return register


def tensors_in(*values: Any) -> list[Tensor]:
    """The tensors among the arguments or results of an operator, which can be in lists."""
    return [leaf for leaf in arguments_in(*values) if isinstance(leaf, Tensor)]


def arguments_in(*values: Any) -> list[Any]:
    """All arguments of an operator, those in lists one by one."""
    found: list[Any] = []
    for value in values:
        if isinstance(value, dict):
            found.extend(arguments_in(*value.values()))
        elif isinstance(value, (list, tuple)):
            found.extend(arguments_in(*value))
        else:
            found.append(value)
    return found


def arguments_of(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call by name, in the order of the operator's schema, defaults included."""
    return {
        argument.name: args[position] if position < len(args) else kwargs.get(argument.name, argument.default_value)
        for position, argument in enumerate(func._schema.arguments)
    }


def operator_name(func: Any) -> str:
    """The name of an operator without overload and in-place underscore; one outside ATen keeps its namespace."""
    namespace, _, name = func._schema.name.partition("::")
    plain = name if name.startswith("__") else name.rstrip("_")
    return plain if namespace == "aten" else f"{namespace}::{name}"


def is_pointwise(func: Any) -> bool:
    """Tell whether ATen tags an operator as pointwise."""
    return torch.Tag.pointwise in func.tags


def frozen(shape: Sequence[int], reason: str) -> list[Axis]:
    """Make fresh axes that are never pruned."""
    return [Atom(size, reason) for size in shape]


def freeze_all(axes: Sequence[Axis], reason: str) -> None:
    """Freeze several axes."""
    for axis in axes:
        freeze(axis, reason)
