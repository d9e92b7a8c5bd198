"""Which numbers of a model's configuration set the sizes of which groups: found by building the model anew.

A class of a library builds all its layers from a few numbers, such as a hidden size. A narrowed model is one that the
class builds only if such numbers give all of its sizes. Which do is not looked up by name: the class is built with one
number changed, without weights, and traced; the groups that have another size then are those that the number sets.

    hidden_size 48 → 96     stream 48 → 96, width of a head 16 → 32: one step takes 3 channels and 1
    a number that makes some groups larger and others smaller is changed together with a second one that makes up for it

Building it doesn't say whether it computes the same: the class may work out frequencies or a scale from a width. So
each number is tried on the model itself: narrowed by one step, against the class with the narrowed weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import combinations, islice
from math import lcm
from typing import Any

from pruning.errors import PlanError, describe, pass_on
from pruning.graph.axes import Atom, leaves
from pruning.graph.contexts import forked_torch
from pruning.graph.groups import Groups
from pruning.graph.trace import trace
from pruning.plan.carry_over import carry_over
from pruning.plan.configuration import (
    Build,
    ConfigField,
    Keys,
    changed,
    name_of,
    nulls_in,
    numbers_after,
    numbers_in,
    value_at,
)
from pruning.plan.plan import Plan
from pruning.plan.slicing import rebuild

_MOST_TOGETHER = 3
_MOST_CANDIDATES = 6
_MOST_STEPS = 256


@dataclass(frozen=True)
class ConfigFields:
    """What of a model can be pruned so that its class builds the result.

    Attributes:
        fields: in the configuration's order; each group is in one at most.
        refused: name of a number that sets sizes -> why it can't be used.
    """

    fields: tuple[ConfigField, ...]
    refused: Mapping[str, str]


@dataclass(frozen=True)
class _Moved:
    """What becomes of a model if numbers of its configuration change.

    Attributes:
        numbers: keys -> value before, value after.
        sizes: group -> size before, size after; those that differ.
    """

    numbers: dict[Keys, tuple[int, int]]
    sizes: dict[str, tuple[int, int]]

    @property
    def name(self) -> str:
        return " and ".join(name_of(path) for path in self.numbers)

    @property
    def grows(self) -> bool:
        """Whether the first number, which is the one that was asked about, becomes larger."""
        before, after = next(iter(self.numbers.values()))
        return after > before

    @property
    def contrary(self) -> list[str]:
        """Groups that go the other way."""
        return [name for name, (old, new) in self.sizes.items() if (new > old) != self.grows]

    def field(self) -> ConfigField:
        """Return the smallest step."""
        first = next(iter(self.numbers.values()))
        whole = first[1] - first[0]
        shares = [Fraction(after - before, whole) for before, after in (*self.numbers.values(), *self.sizes.values())]
        step = lcm(*(share.denominator for share in shares))
        steps = {path: int(step * Fraction(new - old, whole)) for path, (old, new) in self.numbers.items()}
        units = {name: int(step * Fraction(new - old, whole)) for name, (old, new) in self.sizes.items()}
        if any(one < 0 for one in (*steps.values(), *units.values())):
            raise PlanError("it makes some groups larger and others smaller")
        return ConfigField(self.name, units, steps)


def with_stated_numbers(
    groups: Groups, config: Mapping[str, Any], build: Build, optional: Iterable[Keys] = ()
) -> dict[str, Any]:
    """State numbers that a class works out from others where they aren't given, such as the width of a head.

    Stated, they can stay as they are while the others change, or change alone.

    Args:
        groups: of the model.
        config: its configuration.
        build: builds the class.
        optional: keys that the class looks for and that aren't there; those whose value is null are tried too.
    """
    finder = _Finder(groups, config, build)
    stated = dict(config)
    atoms = {atom for axes in groups.trace.parameters.values() for axis in axes for atom in leaves(axis)}
    sizes = sorted({atom.size for atom in atoms} - {1})
    for path in (*nulls_in(config), *optional):
        if finder.shapes_of({path: 2 * sizes[-1] + 2}) == finder.shapes:
            continue  # it is no size
        for size in sizes:
            same, other = (finder.shapes_of({path: value}) for value in (size, 2 * size))
            if same == finder.shapes and other not in (None, finder.shapes):
                stated = changed(stated, {path: size})
                break
    return stated


Proof = Callable[[Plan, ConfigField], object]
"""(plan of one step, its field) -> whatever; raises a `PlanError` where the class isn't what the plan leaves."""


