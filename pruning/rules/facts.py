"""What the rules of one trace state: of tensors, of matrix products, of integers in code."""

from __future__ import annotations

from dataclasses import dataclass, field

from pruning.algebra.axes import Axis


@dataclass
class Typed:
    """What is known of a tensor: its axes, and where its values come from.

    Attributes:
        axes: One expression per axis.
        zero: Whether a channel that a plan removes holds only zeros once its parameters are zeroed.
        sources: The parameters and buffers from which alone the tensor was computed; empty if inputs took part.
    """

    axes: list[Axis]
    zero: bool = True
    sources: frozenset[str] = frozenset()


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
        axis: The expression that gives its value under any plan.
    """

    module: str
    spot: tuple[str, str, int | None, int]
    axis: Axis

    @property
    def place(self) -> tuple[object, ...]:
        """What tells it from others."""
        return (self.module, *self.spot)


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
        unmasked: Axes of parameters along which zeros would be divided by.
        summed: Axes over which an operator sums or computes a statistic: what lies there, the pass has read.
        cuts: For each slice of a tensor that was computed from parameters alone: which tensor and axis, what lies along
            it, and what the slice reads of that.
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
    summed: list[Axis] = field(default_factory=list)
    cuts: list[tuple[tuple[int, int], Axis, Axis]] = field(default_factory=list)
