"""Follow a narrowed model's forward pass along the trace: the same operators and numbers, the predicted shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from pruning.errors import pass_on
from pruning.graph.axes import Atom, count, cut
from pruning.graph.dispatch import Listeners, Place, state_of, watch
from pruning.graph.groups import Groups
from pruning.graph.rules.call import arguments_of, is_pointwise, operator_name, tensors_in
from pruning.graph.rules.reshaping import slice_start
from pruning.graph.trace import IDENTITIES, Operation, Trace, constants_of


@dataclass(frozen=True)
class Deviation:
    """Where the narrowed model leaves the path that the axes predict.

    Attributes:
        traced: The pass that deviates.
        index: Position of the operator in the trace.
        text: What was found and what was expected.
        constant: Whether the shapes are right, and a number that isn't a size differs.
    """

    traced: Trace
    index: int
    text: str
    constant: bool = False

    @property
    def operation(self) -> Operation:
        """The operator at which it deviates."""
        return self.traced.operations[min(self.index, len(self.traced.operations) - 1)]


class _Ended(Exception):  # noqa: N818 - stops the forward pass; no fault of anyone
    pass


class Comparison:
    """Follow a narrowed model's forward pass along the operations of the trace, as far as the one numbered `last`."""

    def __init__(self, traced: Trace, sizes: Mapping[Atom, int], last: int | None = None) -> None:
        self.traced = traced
        self.last = last
        self.operations = traced.operations
        self.sizes = sizes
        self.index = 0
        self.deviation: Deviation | None = None

    def run(self, model: nn.Module, groups: Groups) -> Deviation | None:
        """Run the narrowed model; tell where it deviates, or None."""
        devices = {name: tensor.device for name, tensor in state_of(groups.model).items()}
        try:
            traced, listeners = self.traced, Listeners(self.on_call)
            watch(model, traced.example, listeners, traced.tensors, devices=devices, training=traced.training)
        except _Ended:
            return self.deviation
        except Exception as fault:  # noqa: BLE001 - the model's own code may raise anything at a size it doesn't know
            pass_on(fault)
            return Deviation(self.traced, self.index, _first_line(fault))
        if self.index < len(self.operations):
            return Deviation(self.traced, self.index, "it ends early")
        return None

    def on_call(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any], result: Any, place: Place) -> None:
        """Compare one operator call with the next one of the trace."""
        outputs = tensors_in(result)
        if not outputs or operator_name(func) in IDENTITIES:
            return
        if self.index >= len(self.operations):
            self._stop(f"it goes on with {operator_name(func)} {place}")
        expected = self.operations[self.index]
        if operator_name(func) != expected.name:
            self._stop(f"it calls {operator_name(func)} instead of {expected.name}")
        for out, axes in zip(outputs, expected.outputs, strict=True):
            shape = [count(axis, self.sizes) for axis in axes]
            if list(out.shape) != shape:
                self._stop(f"{expected.name} gives shape {list(out.shape)} where {shape} was expected")
        numbers = (int, float, complex) if is_pointwise(func) or "full" in expected.name else (float, complex)
        for found, known in zip(constants_of(args, kwargs, self.traced.tensors), expected.constants, strict=False):
            if isinstance(known, numbers) and not isinstance(known, bool) and found != known:
                self._stop(f"{expected.name} uses {found!r} instead of {known!r}", constant=True)
        if expected.name in ("slice", "narrow"):
            self._compare_start(arguments_of(func, args, kwargs), expected)
        if self.index == self.last:
            raise _Ended
        self.index += 1

    def _compare_start(self, arguments: Mapping[str, Any], expected: Operation) -> None:
        """A slice of the right length can still begin at the wrong channel."""
        x, dim = arguments["self"], arguments["dim"] % arguments["self"].ndim
        axis = expected.inputs[0][dim]
        before = cut(axis, [expected.start, axis.size - expected.start])[0]
        start, known = slice_start(arguments["start"], x.shape[dim]), count(before, self.sizes)
        if start != known:
            self._stop(f"{expected.name} begins at {start} where {known} was expected")

    def _stop(self, text: str, *, constant: bool = False) -> None:
        self.deviation = Deviation(self.traced, self.index, text, constant)
        raise _Ended


def _first_line(fault: Exception) -> str:
    return str(fault).strip().splitlines()[0] if str(fault).strip() else type(fault).__name__