def find_config_fields(
    groups: Groups, config: Mapping[str, Any], build: Build, prove: Proof | None = None
) -> ConfigFields:
    """Find the numbers of a configuration that set the sizes of groups, and nothing else.

    Args:
        groups: of the model that `build` gives for this configuration, with its weights.
        config: numbers, and what else the class is built from, nested.
        build: builds the class.
        prove: tries one step of a field; by default on the model itself, whose weights are then in memory.

    Raises:
        PlanError: the class builds another model from this configuration.
    """
    finder = _Finder(groups, config, build)
    prove = prove or finder.prove
    found: list[ConfigField] = []
    refused: dict[str, str] = {}
    for moved in finder.all_moved(refused):
        try:
            field = finder.with_valid_steps(moved.field())
            prove(finder.one_step(field), field)
        except PlanError as fault:
            refused[moved.name] = str(fault)
        else:
            found.append(field)
    taken: set[str] = set()
    chosen = []
    for field in sorted(found, key=lambda one: len(one.steps)):
        if taken.isdisjoint(field.units):
            taken.update(field.units)
            chosen.append(field)
        else:
            refused[field.name] = "another number sets the size of one of its groups, in smaller steps"
    return ConfigFields(finder.compatible(sorted(chosen, key=found.index), refused), refused)


class _OutsideError(PlanError):
    """A number sets the size of what is in no group."""


