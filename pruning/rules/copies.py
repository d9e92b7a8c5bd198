"""Operators that hand values on as they are."""

from __future__ import annotations

from pruning.algebra.axes import Axis
from pruning.rules.call import Call, rule
from pruning.rules.pointwise import broadcast_axes


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
