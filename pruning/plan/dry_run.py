"""Find the groups of channels that can be pruned: trace the model, then dry-run its code with every group narrowed.

Code can hold sizes that no axis shows: `view(n, 256)`, a division by the root of a width, a split at a fixed index. So
the forward pass is run once more, on a model that is narrowed in shape only, and compared operator by operator with the
trace: the same operators, with the same numbers, giving exactly the shapes that the axes predict. The first one that
deviates names the groups that have to stay whole. Nothing is computed and no weight is copied.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import combinations, islice
from math import ceil, log
from typing import Any

from torch import nn

from pruning.containers import Inputs
from pruning.graph.axes import Atom, concat, freeze, leaves, resolve
from pruning.graph.contexts import no_leftovers
from pruning.graph.dispatch import Listeners, Place, watch
from pruning.graph.groups import Groups
from pruning.graph.kept_statistics import statistics_of
from pruning.graph.module_copy import copy_module
from pruning.graph.rules.call import Argument, Count
from pruning.graph.size_attributes import kept_constants, proposals, suspects
from pruning.graph.trace import Trace, trace
from pruning.graph.unwrapping import unwrap
from pruning.plan.other_sizes import resizings
from pruning.plan.plan import Plan
from pruning.plan.rehearsal import compare, culprits, is_enough, rehearse
from pruning.plan.verification import Deviation, attempt

_CHECKED = 16  # lines of code before a check that failed, whose tensors it may be about

_Spot = tuple[str, str, str, int]
"""Where code hands a number to PyTorch: module, line, function, position among the numbers."""


def find_groups(
    model: nn.Module, example_inputs: Inputs, *, allow_mixed: bool = False, ignore_unused: bool = False
) -> Groups:
    """Find all groups of channels that can be pruned.

    Args:
        model: Any module; it is left as it was. Wrappers that training puts around one (`nn.DataParallel`,
            `torch.compile`) are looked through: the groups are those of the module inside.
        example_inputs: A tensor, a tuple of arguments, or a dict of keyword arguments. MACs are those of one pass of
            them, so a batch of 1 gives MACs per sample. Where inputs decide which path is taken, a list of such
            examples: all of them are traced, and MACs are those of the first. (A model whose one argument is a list is
            given a tuple with the list inside.)
        allow_mixed: Offer groups, too, over which a norm, a mean or a variance is computed: residual streams, such as
            the hidden size of a transformer. Once channels go, these statistics are those of the channels that stay.
            The masked model takes them so as well, and the narrowed one is verified against it as ever; but the
            channels that stay get another scale, which reconstruction or training has to make up for.
        ignore_unused: Take parameters that no example uses to be of no use at all. Otherwise channels that could reach
            them stay whole, because another input may lead there.

    Returns:
        The groups; `print(groups)` lists them, `groups.report()` says what stays whole and why.

    Raises:
        ModelError: The model can't be run on these inputs, or carries what has to be removed first.
    """
    model = unwrap(model)
    whole: dict[str, str] = {}
    while True:
        traced = trace(model, example_inputs)
        traced.allow_mixed, traced.ignore_unused = allow_mixed, ignore_unused
        offered = Groups(model, traced.example, traced)
        for name, reason in whole.items():
            offered.atom(name).frozen = reason
        groups = confirm(Groups(model, traced.example, traced) if whole else offered)
        while allow_mixed and _freeze_alike(groups):
            groups = confirm(Groups(model, traced.example, traced))
        lost = [group for group in offered if group.name not in groups and group.name not in whole]
        streams = {group.name: offered.atom(group.name).frozen for group in lost if group.mixed}
        failed = {name: reason for name, reason in streams.items() if reason}
        if not failed or len(failed) == len(lost):
            return groups
        whole |= failed  # what was lost with a stream that can't go is looked at again without it


def _freeze_alike(groups: Groups) -> bool:
    """Freeze streams whose statistics are computed at one site over axes of equal sizes; tell whether there are any.

    The masked model tells the calls of a line from each other by these sizes.
    """
    offered = {groups.atom(group.name) for group in groups if group.mixed}
    alike: set[Atom] = set()
    for (module, line, name, _), candidates in statistics_of(groups.model, groups.trace).items():
        for one, other in combinations(candidates, 2):
            moving = [
                any(atom in offered for axis in pair for atom in leaves(axis)) for pair in zip(one, other, strict=True)
            ]
            if any(moving) and all(a.size == b.size for a, b, m in zip(one, other, moving, strict=True) if m):
                where = f"at {line}" if line else f"in module {module!r}"
                reason = f"{name} {where} computes statistics over several kinds of channels, of equal numbers"
                for atom in (atom for axis in (*one, *other) for atom in leaves(axis) if atom in offered):
                    atom.frozen = atom.frozen or reason
                    alike.add(atom)
    return bool(alike)


def confirm(groups: Groups) -> Groups:
    """Bind the integers of the model's code that follow the groups; freeze every group that code can't follow.

    Returns:
        The groups that are left; all of them can be narrowed together.
    """
    for branch in list(groups.trace.branches):
        if compare(groups, branch, Plan.of(groups, {})) is not None:
            groups.trace.branches.remove(branch)
            groups.trace.training_fault = "it takes another path at every call"
            groups = Groups(groups.model, groups.example_inputs, groups.trace)
    while True:
        groups = _follow(groups)
        moving = _moving(groups)
        if not moving:
            return groups
        for traced in groups.trace.passes:
            traced.facts.counts[:] = [count for count in traced.facts.counts if count not in moving]
            traced.facts.moving.update(argument.argument for argument in moving)
        for argument, reason in moving.items():
            freeze(argument.axis, reason)
        groups = Groups(groups.model, groups.example_inputs, groups.trace)


def _follow(groups: Groups) -> Groups:
    """Rehearse until the code goes along, binding what it needs and freezing what it can't follow."""
    number = 0
    while number < len(rounds := _rounds(groups)):
        lost = rounds[number]
        deviation = rehearse(groups, lost)
        if deviation is None:
            number += 1
            continue
        if deviation.constant and _keep_constants(groups, lost, deviation):
            number = 0
            continue
        bound = _bind_counts(groups, number, deviation)
        number = 0  # what is changed for one rehearsal has to hold in all of them
        if bound is None and _unbind(groups, lost, deviation):
            continue
        if bound is None:
            place = deviation.operation.place
            for atom in culprits(groups, lost, deviation):
                atom.frozen = f"the code {place} was written for its size: {deviation.text}"
        groups = bound or Groups(groups.model, groups.example_inputs, groups.trace)
    return groups