class _Finder:
    def __init__(self, groups: Groups, config: Mapping[str, Any], build: Build) -> None:
        self._groups, self._config, self._build = groups, config, build
        self._names = {groups.atom(group.name): group.name for group in groups}
        self._outside: set[Keys] = set()
        self.shapes = self.shapes_of({}) or {}
        expected = {name: tuple(tensor.shape) for name, tensor in groups.model.named_parameters()}
        if self.shapes != expected:
            other = next(name for name in {**expected, **self.shapes} if self.shapes.get(name) != expected.get(name))
            raise PlanError(f"the class builds another model from this configuration: parameter {other!r} differs")

    def all_moved(self, refused: dict[str, str]) -> Iterator[_Moved]:
        """Yield what each number moves, alone or with others without which the class can't be built, or shrinks."""
        for path, value in numbers_in(self._config):
            moved = self._move_one(path, value, refused)
            if (moved is not None and moved.contrary) or (moved is None and name_of(path) in refused):
                together = self._move_together(path)
                if together is not None:
                    refused.pop(name_of(path), None)
                elif moved is not None:
                    refused[name_of(path)] = "it makes some groups larger and others smaller"
                moved = together
            if moved is not None:
                yield moved

    def _move_one(self, path: Keys, value: int, refused: dict[str, str]) -> _Moved | None:
        for other in islice(_others(value), _MOST_CANDIDATES):
            try:
                if (shapes := self.shapes_of({path: other})) is None:
                    continue
                if shapes == self.shapes:
                    return None
                if shapes.keys() != self.shapes.keys():
                    refused[name_of(path)] = "with another value the class has other parameters"
                    return None
                moved = self._moved({path: other})
            except _OutsideError as fault:
                refused[name_of(path)] = str(fault)
                self._outside.add(path)
                return None
            except PlanError as fault:
                refused[name_of(path)] = str(fault)
                continue
            if moved.sizes:
                refused.pop(name_of(path), None)
                return moved
        return None

    def _move_together(self, path: Keys) -> _Moved | None:
        """Multiply a number and further ones by the same factor, until no group goes the other way."""
        for factor in (2, 3):
            changes = {path: factor * value_at(self._config, path)}
            for _ in range(_MOST_TOGETHER - 1):
                before, least = self.shapes_of(changes), None
                for other, value in numbers_in(self._config):
                    if other in changes or other in self._outside:
                        continue
                    tried = {**changes, other: factor * value}
                    shapes = self.shapes_of(tried)
                    if shapes is None or shapes in (before, self.shapes) or shapes.keys() != self.shapes.keys():
                        continue
                    try:
                        moved = self._moved(tried)
                    except PlanError:
                        continue
                    if not moved.contrary:
                        return moved
                    if least is None or len(moved.contrary) < len(least.contrary):
                        least = moved
                if least is None:
                    break
                changes = {one: after for one, (_, after) in least.numbers.items()}
        return None

    def shapes_of(self, changes: Mapping[Keys, int], *, shapes_only: bool = True) -> dict[str, tuple[int, ...]] | None:
        """Return the shapes of the parameters that the class then has; None where it can't be built."""
        try:
            with forked_torch():
                model = self._build(changed(self._config, changes), shapes_only)
        except Exception as fault:  # noqa: BLE001 - a class may raise anything for a number that it can't take
            pass_on(fault)
            return None
        return {name: tuple(tensor.shape) for name, tensor in model.named_parameters()}

    def _moved(self, changes: Mapping[Keys, int]) -> _Moved:
        """Build and trace, and compare the sizes of all groups.

        Raises:
            PlanError: something moves that is in no group, or the model then runs in another way.
        """
        for shapes_only in (True, False):  # code may put new tensors beside those of the meta device
            try:
                with forked_torch():
                    model = self._build(changed(self._config, changes), shapes_only)
                traced = trace(model, self._groups.example_inputs)
                break
            except Exception as fault:
                pass_on(fault)
                if not shapes_only:
                    raise PlanError(f"the class doesn't run on the example inputs then: {describe(fault)}") from fault
        traced.allow_mixed = self._groups.trace.allow_mixed
        after = Groups(model, self._groups.example_inputs, traced).trace.parameters
        sizes: dict[Atom, int] = {}
        for name, axes in self._groups.trace.parameters.items():
            for axis, other in zip(axes, after.get(name, ()), strict=True):
                mine, theirs = list(leaves(axis)), list(leaves(other))
                if len(mine) != len(theirs):
                    raise PlanError(f"{name} is then put together in another way")
                for atom, there in zip(mine, theirs, strict=True):
                    if sizes.setdefault(atom, there.size) != there.size:
                        raise PlanError(f"channels of {name} that belong together then differ in number")
        moved = {atom: size for atom, size in sizes.items() if size != atom.size}
        if outside := [atom for atom in moved if atom not in self._names]:
            reason = outside[0].frozen or "no layer makes them"
            raise _OutsideError(f"it sets the number of channels too that stay whole: {reason}")
        numbers = {path: (value_at(self._config, path), new) for path, new in changes.items()}
        return _Moved(numbers, {self._names[atom]: (atom.size, size) for atom, size in moved.items()})

    def with_valid_steps(
        self, field: ConfigField, beside: Sequence[Mapping[str, tuple[ConfigField, int]]] = ({},)
    ) -> ConfigField:
        """Return a field with steps of a size at which the class can be built, as one that asks for multiples.

        Args:
            field: with its smallest steps.
            beside: other fields with numbers of steps; the steps have to hold with each.

        Raises:
            PlanError: there are none.
        """
        most = min(self._groups[name].size // unit for name, unit in field.units.items())
        for factor in range(1, min(most, _MOST_STEPS)):
            if any(factor * unit % self._groups[name].multiple for name, unit in field.units.items()):
                continue
            taken = [factor, 2 * factor] if 2 * factor < most else [factor]
            if all(
                self._builds({**other, field.name: (field, count)}, shapes_only=bool(other))
                for count in taken
                for other in beside
            ):
                return replace(
                    field,
                    units={name: factor * unit for name, unit in field.units.items()},
                    steps={path: factor * step for path, step in field.steps.items()},
                )
        raise PlanError("the class can't be built with a smaller number")

    def compatible(self, fields: Sequence[ConfigField], refused: dict[str, str]) -> tuple[ConfigField, ...]:
        """Coarsen the steps of fields that can change alone and not with another, as one has to be its multiple."""
        found = {field.name: field for field in fields}
        for one, other in combinations(list(found), 2):
            if one not in found or other not in found:
                continue
            fine, coarse = sorted((one, other), key=lambda name: -self._num_steps(found[name]))
            beside = [
                {coarse: (found[coarse], count)} for count in range(1, min(self._num_steps(found[coarse]), _MOST_STEPS))
            ]
            some = [{**changes, fine: (found[fine], count)} for count in (1, 2) for changes in beside[:2]]
            if all(map(self._builds, some)):
                continue
            try:
                found[fine] = self.with_valid_steps(found[fine], beside)
            except PlanError:
                del found[coarse]
                refused[coarse] = f"together with a smaller {fine} the class can't be built"
        return tuple(found.values())

    def _num_steps(self, field: ConfigField) -> int:
        return min(self._groups[name].size // unit for name, unit in field.units.items())

    def _builds(self, counts: Mapping[str, tuple[ConfigField, int]], *, shapes_only: bool = True) -> bool:
        try:
            changes = numbers_after(self._config, counts.values())
            return self.shapes_of(changes, shapes_only=shapes_only) is not None
        except PlanError:
            return False

    def one_step(self, field: ConfigField) -> Plan:
        """Return the plan of one step of a field."""
        lost = {
            name: range(self._groups[name].size - unit, self._groups[name].size) for name, unit in field.units.items()
        }
        return Plan.of(self._groups, lost)

    def prove(self, plan: Plan, field: ConfigField) -> None:
        """See that the class is the narrowed model after one step of a field.

        Raises:
            PlanError: it isn't.
        """
        dense = rebuild(self._groups.model, self._groups, plan)
        carry_over(dense, plan, self._groups, [field], self._config, self._build)


def _others(value: int) -> Iterator[int]:
    """Yield values to try in place of a number: multiples first, which most constraints between numbers allow."""
    yield from (2 * value, 3 * value)
    yield from (value // divisor for divisor in (2, 3) if value % divisor == 0 and value > divisor)
    yield from (value + 1, value - 1)
