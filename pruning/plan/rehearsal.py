"""Rehearse a plan: run the model narrowed in shape along its trace, and find out what makes it deviate."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import chain

from pruning.graph.axes import Atom, leaves
from pruning.graph.contexts import no_leftovers
from pruning.graph.groups import Groups
from pruning.graph.size_attributes import conflicts
from pruning.graph.trace import Operation, Trace
from pruning.plan.plan import Plan
from pruning.plan.slicing import rebuild
from pruning.plan.verification import Comparison, Deviation


def rehearse(groups: Groups, lost: Mapping[str, int]) -> Deviation | None:
    """Narrow groups in shape and compare all passes; tell where the first one deviates."""
    plan = _plan(groups, lost)
    return next((d for traced in groups.trace.passes if (d := compare(groups, traced, plan)) is not None), None)


def compare(groups: Groups, traced: Trace, plan: Plan, last: int | None = None) -> Deviation | None:
    """Narrow groups in shape and compare one pass, up to the operator numbered `last`; tell where it deviates."""
    sizes = {groups.atom(name): size for name, size in plan.kept_sizes(groups).items()}
    with no_leftovers():  # what one pass keeps would change the path of the next; what the copy keeps goes with it
        return Comparison(traced, sizes, last).run(
            rebuild(groups.model, groups, plan, shapes_only=traced.tensors != "real"), groups
        )


def _plan(groups: Groups, lost: Mapping[str, int]) -> Plan:
    return Plan.of(groups, {name: range(count) for name, count in lost.items()})


def culprits(groups: Groups, lost: Mapping[str, int], deviation: Deviation) -> list[Atom]:
    """The atoms that make the pass deviate: at the operator itself, behind an integer it uses, or anywhere."""
    first = deviation.operation
    by_atom = {groups.atom(name): name for name in lost}
    here = _places(first, by_atom)
    alone = [place for place, atom in here.items() if is_enough(groups, [by_atom[atom]], lost, deviation)]
    behind = [] if alone else _behind_integers(groups, first, deviation, by_atom)
    to_blame = [
        n for n, atoms in enumerate(behind) if any(is_enough(groups, [by_atom[a]], lost, deviation) for a in atoms)
    ]
    found: dict[Atom, None] = {}
    for operation in deviation.traced.operations:
        if operation.name == first.name and operation.place.line == first.place.line:
            there = _places(operation, by_atom)
            found.update(dict.fromkeys(there[place] for place in alone if place in there))
            behind = _behind_integers(groups, operation, deviation, by_atom) if to_blame else []
            found.update(dict.fromkeys(atom for number in to_blame for atom in chain(*behind[number : number + 1])))
    return list(found) or _bisect(groups, lost, deviation)


def _behind_integers(
    groups: Groups, operation: Operation, deviation: Deviation, by_atom: Mapping[Atom, str]
) -> list[list[Atom]]:
    """For each integer that an operation uses for another axis of the same size: the atoms that it follows."""
    served = conflicts(groups.model, operation, deviation.traced.facts)
    return [[atom for atom in leaves(axis) if atom in by_atom] for axis in served]


def is_enough(groups: Groups, names: Sequence[str], lost: Mapping[str, int], deviation: Deviation) -> bool:
    """Whether narrowing these groups alone makes the pass deviate as early; what comes later is another matter."""
    chosen = dict.fromkeys(other for name in names for other in (name, *groups[name].ties))
    plan = _plan(groups, {name: lost[name] for name in chosen})
    return compare(groups, deviation.traced, plan, deviation.index) is not None


def _places(operation: Operation, by_atom: Mapping[Atom, str]) -> dict[tuple[int, int, int], Atom]:
    """Where the prunable atoms of an operator stand: which tensor, which axis, which leaf of it; each atom once."""
    places: dict[Atom, tuple[int, int, int]] = {}
    for tensor, axes in enumerate((*operation.inputs, *operation.outputs)):
        for position, axis in enumerate(axes):
            for leaf, atom in enumerate(leaves(axis)):
                if atom in by_atom:
                    places.setdefault(atom, (tensor, position, leaf))
    return {place: atom for atom, place in places.items()}


def _bisect(groups: Groups, lost: Mapping[str, int], deviation: Deviation) -> list[Atom]:
    """The fewest groups whose narrowing makes the pass deviate, together with those that other blocks name alike."""
    names, pieces = list(lost), 2
    while len(names) > 1:
        size = -(-len(names) // pieces)
        parts = [names[i : i + size] for i in range(0, len(names), size)]
        others = [[name for name in names if name not in part] for part in parts]
        smaller = next((part for part in (*parts, *others) if part and is_enough(groups, part, lost, deviation)), None)
        if smaller is not None and len(smaller) < len(names):
            names, pieces = smaller, 2
        elif pieces >= len(names):
            break
        else:
            pieces = min(2 * pieces, len(names))
    alike = {_without_numbers(name) for name in names}
    return [groups.atom(group.name) for group in groups if _without_numbers(group.name) in alike]


def _without_numbers(name: str) -> str:
    parameter, _, position = name.rpartition(":")
    return f"{re.sub(r'[0-9]+', '#', parameter)}:{position}"
