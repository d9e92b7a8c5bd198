"""Rehearse a plan that narrows every group: does the model's own code go along with it?

Code can hold sizes that no axis shows: `view(n, 256)`, a division by the root of a width, a split at a fixed index. So
the forward pass is run once more, on a model that is narrowed in shape only, and compared operator by operator with the
trace: the same operators, with the same numbers, giving exactly the shapes that the axes predict. The first one that
deviates names the groups that have to stay whole. Nothing is computed and no weight is copied.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import islice

from pruning.axes import Atom, leaves, resolve
from pruning.comparison import Comparison, Deviation
from pruning.conditions import no_leftovers
from pruning.counts import conflicts, proposals
from pruning.groups import Groups
from pruning.operations import Operation
from pruning.plan import Plan
from pruning.rebuilding import rebuild
from pruning.trace import Trace

_TRIES = 24  # proposals that are rehearsed before a group is given up
_SHARES = (0.25, 0.375, 0.5, 0.3, 0.45)  # different groups lose different shares, so that no two sizes agree by chance


def confirm(groups: Groups) -> Groups:
    """Bind the integers of the model's code that follow the groups; freeze every group that code can't follow.

    Returns:
        The groups that are left; all of them can be narrowed together.
    """
    for branch in list(groups.trace.branches):
        if _compare(groups, branch, Plan.of(groups, {})) is not None:
            groups.trace.branches.remove(branch)
            groups.trace.training_fault = "it takes another path at every call"
            groups = Groups(groups.model, groups.example_inputs, groups.trace)
    while len(groups):
        names = [group.name for group in groups]
        deviation = _rehearse(groups, names)
        if deviation is None:
            break
        bound = _bind_counts(groups, names, deviation)
        if bound is None:
            place = deviation.operation.place
            for atom in _culprits(groups, names, deviation):
                atom.frozen = f"the code {place} was written for its size: {deviation.text}"
        groups = bound or Groups(groups.model, groups.example_inputs, groups.trace)
    return groups


def _bind_counts(groups: Groups, names: Sequence[str], deviation: Deviation) -> Groups | None:
    """Bind integers of the calling modules to axes if that carries the pass further; tell the groups after it.

    Where an integer serves two axes, they may lose equal counts.
    """
    operations, facts = deviation.traced.operations, deviation.traced.facts
    prunable, counts, ties = {groups.atom(name) for name in names}, list(facts.counts), list(facts.ties)
    known = {(count.module, count.attribute): count for count in counts}
    index = min(deviation.index, len(operations) - 1)
    for proposal in islice(proposals(groups.model, operations, index, prunable), _TRIES):
        new = [count for count in proposal if (count.module, count.attribute) not in known]
        served = [(known[count.module, count.attribute], count) for count in proposal if count not in new]
        shared = [
            (old.axis, count.axis)
            for old, count in served
            if resolve(old.axis) in prunable and resolve(count.axis) in prunable
        ]
        if len(shared) < len(served):
            continue
        facts.counts[:], facts.ties[:] = counts + new, [*ties, *shared]
        after = Groups(groups.model, groups.example_inputs, groups.trace) if shared else groups
        further = _rehearse(after, [group.name for group in after])
        if further is None or further.traced is not deviation.traced or further.index > deviation.index:
            return after
    facts.counts[:], facts.ties[:] = counts, ties
    return None


def _rehearse(groups: Groups, names: Sequence[str]) -> Deviation | None:
    """Narrow the named groups in shape and compare all passes; tell where the first one deviates."""
    plan = _plan(groups, names)
    return next((d for traced in groups.trace.passes if (d := _compare(groups, traced, plan)) is not None), None)


def _compare(groups: Groups, traced: Trace, plan: Plan) -> Deviation | None:
    sizes = {groups.atom(name): size for name, size in plan.kept_sizes(groups).items()}
    model = rebuild(groups.model, groups, plan, shapes_only=traced.fake)
    with no_leftovers():  # what one pass keeps would change the path of the next
        return Comparison(traced, sizes).run(model, groups)


def _plan(groups: Groups, names: Sequence[str]) -> Plan:
    removed: dict[str, range] = {}
    for position, name in enumerate(names):
        group = groups[name]
        tied = next((removed[other] for other in group.ties if other in removed), None)
        lost = max(1, int(group.size * _SHARES[position % len(_SHARES)]))
        removed[name] = tied if tied is not None else range(lost)
        for other in group.ties:
            removed[other] = removed[name]
    return Plan.of(groups, removed)


def _culprits(groups: Groups, names: Sequence[str], deviation: Deviation) -> list[Atom]:
    """The atoms that make the pass deviate: at the operator itself, behind an integer it uses, or anywhere."""
    first = deviation.operation
    by_atom = {groups.atom(name): name for name in names}
    here = _places(first, by_atom)
    alone = [place for place, atom in here.items() if _is_enough(groups, _with_ties(groups, by_atom[atom]), deviation)]
    found: dict[Atom, None] = {}
    for operation in deviation.traced.operations:
        if operation.name == first.name and operation.place.line == first.place.line:
            there = _places(operation, by_atom)
            found.update(dict.fromkeys(there[place] for place in alone if place in there))
            if not alone:
                served = conflicts(groups.model, operation, deviation.traced.facts.counts)
                found.update(dict.fromkeys(atom for axis in served for atom in leaves(axis) if atom in by_atom))
    return list(found) or _bisect(groups, names, deviation)


def _is_enough(groups: Groups, names: Sequence[str], deviation: Deviation) -> bool:
    """Whether narrowing these groups alone makes the pass deviate as early; what comes later is another matter."""
    found = _rehearse(groups, names)
    return found is not None and found.traced is deviation.traced and found.index <= deviation.index


def _places(operation: Operation, by_atom: Mapping[Atom, str]) -> dict[tuple[int, int, int], Atom]:
    """Where the prunable atoms of an operator stand: which tensor, which axis, which leaf of it; each atom once."""
    places: dict[Atom, tuple[int, int, int]] = {}
    for tensor, axes in enumerate((*operation.inputs, *operation.outputs)):
        for position, axis in enumerate(axes):
            for leaf, atom in enumerate(leaves(axis)):
                if atom in by_atom:
                    places.setdefault(atom, (tensor, position, leaf))
    return {place: atom for atom, place in places.items()}


def _with_ties(groups: Groups, name: str) -> list[str]:
    return [name, *groups[name].ties]


def _bisect(groups: Groups, names: Sequence[str], deviation: Deviation) -> list[Atom]:
    """The fewest groups whose narrowing makes the pass deviate, together with those that other blocks name alike."""
    pieces = 2
    while len(names) > 1:
        size = -(-len(names) // pieces)
        parts = [names[i : i + size] for i in range(0, len(names), size)]
        others = [[name for name in names if name not in part] for part in parts]
        smaller = next((part for part in (*parts, *others) if part and _is_enough(groups, part, deviation)), None)
        if smaller is not None and len(smaller) < len(names):
            names, pieces = smaller, 2
        elif pieces >= len(names):
            break
        else:
            pieces = min(2 * pieces, len(names))
    alike = {_without_numbers(name) for name in names}
    return [groups.atom(group.name) for group in groups if _without_numbers(group.name) in alike]


def _without_numbers(name: str) -> str:
    return re.sub(r"\d+", "#", name)
