"""What a model costs under any plan, without running or building it.

MACs are a polynomial in the sizes of groups: each convolution, linear layer and matrix product (attention included)
contributes the product of the sizes of its axes. MACs are those of one forward pass of the example inputs; give a batch
of 1 for MACs per sample.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from pruning.algebra.axes import Atom, Axis, Sum, resolve
from pruning.structure.groups import Groups
from pruning.structure.plan import Plan

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
