"""Channel groups: which slices of which parameters must go together, which may not go, and why."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import lcm
from typing import Literal

from torch import Tensor, nn

from pruning.containers import Inputs
from pruning.errors import PlanError, unknown_name
from pruning.graph.axes import Atom, Axis, Product, Sum, channels, factors_of, freeze, leaves, parts_of, resolve, unify
from pruning.graph.equation import EXTENT
from pruning.graph.rules.call import OperandAxis
from pruning.graph.rules.reductions import is_over_kept
from pruning.graph.trace import Trace
from pruning.graph.unused_parameters import freeze_around_unused


@dataclass(frozen=True)
class ParameterReport:
    """Whether a parameter can be pruned, and where not, why.

    Attributes:
        parameter: Its name.
        shape: Its shape.
        groups: Names of the groups that lie along its axes.
        reasons: Why the axes without a group have to stay, one text per axis.
    """

    parameter: str
    shape: tuple[int, ...]
    groups: tuple[str, ...]
    reasons: tuple[str, ...]

    @property
    def prunable(self) -> bool:
        """Whether at least one group lies along an axis of the parameter."""
        return bool(self.groups)

    def __str__(self) -> str:
        shape = "×".join(map(str, self.shape)) or "scalar"
        verdict = f"in {', '.join(self.groups)}" if self.groups else "stays whole"
        return "; ".join([f"{self.parameter} [{shape}] {verdict}", *self.reasons])


class Report(tuple[ParameterReport, ...]):
    """One row for every parameter; prints as a list, with a summary first."""

    def __getitem__(self, key: int | slice | str) -> ParameterReport:  # type: ignore[override]
        """Look a row up by its position or by the parameter's name."""
        if isinstance(key, str):
            rows = {row.parameter: row for row in self}
            if key not in rows:
                raise KeyError(unknown_name("parameter", key, rows))
            return rows[key]
        return super().__getitem__(key)  # type: ignore[return-value]

    def __str__(self) -> str:
        prunable = sum(row.prunable for row in self)
        return "\n".join([f"{prunable} of {len(self)} parameters can be pruned", *(f"  {row}" for row in self)])


Role = Literal["producer", "consumer", "follower"]


class Roles:
    """The roles of all axes of a trace's parameters."""

    def __init__(self, traced: Trace) -> None:
        self._uses = {name: uses for p in reversed(traced.passes) for name, uses in p.facts.uses.items()}
        self._parameters = traced.parameters
        self._operands: dict[str, list[OperandAxis]] = {}
        for contraction in (c for p in traced.passes for c in p.facts.contractions):
            for operand in contraction.operands:
                for source in operand.sources:
                    self._operands.setdefault(source, []).append(operand)

    def use(self, name: str) -> str:
        """What the parameter is used as."""
        return min(self._uses.get(name, ()), default="")

    def of(self, name: str, position: int, atom: Atom) -> Role:
        """The role of an axis of a parameter for one of its atoms."""
        operands = self._operands.get(name, [])
        axis = self._parameters[name][position]
        # A square layer can have the same channels on both sides: then the axis itself tells which side is meant.
        exact = [operand for operand in operands if operand.axis is axis]
        for operand in exact or operands:
            if any(atom is leaf for made in operand.made for leaf in leaves(made)):
                return "producer"
            if any(atom is leaf for gone in operand.gone for leaf in leaves(gone)):
                return "consumer"
        return "producer" if self.use(name) == "embedding.weight" else "follower"


_ORDER: tuple[Role, ...] = ("producer", "follower", "consumer")


@dataclass(frozen=True)
class Slice:
    """One axis of one parameter or buffer along which a group's channels lie.

    Attributes:
        parameter: Name as in `model.named_parameters()` or `model.named_buffers()`.
        axis: The axis of that tensor.
        role: `producer` makes the channels, `consumer` sums over them, `follower` rides along (norms, biases,
            depthwise).
        use: What the parameter is used as, e.g. "convolution.weight" or "batch_norm.bias".
    """

    parameter: str
    axis: int
    role: Role
    use: str
    _expression: Axis = field(repr=False, compare=False)
    _atom: Atom = field(repr=False, compare=False)

    def channels(self) -> Tensor:
        """Tell which channel of the group lies at each index of the axis.

        Returns:
            int64 [size of the axis]: a channel of the group, or -1. A channel can lie at several indices.
        """
        return channels(self._expression, self._atom)


