"""Numbers in the model's own code that hold a width: found by value, bound to an axis, confirmed by rehearsing.

An attention module keeps `num_heads` as a plain integer and uses it in `view`. Where the narrowed model deviates from
the trace, the integers of the calling modules are compared with the sizes of the axes at hand; one that holds an old
size is bound to the expression that gives it, so that every narrowed copy gets the new one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, islice
from itertools import product as iter_product

from torch import nn

from pruning.graph.axes import Atom, Axis, concat, count, factors_of, leaves, parts_of, product
from pruning.graph.computed_sizes import Spot, correct
from pruning.graph.rules.call import Argument, Count, Facts
from pruning.graph.trace import Operation

_TRIES = 16  # proposals of either kind
_OWN = -1


@dataclass(frozen=True)
class _Place:
    """Where a number was found, relative to an operation: the same place exists in every block of the same code."""

    above: int  # how many modules above the one that called; _OWN for the call itself
    name: str | int  # the attribute, or the position among the call's arguments
    tensor: int  # which tensor, inputs first
    position: int  # which of its axes
    expression: int  # which expression within that axis
    stays: bool = False  # whether that keeps its size


def proposals(
    model: nn.Module, operations: Sequence[Operation], index: int, prunable: set[Atom], facts: Facts
) -> Iterator[list[Count | Argument]]:
    """Propose numbers to bind for one operation, and for the same line of code in other modules; likelier ones first.

    Attributes of modules come first, then what the code works out: an attribute says what a number means. Last, what
    the code works out for an axis that keeps its size: the width of a head that stays, as the width of the stream over
    the number of heads.
    """
    operation = operations[index]
    alike = [o for o in operations if o.name == operation.name and o.place.line == operation.place.line]
    found = list(_candidates(model, operation, prunable, facts))
    own = [place for place in found if place.above == _OWN]
    ways = [
        _ways([place for place in found if place.above != _OWN]),
        _ways([place for place in own if not place.stays], together=True),
        _ways(own) if any(place.stays for place in own) else iter(()),
    ]
    for kind in ways:
        for places in islice(kind, _TRIES):
            located = (_locate(model, other, place, prunable, facts) for other in alike for place in places)
            yield _for_all_calls({c.place: c for c in located if c is not None}.values(), alike)


def _for_all_calls(counts: Iterable[Count | Argument], alike: Sequence[Operation]) -> list[Count | Argument]:
    """Where all calls of a line show the same number, bind it in any call: other inputs may lead to more calls."""
    calls: dict[tuple[str, str, str], set[int]] = {}
    for operation in alike:
        written = operation.place.written
        if written is not None:
            place = (operation.place.module, operation.place.line, written.function)
            calls.setdefault(place, set()).add(written.ordinal)
    found: dict[tuple[object, ...], list[Argument]] = {}
    settled: dict[tuple[object, ...], Count | Argument] = {}
    for bound in counts:
        if isinstance(bound, Argument):
            found.setdefault(bound.argument, []).append(bound)
        else:
            settled[bound.place] = bound
    for same in found.values():
        line, function, _, index = same[0].spot
        everywhere = {argument.spot[2] for argument in same} == calls[same[0].module, line, function]
        if everywhere and all([*leaves(a.axis)] == [*leaves(same[0].axis)] for a in same):
            same = [Argument(same[0].module, (line, function, None, index), same[0].axis)]
        settled.update({argument.place: argument for argument in same})
    return list(settled.values())


def kept_constants(operations: Sequence[Operation], index: int, axis: Axis, facts: Facts) -> list[Argument]:
    """The numbers that code hands to an operator, and to that of the same line in other modules, as they are.

    Args:
        operations: Of a pass.
        index: Of the operator.
        axis: What they follow.
        facts: Of the pass.
    """
    name, line = operations[index].name, operations[index].place.line
    found: dict[tuple[str, str, int], dict[int, float]] = {}
    for operation in (one for one in operations if one.name == name and one.place.line == line):
        if (written := operation.place.written) is not None:
            for position, value in (*written.floats, *written.worked_out()):
                place = (operation.place.module, written.function, position)
                found.setdefault(place, {})[written.ordinal] = value
    arguments = []
    for (module, function, position), values in found.items():
        alike = len(set(values.values())) == 1
        for ordinal, value in list(values.items())[: 1 if alike else None]:
            arguments.append(Argument(module, (line, function, None if alike else ordinal, position), axis, value))
    return [argument for argument in arguments if argument.argument not in facts.moving]


def suspects(model: nn.Module, operation: Operation, facts: Facts) -> set[tuple[type, str]]:
    """The bound attributes of the innermost calling module that has some: code may use them for more than sizes."""
    bound = {count.place for count in facts.counts}
    for _, owner in _owners(operation):
        module = model.get_submodule(owner)
        held = {(type(module), name) for name, _ in _integers(module) if (owner, name) in bound}
        if held:
            return held
    return set()


def conflicts(model: nn.Module, operation: Operation, facts: Facts) -> list[Axis]:
    """The axes that an integer follows although this operation uses it for another axis of the same size."""
    bound = {count.place: count.axis for count in facts.counts}
    sizes = {e.size for axes in (*operation.inputs, *operation.outputs) for axis in axes for e in _expressions(axis)}
    return [
        bound[owner, attribute]
        for _, owner in _owners(operation)
        for attribute, value in _integers(model.get_submodule(owner))
        if (owner, attribute) in bound and value in sizes
    ]


def _ways(found: Sequence[_Place], *, together: bool = False) -> Iterator[list[_Place]]:
    """Choose numbers, and one of the expressions of its size for each: one, two, …; all of them first on demand."""
    holders = list(dict.fromkeys((place.above, place.name) for place in found))
    if len(holders) > 1 and together:
        yield _in_turn([[place for place in found if (place.above, place.name) == holder] for holder in holders])
    for number in range(1, len(holders) + 1):
        for chosen in combinations(holders, number):
            options = [[place for place in found if (place.above, place.name) == holder] for holder in chosen]
            yield _in_turn(options)
            yield from (list(way) for way in islice(iter_product(*options), 1, None))


def _in_turn(options: Sequence[Sequence[_Place]]) -> list[_Place]:
    """Give each number the first expression that no other has: equal parts of a split follow each other."""
    way: list[_Place] = []
    for places in options:
        taken = {(place.tensor, place.position, place.expression) for place in way}
        free = [place for place in places if (place.tensor, place.position, place.expression) not in taken]
        way.append((free or places)[0])
    return way


def _candidates(model: nn.Module, operation: Operation, prunable: set[Atom], facts: Facts) -> Iterator[_Place]:
    seen: set[tuple[int, str | int, tuple[Atom, ...]]] = set()
    for above, name, value in _numbers(model, operation, facts):
        for tensor, axes in enumerate((*operation.inputs, *operation.outputs)):
            for position, axis in enumerate(axes):
                for number, expression in enumerate(_expressions(axis)):
                    atoms = tuple(leaves(expression))
                    key = (above, name, atoms)
                    stays = not any(atom in prunable for atom in atoms)
                    if expression.size != value or key in seen or (stays and not _may_stay(operation, above, tensor)):
                        continue
                    seen.add(key)
                    yield _Place(above, name, tensor, position, number, stays)


def _may_stay(operation: Operation, above: int, tensor: int) -> bool:
    """Whether a number may be that of an axis that keeps its size: the code works it out for an axis of an output."""
    return above == _OWN and tensor >= len(operation.inputs)


def _numbers(model: nn.Module, operation: Operation, facts: Facts) -> Iterator[tuple[int, str | int, int]]:
    """The integers at hand where an operation was called: those of the calling modules, those of the call itself."""
    for above, owner in _owners(operation):
        module = model.get_submodule(owner)
        for attribute, value in _integers(module):
            if (type(module), attribute) not in facts.constant:
                yield above, attribute, value
    if operation.place.written is not None:
        for index, value in operation.place.written.worked_out():
            yield _OWN, index, value


def _locate(
    model: nn.Module, operation: Operation, place: _Place, prunable: set[Atom], facts: Facts
) -> Count | Argument | None:
    value = {(above, name): v for above, name, v in _numbers(model, operation, facts)}.get((place.above, place.name))
    tensors = (*operation.inputs, *operation.outputs)
    if value is None or place.tensor >= len(tensors) or place.position >= len(tensors[place.tensor]):
        return None
    expressions = list(_expressions(tensors[place.tensor][place.position]))
    if place.expression >= len(expressions) or expressions[place.expression].size != value:
        return None
    axis = expressions[place.expression]
    if place.stays == any(atom in prunable for atom in leaves(axis)):
        return None
    if isinstance(place.name, str):
        return Count(dict(_owners(operation))[place.above], place.name, axis)
    written = operation.place.written
    assert written is not None  # it holds the number that was found
    spot = (operation.place.line, written.function, written.ordinal, place.name)
    argument = Argument(operation.place.module, spot, axis)
    return None if argument.argument in facts.moving else argument


def _owners(operation: Operation) -> list[tuple[int, str]]:
    """The paths of the modules that were being called, innermost first, numbered."""
    names = operation.place.module.split(".") if operation.place.module else []
    return [(above, ".".join(names[: len(names) - above])) for above in range(len(names) + 1)]


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


def rebind(model: nn.Module, counts: Sequence[Count | Argument], sizes: Mapping[Atom, int]) -> None:
    """Give the numbers of a narrowed copy of a model their new values."""
    worked_out: dict[str, dict[Spot, float]] = {}
    for bound in counts:
        module, new = model.get_submodule(bound.module), count(bound.axis, sizes)
        if isinstance(bound, Argument):
            worked_out.setdefault(bound.module, {})[bound.spot] = new if bound.value is None else bound.value
        elif getattr(module, bound.attribute, None) == bound.axis.size:
            setattr(module, bound.attribute, new)
    for path, numbers in worked_out.items() if sizes else ():
        correct(model.get_submodule(path), numbers)
