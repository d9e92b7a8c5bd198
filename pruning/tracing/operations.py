"""What a trace keeps of each operator call, for the report and for comparing a narrowed model with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from pruning.algebra.axes import Axis
from pruning.rules.call import Call, arguments_in
from pruning.rules.reshaping import slice_start
from pruning.tracing.watch import Place, Tensors

_SMALL = 16  # values of a tensor that are compared as constants
# PyTorch inserts these where it caches a shape or not, so they say nothing of the model.
IDENTITIES = frozenset({"alias", "contiguous", "detach", "lift_fresh"})


@dataclass(frozen=True)
class Operation:
    """One operator call of a trace, kept for the report and for confirming plans."""

    name: str
    place: Place
    constants: tuple[Any, ...]
    inputs: tuple[tuple[Axis, ...], ...]
    outputs: tuple[tuple[Axis, ...], ...]
    start: int = 0  # where a slice begins


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
