"""Operators that ATen tags as pointwise: axes are aligned from the right and broadcast."""

from __future__ import annotations

from pruning.axes import Axis
from pruning.rules.call import Call
from pruning.unification import unify

# f(0) = 0 for these, so a channel of zeros stays one.
KEEPS_ZERO = frozenset(
    [
        "abs",
        "asin",
        "asinh",
        "atan",
        "ceil",
        "celu",
        "clone",
        "elu",
        "erf",
        "expm1",
        "floor",
        "frac",
        "gelu",
        "hardswish",
        "leaky_relu",
        "log1p",
        "mish",
        "neg",
        "prelu",
        "relu",
        "relu6",
        "round",
        "selu",
        "sgn",
        "sign",
        "silu",
        "sin",
        "sinh",
        "softshrink",
        "sqrt",
        "square",
        "tan",
        "tanh",
        "trunc",
        "_to_copy",
    ]
)


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


def broadcast(call: Call) -> list[list[Axis]]:
    """The rule of all pointwise operators."""
    axes = broadcast_axes(*(call.axes(tensor) for tensor in call.inputs))
    call.zero = _stays_zero(call)
    return [axes for _ in call.outputs]


def _stays_zero(call: Call) -> bool:
    every = all(call.typed(t).zero for t in call.inputs)
    width = call.outputs[0].numel()
    if call.name in ("mul", "div", "true_divide"):
        # A zero operand makes the result zero where it has all of the result's axes itself.
        holders = call.inputs[:1] if call.name != "mul" else call.inputs
        return every or any(call.typed(t).zero and t.numel() == width for t in holders)
    if call.name in ("add", "sub"):
        other = call["other"]
        return every and (len(call.inputs) == 2 or other == 0)
    if call.name == "hardtanh":
        return every and call["min_val"] <= 0 <= call["max_val"]
    if call.name in ("clamp", "clamp_min", "clamp_max"):
        low, high = call["min"], call["max"]
        return every and len(call.inputs) == 1 and (low is None or low <= 0) and (high is None or high >= 0)
    if call.name == "pow":
        exponent = call["exponent"]
        return every and isinstance(exponent, (int, float)) and exponent > 0
    return every and call.name in KEEPS_ZERO