@dataclass(frozen=True)
class Group:
    """Channels that live and die together: removing one removes a slice of every parameter listed.

    Attributes:
        name: Stable key, a parameter and an axis of it: the same for every instance of the same architecture.
        size: Number of channels.
        slices: Every place in which the channels occur, producers first.
        ties: Names of groups that have to lose as many channels as this one, because code splits them in equal parts.
        multiple: It loses channels in multiples of this, as an operator takes no other widths.
        mixed: Which statistics are computed over the channels; such groups are offered only on demand, and the masked
            model takes these statistics over the channels that stay.
    """

    name: str
    size: int
    slices: tuple[Slice, ...]
    ties: tuple[str, ...] = ()
    mixed: tuple[str, ...] = ()
    multiple: int = 1

    def __str__(self) -> str:
        rows = [f"    {s.role:9} {s.parameter}, axis {s.axis}" for s in self.slices]
        tied = f", loses as many as {', '.join(self.ties)}" if self.ties else ""
        tied += f", in multiples of {self.multiple}" if self.multiple > 1 else ""
        statistics = [f"    over what is kept: {reason}" for reason in self.mixed]
        return "\n".join([f"{self.name}: {self.size} channels{tied}", *statistics, *rows])


@dataclass(frozen=True)
class CommonSize:
    """A number that sets the sizes of several groups, so that they can only change together.

    Attributes:
        name: What messages call it, such as "hidden_size".
        units: Group -> channels that it loses in one step; all groups take the same number of steps.
    """

    name: str
    units: Mapping[str, int]


