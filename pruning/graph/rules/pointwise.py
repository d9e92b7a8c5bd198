"""Operators that work value by value, copy, or make tensors: axes are aligned from the right and broadcast."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from pruning.graph.axes import Atom, Axis, freeze, unify
from pruning.graph.rules.call import Call, frozen, is_open, rule

# f(0) = 0 for these, so a channel of zeros stays one.
KEEPS_ZERO = frozenset(
    (
        *("abs", "asin", "asinh", "atan", "ceil", "celu", "elu", "erf", "expm1", "floor", "frac", "gelu", "hardswish"),
        *("leaky_relu", "log1p", "mish", "neg", "relu", "round", "selu", "sgn", "sign", "silu", "sin", "sinh"),
        *("softshrink", "sqrt", "square", "tan", "tanh", "trunc", "_prelu_kernel"),
    )
)

# f(0) is no number or infinite for these, by the operand that must not be zero.
NEEDS_NONZERO = {
    **dict.fromkeys(("digamma", "lgamma", "log", "log10", "log2", "polygamma", "reciprocal", "rsqrt"), "self"),
    **dict.fromkeys(("div", "floor_divide", "fmod", "remainder"), "other"),
}


def broadcast_axes(*operands: list[Axis]) -> list[Axis]:
    """Unify axes aligned from the right; an axis of size 1 broadcasts and couples nothing."""
    out: list[Axis] = []
    for axes in operands:
        out = [*axes[: len(axes) - len(out)], *out] if len(axes) > len(out) else out
    for axes in operands:
        for position, axis in enumerate(axes, start=len(out) - len(axes)):
            if out[position].size == 1:
                out[position] = axis
            elif axis.size != 1:
                unify(out[position], axis)
    return out


def stays_zero_in_sum(out: list[Axis], operands: Sequence[tuple[list[Axis], bool]]) -> bool:
    """A sum is zero where all terms are; a term that is broadcast along an open axis is not."""
    return all(
        all(zero and _wide(axes, out, position) for axes, zero in operands)
        for position, axis in enumerate(out)
        if is_open(axis)
    )


def _stays_zero_in_product(out: list[Axis], operands: Sequence[tuple[list[Axis], bool]]) -> bool:
    """A product is zero where one factor is that has the axis itself."""
    return all(
        any(zero and _wide(axes, out, position) for axes, zero in operands)
        for position, axis in enumerate(out)
        if is_open(axis)
    )


def _wide(axes: list[Axis], out: list[Axis], position: int) -> bool:
    mine = position - (len(out) - len(axes))
    return mine >= 0 and axes[mine].size != 1


@rule("_prelu_kernel", "hardswish", "log_sigmoid_forward", "masked_fill")
def broadcast(call: Call) -> list[list[Axis]]:
    """The rule of all pointwise operators."""
    _freeze_undefined(call)
    axes = broadcast_axes(*(call.axes(tensor) for tensor in call.inputs))
    call.zero = _stays_zero(call, axes)
    return [axes for _ in call.outputs]


def _freeze_undefined(call: Call) -> None:
    """Where a removed channel's zeros would give no number, it can't be masked: no zero after it makes up for that."""
    negative = call.name == "pow" and isinstance(call["exponent"], (int, float)) and call["exponent"] < 0
    operand = call["self"] if negative else call[NEEDS_NONZERO.get(call.name, "")]
    if isinstance(operand, Tensor) and call.typed(operand).zero:
        for axis in filter(is_open, call.axes(operand)):
            freeze(axis, f"{call.name} gives no number for the zeros of a removed channel")


def _stays_zero(call: Call, out: list[Axis]) -> bool:
    operands = [(call.axes(t), call.typed(t).zero) for t in call.inputs]
    if call.name == "mul":
        return _stays_zero_in_product(out, operands)
    if call.name == "div":
        return stays_zero_in_sum(out, operands[:1])
    every = stays_zero_in_sum(out, operands)
    if call.name in ("add", "sub"):
        return every and (len(call.inputs) == 2 or call["other"] == 0)
    if call.name == "hardtanh":
        return every and bool(call["min_val"] <= 0 <= call["max_val"])
    if call.name == "clamp":
        low, high = call["min"], call["max"]
        return every and len(call.inputs) == 1 and (low is None or low <= 0) and (high is None or high >= 0)
    if call.name == "pow":
        exponent = call["exponent"]
        return every and isinstance(exponent, (int, float)) and exponent > 0
    return every and call.name in KEEPS_ZERO


@rule(
    "native_dropout",
    "alias", "clone", "contiguous", "detach", "lift_fresh", "positive", "to", "_to_copy",
    "type_as",
)  # fmt: skip
def copy_of_first(call: Call) -> list[list[Axis]]:
    """... -> ..."""
    return [call.axes(call.inputs[0]) for _ in call.outputs]


@rule("copy")
def copy_into(call: Call) -> list[list[Axis]]:
    """The second operand is broadcast to the first and replaces its values."""
    call.zero = call.typed(call["src"]).zero
    return [broadcast_axes(call.axes(call["self"]), call.axes(call["src"]))]


@rule("zeros", "ones", "full", "empty", "new_zeros", "new_ones", "new_full", "new_empty", "scalar_tensor")
def constant(call: Call) -> list[list[Axis]]:
    """The same value everywhere: each axis may hold whatever channels it meets."""
    call.zero = call.name in ("zeros", "new_zeros")
    return [[Atom(size, "it is a single channel" if size == 1 else None) for size in call.outputs[0].shape]]


@rule("zeros_like", "ones_like", "full_like", "empty_like", "rand_like", "randn_like")
@rule("fill", "zero", "bernoulli", "uniform", "normal")
def like(call: Call) -> list[list[Axis]]:
    """The axes of the tensor that gives the shape."""
    call.zero = call.name in ("zeros_like", "zero")
    return [call.axes(call.inputs[0])]


@rule("arange", "linspace", "logspace", "eye", "rand", "randn", "randint", "randperm")
def positional(call: Call) -> list[list[Axis]]:
    """Each position holds another value, computed from the size."""
    call.zero = False
    return [frozen(call.outputs[0].shape, f"{call.name} computes its values from the size")]
