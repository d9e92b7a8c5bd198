"""The algebra of axes: which channels an axis of a tensor holds.

    Atom          n channels about which nothing more is known yet
    Sum(a, b, …)  one after the other               (concatenation)
    Product(a, b) row-major flattening of a × b     (reshape)

An atom can be frozen (it keeps all its channels) or mixed (an operator computes a statistic over it), each with the
reason.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import prod

import torch
from torch import Tensor


class Atom:
    """`size` channels; once it is bound to another axis, it stands for that axis."""

    __slots__ = ("bound", "frozen", "mixed", "size")

    def __init__(self, size: int, frozen: str | None = None) -> None:
        self.size: int = size
        self.frozen = frozen
        self.mixed: tuple[str, ...] = ()
        self.bound: Atom | Sum | Product | None = None


class Sum:
    """Parts one after the other. Build it with `concat`, which normalises."""

    __slots__ = ("parts", "size")

    def __init__(self, parts: tuple[Atom | Sum | Product, ...]) -> None:
        self.parts = parts
        self.size: int = sum(part.size for part in parts)


class Product:
    """Factors flattened in row-major order. Build it with `product`, which normalises."""

    __slots__ = ("factors", "size")

    def __init__(self, factors: tuple[Atom | Sum | Product, ...]) -> None:
        self.factors = factors
        self.size: int = prod(factor.size for factor in factors)


Axis = Atom | Sum | Product

SINGLE = "it is a single channel"


def resolve(axis: Axis) -> Axis:
    """Follow the bindings of an atom to what it stands for."""
    if not isinstance(axis, Atom) or axis.bound is None:
        return axis
    end: Axis = axis
    while isinstance(end, Atom) and end.bound is not None:
        end = end.bound
    while isinstance(axis, Atom) and axis.bound is not None and axis.bound is not end:
        axis.bound, axis = end, axis.bound
    return end


def concat(parts: Sequence[Axis]) -> Axis:
    """Put axes one after the other."""
    filled = tuple(part for part in parts if part.size)
    return filled[0] if len(filled) == 1 else Sum(filled)


def product(factors: Sequence[Axis]) -> Axis:
    """Flatten axes in row-major order. A factor of one channel is dropped, and so has to stay."""
    wide = []
    for factor in factors:
        if factor.size == 1:
            freeze(factor, SINGLE)
        else:
            wide.append(factor)
    if not wide:
        return Atom(1, SINGLE)
    return wide[0] if len(wide) == 1 else Product(tuple(wide))


def parts_of(axis: Axis) -> list[Atom | Product]:
    """Flatten nested sums: the parts, each an unbound atom or a product."""
    axis = resolve(axis)
    if isinstance(axis, Sum):
        return [part for nested in axis.parts for part in parts_of(nested)]
    return [axis]


def factors_of(axis: Axis) -> list[Atom | Sum]:
    """Flatten nested products: the factors, each an unbound atom or a sum."""
    axis = resolve(axis)
    if isinstance(axis, Product):
        return [factor for nested in axis.factors for factor in factors_of(nested)]
    return [axis]


def leaves(axis: Axis) -> Iterator[Atom]:
    """Yield the unbound atoms of an axis from left to right, one that occurs twice, twice."""
    axis = resolve(axis)
    if isinstance(axis, Atom):
        yield axis
    else:
        for inner in axis.parts if isinstance(axis, Sum) else axis.factors:
            yield from leaves(inner)


def freeze(axis: Axis, reason: str) -> None:
    """State that all channels of an axis have to stay; the first reason given is kept."""
    for atom in leaves(axis):
        atom.frozen = atom.frozen or reason


def mix(axis: Axis, reason: str) -> None:
    """State that an operator computes a statistic over the axis: to remove a channel is not the same as to zero it."""
    for atom in leaves(axis):
        if reason not in atom.mixed:
            atom.mixed = (*atom.mixed, reason)


def channels(axis: Axis, atom: Atom) -> Tensor:
    """Tell which channel of `atom` lies at each index of an axis.

    Returns:
        int64 [axis.size]: the channel, or -1 where the index belongs to another atom.
    """
    axis = resolve(axis)
    if axis is atom:
        return torch.arange(axis.size)
    if isinstance(axis, Sum):
        return torch.cat([channels(part, atom) for part in axis.parts])
    if isinstance(axis, Product):
        for position, inner in enumerate(axis.factors):
            found = channels(inner, atom)
            if (found >= 0).any():
                before = prod(f.size for f in axis.factors[:position])
                after = prod(f.size for f in axis.factors[position + 1 :])
                return found.reshape(1, -1, 1).expand(before, -1, after).flatten()
    return torch.full((axis.size,), -1)


def kept(axis: Axis, masks: Mapping[Atom, Tensor]) -> Tensor:
    """Tell which indices of an axis stay.

    Args:
        axis: Any axis.
        masks: Bool [atom.size] for each atom that loses channels, True where a channel stays.

    Returns:
        Bool [axis.size].
    """
    axis = resolve(axis)
    if isinstance(axis, Atom):
        return masks[axis] if axis in masks else torch.ones(axis.size, dtype=torch.bool)
    if isinstance(axis, Sum):
        return torch.cat([kept(part, masks) for part in axis.parts])
    mask = torch.ones(1, dtype=torch.bool)
    for inner in axis.factors:
        mask = (mask[:, None] & kept(inner, masks)[None, :]).flatten()
    return mask


def count(axis: Axis, sizes: Mapping[Atom, int]) -> int:
    """Count the indices of an axis that stay, from the number of channels that each atom keeps."""
    axis = resolve(axis)
    if isinstance(axis, Atom):
        return sizes.get(axis, axis.size)
    if isinstance(axis, Sum):
        return sum(count(part, sizes) for part in axis.parts)
    return prod(count(inner, sizes) for inner in axis.factors)
