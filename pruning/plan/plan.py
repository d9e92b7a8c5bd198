"""A plan: which channels of which groups go, as JSON that composes; and what a model costs under any plan.

MACs are a polynomial in the sizes of groups: each convolution, linear layer and matrix product (attention included)
contributes the product of the sizes of its axes. MACs are those of one forward pass of the example inputs; give a batch
of 1 for MACs per sample.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import prod
from typing import Any, TypeVar, cast

import torch
from pydantic import (
    BaseModel,
    ConfigDict,
    PrivateAttr,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)
from torch import Tensor

from pruning.errors import PlanError
from pruning.graph.axes import Atom, Axis, Sum, kept, resolve
from pruning.graph.groups import Groups


class Plan(BaseModel):
    """The channels to remove from each group, in the numbering of the model that the plan was made on.

    Attributes:
        removed: Sorted channel indices by group name.
        sizes: Number of channels of each of these groups before anything is removed.
        blocks: Names of the residual branches that go whole, before any channels: the groups are those of the model
            without them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    removed: dict[str, tuple[int, ...]]
    sizes: dict[str, int]
    blocks: tuple[str, ...] = ()
    _groups: Groups | None = PrivateAttr(default=None)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Plan) and self.model_dump() == other.model_dump()

    @model_serializer(mode="wrap")
    def _without_what_is_empty(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave blocks out where there are none: such a plan is as plans were before there were any."""
        found: dict[str, Any] = write(self)
        return found if self.blocks else {name: value for name, value in found.items() if name != "blocks"}

    def __hash__(self) -> int:
        return hash(tuple(sorted(self.removed.items())))

    @property
    def groups(self) -> Groups | None:
        """The groups that the plan was made for; None if it was read from JSON."""
        return self._groups

    @model_validator(mode="after")
    def _indices_fit(self) -> Plan:
        for name, indices in self.removed.items():
            size = self.sizes.get(name)
            if size is None:
                raise ValueError(f"group {name!r} has removed channels but no size")
            if list(indices) != sorted(set(indices)) or (indices and not 0 <= indices[0] <= indices[-1] < size):
                raise ValueError(
                    f"group {name!r} needs sorted, distinct channels below {size}; found {list(indices)[:8]}"
                )
            if len(indices) >= size:
                raise ValueError(f"group {name!r} would lose all of its {size} channels")
        return self

    @classmethod
    def of(cls, groups: Groups, removed: Mapping[str, Iterable[int]]) -> Plan:
        """Make a plan for a model's groups.

        Raises:
            PlanError: A group is unknown, would become empty, or loses another count than it can: tied groups equal
                ones, some groups only multiples of a number.
        """
        chosen = {name: tuple(sorted(set(indices))) for name, indices in removed.items()}
        chosen = {name: chosen[name] for name in sorted(chosen) if chosen[name]}
        try:
            plan = cls(removed=chosen, sizes={name: groups[name].size for name in chosen})
        except ValueError as fault:
            raise PlanError(f"this plan can't be carried out: {fault}") from fault
        plan.check(groups)
        plan._groups = groups
        return plan

    def check(self, groups: Groups) -> None:
        """Refuse a model that this plan wasn't made for.

        Raises:
            PlanError: A group is missing or has another size, a group loses a count that it can't, or the model still
                has a block that the plan removes.
        """
        model = type(groups.model).__name__
        modules = dict(groups.model.named_modules()) if self.blocks else {}
        for name in self.blocks:
            if name in modules and any(True for _ in modules[name].parameters()):
                raise PlanError(
                    f"the plan removes block {name!r}, which {model} still has; the groups have to be those of the "
                    "model without it: find_groups(find_blocks(model, example_inputs).without(plan.blocks), …)"
                )
        for name, size in self.sizes.items():
            if groups[name].size != size:
                raise PlanError(
                    f"group {name!r} of {model} has {groups[name].size} channels, the plan was made for {size}; "
                    "use the factory and the arguments that the plan was made with"
                )
        for name in self.removed:
            if len(self.removed[name]) % groups[name].multiple:
                raise PlanError(
                    f"group {name!r} of {model} loses channels in multiples of {groups[name].multiple}, because an "
                    f"operator takes no other widths; the plan removes {len(self.removed[name])}"
                )
            for other in groups[name].ties:
                lost, also = len(self.removed[name]), len(self.removed.get(other, ()))
                if lost != also:
                    raise PlanError(
                        f"groups {name!r} and {other!r} of {model} have to lose equal counts, because code splits them "
                        f"in equal parts; the plan removes {lost} and {also}"
                    )

    def kept(self, name: str) -> Tensor:
        """Bool [size of the group]: True where a channel stays."""
        mask = torch.ones(self.sizes[name], dtype=torch.bool)
        mask[list(self.removed.get(name, ()))] = False
        return mask

    def kept_sizes(self, groups: Groups) -> dict[str, int]:
        """Number of channels that each group of the plan keeps."""
        self.check(groups)
        return {name: size - len(self.removed.get(name, ())) for name, size in self.sizes.items()}

    def masks(self, groups: Groups) -> dict[Atom, Tensor]:
        """The same as masks over the atoms of the algebra."""
        self.check(groups)
        return {groups.atom(name): self.kept(name) for name in self.removed}

    def then(self, other: Plan) -> Plan:
        """Compose with a plan that was made on the model narrowed by this one.

        Returns:
            One plan in this plan's numbering that does both.

        Raises:
            PlanError: The other plan's sizes aren't those that this plan leaves, or it removes blocks after this one
                has removed channels.
        """
        if other.blocks and self.removed:
            raise PlanError(
                f"blocks go before channels: the second plan removes {', '.join(other.blocks)}, the first has removed "
                "channels already; make a plan of the blocks on the model that still has all channels, or let "
                "pruning.plan.masks.compose put the first plan into the numbering of the model without them"
            )
        removed, sizes = dict(self.removed), dict(self.sizes)
        for name, indices in other.removed.items():
            if name not in sizes:
                removed[name], sizes[name] = indices, other.sizes[name]
                continue
            left = self.kept(name).nonzero().flatten().tolist()
            if len(left) != other.sizes[name]:
                raise PlanError(
                    f"the second plan was made for {other.sizes[name]} channels of group {name!r}, "
                    f"the first leaves {len(left)}"
                )
            removed[name] = tuple(sorted((*removed.get(name, ()), *(left[i] for i in indices))))
        plan = Plan(
            removed={n: removed[n] for n in sorted(removed)},
            sizes={n: sizes[n] for n in sorted(sizes)},
            blocks=(*self.blocks, *other.blocks),
        )
        plan._groups = self._groups
        return plan

    def with_blocks(self, blocks: Sequence[str], before: Groups, after: Groups) -> Plan:
        """Return a plan that removes the same channels and some blocks too.

        Without a block other channels have to go together, so that groups have other names and sizes.

        Args:
            blocks: Names of the blocks, which this plan leaves.
            before: Groups of the original model without the blocks that this plan removes.
            after: Groups of the original model without these blocks too.

        Raises:
            PlanError: A block is removed already, the groups are those of two architectures, or without the blocks the
                same channels are in no groups that could lose them.
        """
        if twice := sorted(set(blocks) & set(self.blocks)):
            raise PlanError(f"the plan removes block {twice[0]!r} already")
        for name, axes in after.trace.parameters.items():
            if [axis.size for axis in axes] != [axis.size for axis in before.trace.parameters.get(name, ())]:
                raise PlanError(f"the groups are those of two architectures: parameter {name!r} differs between them")
        masks = self.masks(before)
        removed: dict[str, set[int]] = {}
        for group in after:
            for piece in group.slices:
                gone = ~kept(before.trace.parameters[piece.parameter][piece.axis], masks)
                found = {channel for channel in piece.channels()[gone].tolist() if channel >= 0}
                if found:
                    removed.setdefault(group.name, set()).update(found)
        try:
            plan = Plan.of(after, removed)
        except PlanError as fault:
            raise PlanError(f"{self._not_without(blocks)}: {fault}") from fault
        masks_after = plan.masks(after)
        for name, axes in after.trace.parameters.items():
            for position, axis in enumerate(axes):
                if not torch.equal(kept(axis, masks_after), kept(before.trace.parameters[name][position], masks)):
                    raise PlanError(
                        f"{self._not_without(blocks)}: axis {position} of {name} can't lose the same channels"
                    )
        plan = plan.model_copy(update={"blocks": (*self.blocks, *blocks)})
        plan._groups = after
        return plan

    def _not_without(self, blocks: Sequence[str]) -> str:
        return f"the channels that are gone can't go from the model without {', '.join(blocks)}"


_Monomial = tuple[int, tuple[int, ...]]
_Size = TypeVar("_Size", int, Tensor)


class _Polynomial:
    """A sum of products of group sizes, with the constant factors multiplied out."""

    def __init__(self, indices: Mapping[Atom, int]) -> None:
        self._indices = indices
        self._terms: dict[tuple[int, ...], int] = {}

    def add(self, axes: tuple[Axis, ...], weight: int = 1) -> None:
        """Add the product of the sizes of some axes, times a weight."""
        expanded: list[_Monomial] = [(weight, ())]
        for axis in axes:
            sizes = self._expand(axis)
            expanded = [(a * b, (*x, *y)) for a, x in expanded for b, y in sizes]
        for factor, variables in expanded:
            key = tuple(sorted(variables))
            self._terms[key] = self._terms.get(key, 0) + factor

    def _expand(self, axis: Axis) -> list[_Monomial]:
        axis = resolve(axis)
        if isinstance(axis, Atom):
            return [(1, (self._indices[axis],))] if axis in self._indices else [(axis.size, ())]
        if isinstance(axis, Sum):
            merged: dict[tuple[int, ...], int] = {}
            for part in axis.parts:
                for factor, variables in self._expand(part):
                    merged[variables] = merged.get(variables, 0) + factor
            return [(factor, variables) for variables, factor in merged.items()]
        out: list[_Monomial] = [(1, ())]
        for inner in axis.factors:
            sizes = self._expand(inner)
            out = [(a * b, tuple(sorted((*x, *y)))) for a, x in out for b, y in sizes]
        return out

    def value(self, sizes: Sequence[_Size]) -> _Size:
        """Evaluate at the given group sizes: numbers, or tensors of them."""
        total: Any = 0
        for variables, factor in self._terms.items():
            total = total + factor * prod(sizes[i] for i in variables)
        return cast(_Size, total)


class Cost:
    """MACs and parameters of a model as functions of how many channels each group keeps."""

    def __init__(self, groups: Groups) -> None:
        self._names = [group.name for group in groups]
        self._full = [group.size for group in groups]
        indices = {groups.atom(name): i for i, name in enumerate(self._names)}
        self._macs, self._parameters, self._state = (_Polynomial(indices) for _ in range(3))
        for contraction in groups.trace.facts.contractions:
            self._macs.add(contraction.terms)
        for name, tensor in groups.model.named_parameters():
            axes = tuple(groups.trace.parameters[name])
            self._parameters.add(axes)
            self._state.add(axes, tensor.element_size())
        for name, buffer in groups.model.named_buffers():
            self._state.add(tuple(groups.trace.parameters[name]), buffer.element_size())

    def _sizes(self, kept: Mapping[str, int]) -> list[int]:
        return [kept.get(name, full) for name, full in zip(self._names, self._full, strict=True)]

    def macs(self, kept: Mapping[str, int]) -> int:
        """MACs of one pass of the example inputs when each named group keeps that many channels, all others all."""
        return self._macs.value(self._sizes(kept))

    def macs_per_sample(self, open_channels: Mapping[str, Tensor]) -> Tensor:
        """MACs of each sample of which some groups compute that many channels, [N] each, and all others all.

        Differentiable; counts may be fractions.
        """
        like = next(iter(open_channels.values()))
        sizes = [open_channels.get(n, torch.full_like(like, s)) for n, s in zip(self._names, self._full, strict=True)]
        return self._macs.value(sizes) + torch.zeros_like(like)

    def parameters(self, kept: Mapping[str, int]) -> int:
        """Number of parameters, tied ones counted once."""
        return self._parameters.value(self._sizes(kept))

    def size_bytes(self, kept: Mapping[str, int]) -> int:
        """Bytes of all parameters and buffers."""
        return self._state.value(self._sizes(kept))


def count_macs(groups: Groups, plan: Plan | None = None) -> int:
    """Count the MACs of one forward pass of the example inputs, for the model as it is or under a plan.

    Exact, without running the model. Convention: convolutions, linear layers and matrix products, attention included;
    no norms, no activations.
    """
    return Cost(groups).macs(plan.kept_sizes(groups) if plan else {})


def count_parameters(groups: Groups, plan: Plan | None = None) -> int:
    """Count the parameters of the model as it is or under a plan; tied parameters count once."""
    return Cost(groups).parameters(plan.kept_sizes(groups) if plan else {})


def count_bytes(groups: Groups, plan: Plan | None = None) -> int:
    """Count the bytes of parameters and buffers of the model as it is or under a plan."""
    return Cost(groups).size_bytes(plan.kept_sizes(groups) if plan else {})


def count_effective_macs(groups: Groups) -> int:
    """Count the MACs that are left to a runtime that skips every zero weight, for the model as it is.

    Each convolution and linear layer counts with the share of its weights that is not zero; other products count whole.
    """
    parameters = dict(groups.model.named_parameters(remove_duplicate=False))
    total = 0
    for contraction in groups.trace.facts.contractions:
        macs = prod(axis.size for axis in contraction.terms)
        sources = {source for operand in contraction.operands for source in operand.sources}
        weights = [parameters[source] for source in sources if source in parameters]
        if len(sources) == 1 and weights:
            macs = macs * int(torch.count_nonzero(weights[0])) // weights[0].numel()
        total += macs
    return total