class Groups:
    """The prunable groups of one model: iterate over them, or look one up by its name.

    Attributes:
        model: The module on which they were found; it is never changed.
        example_inputs: The inputs with which it was traced; of several examples the first.
        common_sizes: The numbers by which groups may change, where the result has to be one that a class builds; groups
            that none of them sets stay whole. None: every group has a size of its own, as far as the code lets it.
    """

    def __init__(self, model: nn.Module, example_inputs: Inputs, traced: Trace) -> None:
        self.model = model
        self.example_inputs = example_inputs
        self.trace = traced
        self.common_sizes: tuple[CommonSize, ...] | None = None
        self._merge_ties()
        self._multiples = self._find_multiples()
        self._by_atom = self._find()
        self._by_name = {group.name: group for group in self._by_atom.values()}
        self._atoms = {group.name: atom for atom, group in self._by_atom.items()}

    def __iter__(self) -> Iterator[Group]:
        return iter(self._by_name.values())

    def __len__(self) -> int:
        return len(self._by_name)

    def __contains__(self, name: object) -> bool:
        return name in self._by_name

    def __getitem__(self, name: str) -> Group:
        if name not in self._by_name:
            raise PlanError(f"{unknown_name('group', name, self._by_name)} (of {type(self.model).__name__})")
        return self._by_name[name]

    def __str__(self) -> str:
        head = f"{type(self.model).__name__}: {len(self)} groups, {sum(g.size for g in self)} channels"
        return "\n".join([head, *(f"  {line}" for group in self for line in str(group).splitlines())])

    def with_common_sizes(self, common_sizes: Iterable[CommonSize]) -> Groups:
        """Return the same groups, which may only change by some numbers."""
        found = copy(self)
        found.common_sizes = tuple(common_sizes)
        return found

    def atom(self, name: str) -> Atom:
        """The atom of the algebra that a group stands for."""
        self[name]
        return self._atoms[name]

    def report(self) -> Report:
        """Say for every parameter whether it can be pruned and, where not, why."""
        rows = []
        for name, tensor in self.model.named_parameters():
            found: dict[str, None] = {}
            reasons: dict[int, str] = {}
            for position, axis in enumerate(self.trace.parameters[name]):
                groups = [self._by_atom[atom].name for atom in leaves(axis) if atom in self._by_atom]
                found.update(dict.fromkeys(groups))
                if not groups and tensor.shape[position] != 1:
                    reasons[position] = self._reason(axis)
            # That a kernel's extents stay goes without saying where the channels can be pruned.
            told = {i: reason for i, reason in reasons.items() if reason != EXTENT} if found else reasons
            texts = tuple(f"axis {i}: {reason}" for i, reason in told.items())
            if not found and not texts:
                texts = ("it is a single value",)
            rows.append(ParameterReport(name, tuple(tensor.shape), tuple(found), texts))
        return Report(rows)

    def _reason(self, axis: Axis) -> str:
        reasons = [reason for atom in leaves(axis) for reason in self._whole(atom)]
        return "; ".join(dict.fromkeys(reasons)) or "no layer makes these channels"

    def _merge_ties(self) -> None:
        """Parts that lose equal counts stay separate groups if each is one atom; others lose the same channels."""
        self._tied: list[tuple[Atom, ...]] = []
        ties = [tie for traced in self.trace.passes for tie in traced.facts.ties]
        for tie in ties:
            if any(not isinstance(resolve(axis), Atom) for axis in tie):
                for axis in tie[1:]:
                    unify(tie[0], axis)
        for tie in ties:
            atoms = [atom for atom in map(resolve, tie) if isinstance(atom, Atom)]
            if len(atoms) == len(tie):
                reason = next((reason for atom in atoms for reason in self._whole(atom)), None)
                for atom in atoms:
                    atom.frozen = atom.frozen or reason
                self._tied.append(tuple(dict.fromkeys(atoms)))

    def _find_multiples(self) -> dict[Atom, int]:
        """What the atoms lose channels in multiples of; those that can't are frozen."""
        found: dict[Atom, int] = {}
        stated = [one for traced in self.trace.passes for one in traced.facts.multiples]
        for part, number in ((part, number) for axis, number in stated for part in parts_of(axis)):
            able = [atom for atom in factors_of(part) if isinstance(atom, Atom) and atom.size % number == 0]
            if any(self._whole(atom) for atom in able):  # it stays, and all of the part is a multiple of it
                continue
            if chosen := next((atom for atom in able if atom.size > number), None):
                found[chosen] = lcm(number, found.get(chosen, 1))
            else:
                freeze(part, f"an operator takes widths in multiples of {number} alone")
        return found

    def _whole(self, atom: Atom) -> tuple[str, ...]:
        """Why an atom keeps all its channels; empty if they can go."""
        if atom.frozen:
            return (atom.frozen,)
        return tuple(why for why in atom.mixed if not (self.trace.allow_mixed and is_over_kept(why)))

    def _find(self) -> dict[Atom, Group]:
        if not self.trace.ignore_unused:
            freeze_around_unused(self.trace, self.model)
        places: dict[Atom, dict[tuple[str, int], Axis]] = {}
        seen: set[int] = set()
        reached, fault = self.trace.reached, self.trace.training_fault
        unused = f"the forward pass doesn't use it{f', and fails in training mode: {fault}' if fault else ''}"
        for name, axes in self.trace.parameters.items():
            if id(axes) in seen:  # a tied parameter counts under its first name
                continue
            seen.add(id(axes))
            for position, axis in enumerate(axes):
                if name not in reached:
                    freeze(axis, unused)
                for atom in leaves(axis):
                    places.setdefault(atom, {})[name, position] = axis
        roles = Roles(self.trace)
        groups = {}
        for atom, found in places.items():
            if self._whole(atom) or atom.size < 2:
                continue
            slices = [
                Slice(name, position, roles.of(name, position, atom), roles.use(name), axis, atom)
                for (name, position), axis in found.items()
            ]
            slices.sort(key=lambda s: _ORDER.index(s.role))
            if slices[0].role == "consumer" or any(_occurs_twice(axis, atom) for axis in found.values()):
                atom.frozen = (
                    "no layer makes these channels" if slices[0].role == "consumer" else "it meets itself in a product"
                )
                continue
            groups[atom] = Group(
                _name(slices, atom), atom.size, tuple(slices), mixed=atom.mixed, multiple=self._multiples.get(atom, 1)
            )
        return self._with_ties(groups)

    def _with_ties(self, groups: dict[Atom, Group]) -> dict[Atom, Group]:
        partners: dict[Atom, dict[Atom, None]] = {}
        for tie in self._tied:
            merged = dict.fromkeys(other for atom in tie for other in (atom, *partners.get(atom, ())))
            for atom in merged:
                partners[atom] = merged
        return {
            atom: replace(
                group,
                ties=tuple(groups[o].name for o in partners.get(atom, ()) if o is not atom and o in groups),
                multiple=lcm(group.multiple, *(self._multiples.get(other, 1) for other in partners.get(atom, ()))),
            )
            for atom, group in groups.items()
        }

    @cached_property
    def unknown_operators(self) -> dict[str, list[str]]:
        """Operators without a rule, each with the places from which it was called."""
        return {
            name: [str(place) for place in places]
            for traced in self.trace.passes
            for name, places in traced.unknown.items()
        }


def _occurs_twice(axis: Axis, atom: Atom) -> bool:
    """Whether an atom is in two factors of one product, where one index belongs to two of its channels."""
    for part in parts_of(axis):
        if isinstance(part, Product) and sum(atom in set(leaves(inner)) for inner in factors_of(part)) > 1:
            return True
        if isinstance(part, Product) and any(_occurs_twice(f, atom) for f in factors_of(part) if isinstance(f, Sum)):
            return True
    return False


def _name(slices: Sequence[Slice], atom: Atom) -> str:
    """A parameter and an axis of it that the atom fills alone; if there is none, also which atom of the axis."""
    for slice_ in slices:
        if all(leaf is atom for leaf in leaves(slice_._expression)):
            return f"{slice_.parameter}:{slice_.axis}"
    first = slices[0]
    position = list(dict.fromkeys(leaves(first._expression))).index(atom)
    return f"{first.parameter}:{first.axis}.{position}"