def _keep_constants(groups: Groups, lost: Mapping[str, int], deviation: Deviation) -> bool:
    """Let numbers that are no sizes, but follow one, keep their values; tell whether that carries the pass further."""
    operations, facts = deviation.traced.operations, deviation.traced.facts
    axis = concat(culprits(groups, lost, deviation))
    known = {count.place for count in facts.counts}
    new = [one for one in kept_constants(operations, deviation.index, axis, facts) if one.place not in known]
    facts.counts += new
    further = rehearse(groups, lost) if new else deviation
    if further is None or further.traced is not deviation.traced or further.reached > deviation.reached:
        return True
    facts.counts[:] = [count for count in facts.counts if count not in new]
    return False


def _moving(groups: Groups) -> dict[Argument, str]:
    """The bound numbers that code works out from the sizes of its inputs: on other inputs they are other numbers.

    So are those that other inputs bring to calls that no example reaches: nothing says whether these mean the axis.
    """
    found: dict[Argument, str] = {}
    bound_in = [[count for count in one.facts.counts if isinstance(count, Argument)] for one in groups.trace.passes]
    if not any(bound_in):
        return found
    shown_by_examples = {spot for one in groups.trace.passes for spot in _numbers(groups, one, one.example) or {}}
    for traced, bound in zip(groups.trace.passes, bound_in, strict=True):
        for candidates in resizings(traced.example) if bound else ():
            numbers = next((n for inputs in candidates if (n := _numbers(groups, traced, inputs)) is not None), {})
            elsewhere = {
                (spot[0], value): spot[1]
                for spot in numbers.keys() - shown_by_examples
                for value in numbers[spot].values()
            }
            for argument in bound:
                line, function, ordinal, index = argument.spot
                shown = numbers.get((argument.module, line, function, index), {})
                values = shown.values() if ordinal is None else [shown[ordinal]] if ordinal in shown else []
                expected = argument.axis.size if argument.value is None else argument.value
                if any(value != expected for value in values):
                    found[argument] = f"the code at {line} works out another size where the inputs have another size"
                elif argument.value is not None:
                    continue
                elif (other := elsewhere.get((argument.module, argument.axis.size))) is not None:
                    found[argument] = (
                        f"the code at {other} may hold its size, and runs where the inputs have another size; "
                        "give such inputs as a further example"
                    )
    return found


def _numbers(groups: Groups, traced: Trace, inputs: Inputs) -> dict[_Spot, dict[int, float]] | None:
    """The numbers that the model hands to PyTorch on other inputs, by module, line, function, position and call."""
    found: dict[_Spot, dict[int, float]] = {}

    def on_call(_func: Any, _args: Any, _kwargs: Any, _result: Any, place: Place) -> None:
        if (written := place.written) is not None:
            for index, value in (*written.numbers, *written.floats):
                found.setdefault((place.module, place.line, written.function, index), {})[written.ordinal] = value

    def run() -> dict[_Spot, dict[int, float]]:
        watch(copy_module(groups.model), inputs, Listeners(on_call), traced.tensors, training=traced.training)
        return found

    with no_leftovers():
        return attempt(run)


