"""Integers in the model's own code that hold a width: found by value, bound to an axis, confirmed by rehearsing.

An attention module keeps `num_heads` as a plain integer and uses it in `view`. Where the narrowed model deviates from
the trace, the integers of the calling modules are compared with the sizes of the axes at hand; one that holds an old
size is bound to the expression that gives it, so that every narrowed copy gets the new one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from torch import nn

from pruning.axes import Atom, Axis, concat, count, factors_of, leaves, parts_of, product
from pruning.operations import Operation
from pruning.rules.facts import Count

_MOST = 4  # integers that are bound together in one try


@dataclass(frozen=True)
class _Place:
    """Where a count was found, relative to an operation: the same place exists in every block of the same code."""

    above: int  # how many modules above the one that called
    attribute: str
    tensor: int  # which tensor, inputs first
    position: int  # which of its axes
    expression: int  # which expression within that axis


def proposals(
    model: nn.Module, operations: Sequence[Operation], index: int, prunable: set[Atom]
) -> Iterator[list[Count]]:
    """Propose counts to bind for one operation, and for the same line of code in other modules; likelier ones first."""
    operation = operations[index]
    found = list(_candidates(model, operation, prunable))
    alike = [o for o in operations if o.name == operation.name and o.place.line == operation.place.line]
    attributes = list(dict.fromkeys((place.above, place.attribute) for place in found))
    for number in range(1, min(len(attributes), _MOST) + 1):
        for chosen in combinations(attributes, number):
            for places in _choices(found, chosen):
                located = (_locate(model, other, place, prunable) for other in alike for place in places)
                yield list({(c.module, c.attribute): c for c in located if c is not None}.values())


def conflicts(model: nn.Module, operation: Operation, counts: Sequence[Count]) -> list[Axis]:
    """The axes that an integer follows although this operation uses it for another axis of the same size."""
    bound = {(count.module, count.attribute): count.axis for count in counts}
    sizes = {e.size for axes in (*operation.inputs, *operation.outputs) for axis in axes for e in _expressions(axis)}
    path = operation.place.module
    return [
        bound[owner, attribute]
        for above in range(path.count(".") + 2 if path else 1)
        for owner in [_ancestor(path, above)]
        for attribute, value in _integers(model.get_submodule(owner))
        if (owner, attribute) in bound and value in sizes
    ]


def _choices(found: Sequence[_Place], chosen: Sequence[tuple[int, str]]) -> Iterator[list[_Place]]:
    """All ways to give each chosen attribute one of the expressions of its size."""
    if not chosen:
        yield []
        return
    for place in found:
        if (place.above, place.attribute) == chosen[0]:
            for rest in _choices(found, chosen[1:]):
                yield [place, *rest]


def _candidates(model: nn.Module, operation: Operation, prunable: set[Atom]) -> Iterator[_Place]:
    seen: set[tuple[int, str, tuple[Atom, ...]]] = set()
    path = operation.place.module
    for above in range(path.count(".") + 2 if path else 1):
        for attribute, value in _integers(model.get_submodule(_ancestor(path, above))):
            for tensor, axes in enumerate((*operation.inputs, *operation.outputs)):
                for position, axis in enumerate(axes):
                    for number, expression in enumerate(_expressions(axis)):
                        atoms = tuple(leaves(expression))
                        key = (above, attribute, atoms)
                        if expression.size == value and key not in seen and any(atom in prunable for atom in atoms):
                            seen.add(key)
                            yield _Place(above, attribute, tensor, position, number)


def _locate(model: nn.Module, operation: Operation, place: _Place, prunable: set[Atom]) -> Count | None:
    path = operation.place.module
    if place.above > (path.count(".") + 1 if path else 0):
        return None
    owner = _ancestor(path, place.above)
    value = dict(_integers(model.get_submodule(owner))).get(place.attribute)
    tensors = (*operation.inputs, *operation.outputs)
    if value is None or place.tensor >= len(tensors) or place.position >= len(tensors[place.tensor]):
        return None
    expressions = list(_expressions(tensors[place.tensor][place.position]))
    if place.expression >= len(expressions) or expressions[place.expression].size != value:
        return None
    expression = expressions[place.expression]
    return Count(owner, place.attribute, expression) if any(a in prunable for a in leaves(expression)) else None


def _ancestor(path: str, above: int) -> str:
    names = path.split(".") if path else []
    return ".".join(names[: len(names) - above])


def _integers(module: nn.Module) -> list[tuple[str, int]]:
    return [(name, value) for name, value in vars(module).items() if type(value) is int and value > 1]


def _expressions(axis: Axis) -> Iterator[Axis]:
    """The axis itself, the parts of a sum, and every run of neighbouring factors of a product."""
    yield axis
    parts = parts_of(axis)
    if len(parts) > 1:
        for end in range(2, len(parts)):
            yield concat(parts[:end])
    for part in parts:
        if len(parts) > 1:
            yield part
        factors = factors_of(part)
        for width in range(1, len(factors)):
            for start in range(len(factors) - width + 1):
                yield product(factors[start : start + width])


def rebind(model: nn.Module, counts: Sequence[Count], sizes: Mapping[Atom, int]) -> None:
    """Give the integers of a narrowed copy of a model their new values."""
    for bound in counts:
        module = model.get_submodule(bound.module)
        if getattr(module, bound.attribute, None) == bound.axis.size:
            setattr(module, bound.attribute, count(bound.axis, sizes))
