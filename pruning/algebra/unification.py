"""State that two axes hold the same channels in the same order: unification with structure.

An atom is bound to the other side, sums are cut at each other's borders, products are brought to common factors.
Everything that shared a refined atom sees the finer form at once. Where two structures can't be reconciled, both sides
are frozen with the reason: to freeze or to couple more than needed is always correct, to couple less never is.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from pruning.algebra.axes import (
    SINGLE,
    Atom,
    Axis,
    Product,
    Sum,
    concat,
    factors_of,
    freeze,
    mix,
    parts_of,
    product,
    resolve,
)

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
    left, right = list(reversed(factors_of(a))), list(reversed(factors_of(b)))
    while left and right:
        x, y = left.pop(), right.pop()
        if x.size == y.size:
            unify(x, y)
        elif x.size % y.size == 0:
            left.extend(reversed(factors_of(product(factor(x, [y.size, x.size // y.size])))))
            right.append(y)
        elif y.size % x.size == 0:
            right.extend(reversed(factors_of(product(factor(y, [x.size, y.size // x.size])))))
            left.append(x)
        else:
            for axis in (x, y, *left, *right):
                freeze(axis, "it is reshaped in two ways that have no common factors")
            return
