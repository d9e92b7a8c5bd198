"""Rehearse a plan that narrows every group: does the model's own code go along with it?

Code can hold sizes that no axis shows: `view(n, 256)`, a division by the root of a width, a split at a fixed index. So
the forward pass is run once more, on a model that is narrowed in shape only, and compared operator by operator with the
trace: the same operators, with the same numbers, giving exactly the shapes that the axes predict. The first one that
deviates names the groups that have to stay whole. Nothing is computed and no weight is copied.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from pruning.axes import Atom, count, leaves, resolve
from pruning.counts import conflicts, proposals
from pruning.groups import Groups
from pruning.plan import Plan
from pruning.rebuilding import rebuild
from pruning.rules.call import Call, is_pointwise, operator_name
from pruning.rules.reshaping import slice_start
from pruning.trace import IDENTITIES, Operation, Trace, constants_of
from pruning.unification import cut
from pruning.watch import Place, no_leftovers, watch

_TRIES = 24  # proposals that are rehearsed before a group is given up
_SHARES = (0.25, 0.375, 0.5)  # different groups lose different shares, so that no two sizes agree by chance


@dataclass(frozen=True)
class Deviation:
    """Where the narrowed model leaves the path that the axes predict.

    Attributes:
        traced: The pass that deviates.
        index: Position of the operator in the trace.
        text: What was found and what was expected.
    """

    traced: Trace
    index: int
    text: str

    @property
    def operation(self) -> Operation:
        """The operator at which it deviates."""
        return self.traced.operations[min(self.index, len(self.traced.operations) - 1)]


class _Deviated(Exception):  # noqa: N818 - stops the forward pass; no fault of anyone
    pass


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
            if isinstance(resolve(old.axis), Atom) and isinstance(resolve(count.axis), Atom)
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
        return _Comparison(traced, sizes).run(model, groups)


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


class _Comparison:
    """Follow a narrowed model's forward pass along the operations of the trace."""

    def __init__(self, traced: Trace, sizes: Mapping[Atom, int]) -> None:
        self.traced = traced
        self.operations = traced.operations
        self.sizes = sizes
        self.index = 0
        self.deviation: Deviation | None = None

    def run(self, model: nn.Module, groups: Groups) -> Deviation | None:
        devices = {
            name: tensor.device for name, tensor in (*groups.model.named_parameters(), *groups.model.named_buffers())
        }
        try:
            traced = self.traced
            watch(model, groups.example_inputs, lambda *_: None, self.on_call, traced.fake, devices, traced.training)
        except _Deviated:
            return self.deviation
        except Exception as fault:  # noqa: BLE001 - the model's own code may raise anything at a size it doesn't know
            return Deviation(self.traced, self.index, _first_line(fault))
        if self.index < len(self.operations):
            return Deviation(self.traced, self.index, "it ends early")
        return None

    def on_call(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any], result: Any, place: Place) -> None:
        outputs = [leaf for leaf in tree_flatten(result)[0] if isinstance(leaf, Tensor)]
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
        for found, known in zip(constants_of(args, kwargs), expected.constants, strict=False):
            if isinstance(known, numbers) and not isinstance(known, bool) and found != known:
                self._stop(f"{expected.name} uses {found!r} instead of {known!r}")
        if expected.name in ("slice", "narrow"):
            self._compare_start(Call.arguments_of(func, args, kwargs), expected)
        self.index += 1

    def _compare_start(self, arguments: Mapping[str, Any], expected: Operation) -> None:
        """A slice of the right length can still begin at the wrong channel."""
        x, dim = arguments["self"], arguments["dim"] % arguments["self"].ndim
        axis = expected.inputs[0][dim]
        before = cut(axis, [expected.start, axis.size - expected.start])[0]
        start, known = slice_start(arguments["start"], x.shape[dim]), count(before, self.sizes)
        if start != known:
            self._stop(f"{expected.name} begins at {start} where {known} was expected")

    def _stop(self, text: str) -> None:
        self.deviation = Deviation(self.traced, self.index, text)
        raise _Deviated


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


def _first_line(fault: Exception) -> str:
    return str(fault).strip().splitlines()[0] if str(fault).strip() else type(fault).__name__
