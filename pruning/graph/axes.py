"""The algebra of axes: which channels an axis of a tensor holds, and what it means that two hold the same.

    Atom          n channels about which nothing more is known yet
    Sum(a, b, …)  one after the other               (concatenation)
    Product(a, b) row-major flattening of a × b     (reshape)

An atom can be frozen (it keeps all its channels) or mixed (an operator computes a statistic over it), each with the
reason.

An atom is bound to the other side, sums are cut at each other's borders, products are brought to common factors.
Everything that shared a refined atom sees the finer form at once. Where two structures can't be reconciled, both sides
are frozen with the reason: to freeze or to couple more than needed is always correct, to couple less never is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import gcd, prod

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


UNROLLED = "equal blocks of it are used one by one, so no block can go"


def _bind(atom: Atom, axis: Axis) -> None:
    if atom.frozen:
        freeze(axis, atom.frozen)
    for reason in atom.mixed:
        mix(axis, reason)
    atom.bound = axis


def cut(axis: Axis, sizes: Sequence[int]) -> list[Axis]:
    """Cut an axis into consecutive pieces of the given sizes, refining the atoms that are cut.

    Raises:
        ValueError: The sizes don't add up to the size of the axis.
    """
    if sum(sizes) != axis.size:
        raise ValueError(f"an axis of {axis.size} channels can't be cut into {list(sizes)}")
    rest = list(reversed(parts_of(axis)))
    pieces: list[Axis] = []
    for size in sizes:
        taken: list[Axis] = []
        missing = size
        while missing:
            part = rest.pop()
            if part.size > missing:
                head, tail = _cut_in_two(part, missing)
                rest.extend(reversed(parts_of(tail)))
                rest.extend(reversed(parts_of(head)))
                continue
            # Cutting one part can have refined another that shares its atoms.
            if isinstance(resolve(part), Sum):
                rest.extend(reversed(parts_of(part)))
                continue
            taken.append(part)
            missing -= part.size
        pieces.append(concat(taken) if taken else Atom(0, "it is empty"))
    return pieces


def _cut_in_two(part: Atom | Product, at: int) -> tuple[Axis, Axis]:
    """Cut an axis that is no sum in two, the first piece of `at` channels."""
    axis = resolve(part)
    if isinstance(axis, Sum):
        head, tail = cut(axis, [at, axis.size - at])
        return head, tail
    if isinstance(axis, Atom):
        pieces = (Atom(at), Atom(axis.size - at))
        _bind(axis, Sum(pieces))
        return pieces
    outer, *others = factors_of(axis)
    inner = product(others)
    if at % inner.size == 0:
        heads = at // inner.size
        first, second = cut(outer, [heads, outer.size - heads])
        return product([first, inner]), product([second, inner])
    freeze(outer, UNROLLED)
    head, tail = cut(concat([inner] * outer.size), [at, axis.size - at])
    return head, tail


def factor(axis: Axis, sizes: Sequence[int]) -> list[Axis]:
    """Split an axis into factors of the given sizes, outermost first, refining the atoms that are split.

    Raises:
        ValueError: The product of the sizes is not the size of the axis.
    """
    if prod(sizes) != axis.size:
        raise ValueError(f"an axis of {axis.size} channels has no factors {list(sizes)}")
    if sum(size != 1 for size in sizes) == 1:
        return [axis if size != 1 else Atom(1, SINGLE) for size in sizes]
    atoms: list[Axis] = [Atom(size, SINGLE if size == 1 else None) for size in sizes]
    unify(axis, product(atoms))
    return atoms


def unify(a: Axis, b: Axis) -> None:
    """State that two axes hold the same channels in the same order.

    Raises:
        ValueError: The axes differ in size.
    """
    a, b = resolve(a), resolve(b)
    if a is b:
        return
    if a.size != b.size:
        raise ValueError(f"axes of {a.size} and {b.size} channels can't be the same")
    if isinstance(a, Atom):
        _bind(a, b)
    elif isinstance(b, Atom):
        _bind(b, a)
    elif isinstance(a, Sum) and isinstance(b, Sum):
        _unify_parts(a, b)
    elif isinstance(a, Sum):
        _unify_sum_with_product(a, b)
    elif isinstance(b, Sum):
        _unify_sum_with_product(b, a)
    else:
        _unify_factors(a, b)


def _unify_parts(a: Axis, b: Axis) -> None:
    left, right = list(reversed(parts_of(a))), list(reversed(parts_of(b)))
    while left:
        x, y = left.pop(), right.pop()
        # A part can have been refined to a sum by what was unified before it.
        for part, rest, other, others in ((x, left, y, right), (y, right, x, left)):
            if isinstance(resolve(part), Sum):
                rest.extend(reversed(parts_of(part)))
                others.append(other)
                break
        else:
            if x.size == y.size:
                unify(x, y)
            elif x.size > y.size:
                left.extend(reversed(_cut_in_two(x, y.size)))  # type: ignore[arg-type]
                right.append(y)
            else:
                right.extend(reversed(_cut_in_two(y, x.size)))  # type: ignore[arg-type]
                left.append(x)


def _unify_sum_with_product(a: Sum, b: Axis) -> None:
    outer, *others = factors_of(b)
    inner = product(others)
    sizes = [part.size for part in parts_of(a)]
    if all(size % inner.size == 0 for size in sizes):
        pieces = cut(outer, [size // inner.size for size in sizes])
        _unify_parts(a, concat([product([piece, inner]) for piece in pieces]))
    else:
        freeze(outer, UNROLLED)
        _unify_parts(a, concat([inner] * outer.size))


def _unify_factors(a: Product, b: Product) -> None:
    """Unify common factors from the outermost inwards, then from the innermost outwards; what lies between stays."""
    left, right = list(factors_of(a)), list(factors_of(b))
    for place in (0, -1):
        while left and right and (common := gcd(left[place].size, right[place].size)) > 1:
            unify(_split_off(left, place, common), _split_off(right, place, common))
    for axis in (*left, *right):
        freeze(axis, "it is reshaped in two ways that have no common factors")


def _split_off(factors: list[Atom | Sum], place: int, size: int) -> Axis:
    """Take a factor of a size off the first of some factors or, with -1 as `place`, off the last."""
    axis = factors.pop(place)
    if axis.size == size:
        return axis
    sizes = [size, axis.size // size] if place == 0 else [axis.size // size, size]
    pieces = factor(axis, sizes)
    rest = factors_of(pieces.pop(-1 - place))
    factors[:] = [*rest, *factors] if place == 0 else [*factors, *rest]
    return pieces[0]