def _rounds(groups: Groups) -> list[dict[str, int]]:
    """How many channels each group loses in each rehearsal.

    Code can take the size of one group for another's, which shows only where they keep different counts. So groups of
    equal size lose different counts; where there are more groups than counts, the counts are the digits of the group's
    number, a rehearsal for each digit. Every second rehearsal counts from another number for each size, so that groups
    of different sizes that lose equal counts in one don't in the other. At least two channels stay where there are
    three: one would broadcast. A group that loses channels in multiples loses a multiple of its count.
    """
    alike: dict[tuple[int, int], list[list[str]]] = {}
    known: set[str] = set()
    for group in groups:
        if group.name not in known:
            tied = [group.name, *group.ties]
            known.update(tied)
            alike.setdefault((min(groups[name].size for name in tied), group.multiple), []).append(tied)
    counts = {(size, step): max(1, (size - 2) // step) for size, step in alike}
    needed = [ceil(log(len(classes), counts[kind])) for kind, classes in alike.items() if counts[kind] > 1]
    rounds: list[dict[str, int]] = []
    for number in range(min(len(known), max(2, *needed, 0))):
        rounds.append({})
        for offset, ((size, step), classes) in enumerate(alike.items(), start=1):
            most = counts[size, step]
            worth = most**number if most**number < len(classes) else 1
            for position, tied in enumerate(classes):
                digit = (position // worth + number % 2 * offset) % most
                rounds[-1].update(dict.fromkeys(tied, step * (1 + digit)))
    return rounds


def _bind_counts(groups: Groups, number: int, deviation: Deviation) -> Groups | None:
    """Bind integers of the calling modules to axes if that carries the pass further; tell the groups after it.

    Where an integer serves two axes, they may lose equal counts.
    """
    facts = deviation.traced.facts
    prunable, counts, ties = {groups.atom(group.name) for group in groups}, list(facts.counts), list(facts.ties)
    tied = {tuple(map(resolve, tie)) for tie in ties}
    known = {count.place: count for count in counts}
    for proposal in _proposals(groups, deviation, prunable):
        new = [count for count in proposal if count.place not in known]
        served = [(known[count.place], count) for count in proposal if count not in new]
        served = [(old, count) for old, count in served if resolve(old.axis) is not resolve(count.axis)]
        shared = [
            (old.axis, count.axis)
            for old, count in served
            if resolve(old.axis) in prunable and resolve(count.axis) in prunable
        ]
        nothing_new = not new and all(tuple(map(resolve, pair)) in tied for pair in shared)
        if len(shared) < len(served) or nothing_new:
            continue
        facts.counts[:], facts.ties[:] = counts + new, [*ties, *shared]
        after = Groups(groups.model, groups.example_inputs, groups.trace) if shared else groups
        rounds = _rounds(after)
        further = rehearse(after, rounds[min(number, len(rounds) - 1)])
        if further is None or further.traced is not deviation.traced or further.reached > deviation.reached:
            return after
    facts.counts[:], facts.ties[:] = counts, ties
    return None


def _proposals(groups: Groups, deviation: Deviation, prunable: set[Atom]) -> Iterator[list[Count | Argument]]:
    """Propose numbers to bind at the operator; where a check of the code's own failed, attributes at those before, too.

    What `assert x.shape[-1] == self.width` is about shows in what the same code has called before it.
    """
    operations, facts = deviation.traced.operations, deviation.traced.facts
    index = min(deviation.index, len(operations) - 1)
    yield from proposals(groups.model, operations, index, prunable, facts)
    if not deviation.checked:
        return
    modules = {operation.place.module for operation in operations[max(0, index - 1) : index + 1]}
    lines: dict[str, int] = {}
    for before in reversed(range(index)):
        if operations[before].place.module in modules:
            lines.setdefault(operations[before].place.line, before)
    for before in islice(lines.values(), _CHECKED):
        for proposal in proposals(groups.model, operations, before, prunable, facts):
            if all(isinstance(count, Count) for count in proposal):
                yield proposal


def _unbind(groups: Groups, lost: Mapping[str, int], deviation: Deviation) -> bool:
    """Where code works out a number, give up the attributes it may come from; tell whether there are any.

    Attention that divides by the root of `head_size` does so although the heads of its values may be narrower; code
    that divides a width by `num_heads` would find another size of head. The sizes are then replaced one by one. Where
    what follows one attribute is enough to make the pass deviate, the others are not given up.
    """
    facts, written = deviation.traced.facts, deviation.operation.place.written
    works_out = deviation.constant or (written is not None and written.worked_out())
    kinds = {name: type(module) for name, module in groups.model.named_modules()}
    bound: dict[tuple[type, str], list[Count]] = {}
    for count in (count for count in facts.counts if isinstance(count, Count)):
        bound.setdefault((kinds[count.module], count.attribute), []).append(count)
    held = suspects(groups.model, deviation.operation, facts) if works_out else set()
    by_atom = {groups.atom(name): name for name in lost}
    following = {
        one: [by_atom[atom] for count in bound[one] for atom in leaves(count.axis) if atom in by_atom] for one in held
    }
    enough = {one for one in held if following[one] and is_enough(groups, following[one], lost, deviation)}
    together = [name for names in following.values() for name in names]
    held = enough or (held if together and is_enough(groups, together, lost, deviation) else set())
    facts.constant |= held
    given_up = {count.place for one in held for count in bound[one]}
    facts.counts[:] = [count for count in facts.counts if count.place not in given_up]
    return bool(held)
