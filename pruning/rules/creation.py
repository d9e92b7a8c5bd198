"""Operators that make tensors: constant ones take any shape, others differ from position to position and stay whole."""

from __future__ import annotations

from pruning.algebra.axes import Atom, Axis
from pruning.rules.call import Call, frozen, rule


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
