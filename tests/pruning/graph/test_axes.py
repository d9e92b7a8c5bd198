from __future__ import annotations

from math import prod
from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pruning.graph.axes import (
    Atom,
    Axis,
    channels,
    concat,
    count,
    cut,
    factor,
    factors_of,
    kept,
    leaves,
    parts_of,
    product,
    resolve,
    unify,
)


def sizes(axis: Axis) -> list[int]:
    return [part.size for part in parts_of(axis)]


def test_an_atom_stands_for_what_it_is_bound_to_in_both_directions() -> None:
    a, b, c = Atom(6), Atom(6), Atom(6)
    unify(a, b)
    unify(c, b)
    assert resolve(a) is resolve(b) is resolve(c)


def test_cutting_one_axis_cuts_every_axis_that_shares_it() -> None:
    a, b = Atom(10), Atom(10)
    unify(a, b)
    cut(a, [3, 7])
    assert sizes(b) == [3, 7]


def test_sums_are_cut_at_each_others_borders() -> None:
    a, b = concat([Atom(3), Atom(5)]), concat([Atom(4), Atom(4)])
    unify(a, b)
    assert sizes(a) == sizes(b) == [3, 1, 4]
    assert list(leaves(a)) == list(leaves(b))


def test_a_sum_unified_with_its_own_rotation_ends() -> None:
    x, y = Atom(3), Atom(5)
    unify(concat([x, y]), concat([y, x]))
    assert list(leaves(concat([x, y]))) == list(leaves(concat([y, x])))
    assert len(set(leaves(x)) | set(leaves(y))) == 1  # the greatest common divisor of 3 and 5


def test_products_are_brought_to_common_factors() -> None:
    a, b = product([Atom(2), Atom(12)]), product([Atom(6), Atom(4)])
    unify(a, b)
    assert [f.size for f in factors_of(a)] == [f.size for f in factors_of(b)] == [2, 3, 4]


def test_products_without_common_factors_are_frozen_with_a_reason() -> None:
    a, b = product([Atom(4), Atom(3)]), product([Atom(3), Atom(4)])
    unify(a, b)
    assert all("no common factors" in (atom.frozen or "") for axis in (a, b) for atom in leaves(axis))


def test_what_lies_between_common_factors_stays_and_these_are_shared() -> None:
    a, b = product([Atom(12), Atom(64)]), product([Atom(16), Atom(48)])  # heads, and the groups of a convolution
    unify(a, b)
    free = [atom for atom in leaves(a) if not atom.frozen]
    assert [atom.size for atom in free] == [4, 16]
    assert [atom for atom in leaves(b) if not atom.frozen] == free


@pytest.mark.parametrize("seed", range(40))
def test_what_goes_along_one_factorisation_goes_along_the_other(seed: int) -> None:
    random = Random(seed)
    primes = [random.choice([2, 2, 3]) for _ in range(random.randint(3, 6))]

    def factorised() -> Axis:
        sizes, order = [], random.sample(primes, len(primes))
        while order:
            number = random.randint(1, len(order))
            sizes.append(prod(order[:number]))
            order = order[number:]
        return product([Atom(size) for size in sizes])

    a, b = factorised(), factorised()
    unify(a, b)
    assert a.size == b.size
    masks = {}
    for atom in (*leaves(a), *leaves(b)):
        mask = torch.tensor([random.random() < 0.6 for _ in range(atom.size)])
        masks[atom] = mask | bool(atom.frozen)
    assert torch.equal(kept(a, masks), kept(b, masks))


def test_a_concatenation_that_is_split_into_equal_chunks_couples_the_chunks() -> None:
    a, b = Atom(4), Atom(4)
    outer, inner = factor(concat([a, b]), [2, 4])
    assert resolve(a) is resolve(b) is resolve(inner)
    assert all(atom.frozen for atom in leaves(outer))


def test_a_factor_that_is_cut_cuts_the_product() -> None:
    a = Atom(6)
    whole = product([a, Atom(4)])
    head, tail = cut(whole, [8, 16])
    assert sizes(a) == [2, 4]
    assert (head.size, tail.size) == (8, 16)


def test_a_cut_inside_a_block_freezes_the_blocks_and_cuts_them_all() -> None:
    outer, inner = Atom(3), Atom(4)
    pieces = cut(product([outer, inner]), [6, 6])
    assert outer.frozen
    assert sizes(inner) == [2, 2]
    assert [piece.size for piece in pieces] == [6, 6]


def test_reasons_go_along_with_bindings() -> None:
    a, b = Atom(6, "it is an input"), Atom(6)
    unify(a, b)
    cut(b, [2, 4])
    assert {atom.frozen for atom in leaves(a)} == {"it is an input"}


def test_axes_of_different_sizes_are_never_the_same() -> None:
    with pytest.raises(ValueError, match="axes of 3 and 4 channels"):
        unify(Atom(3), Atom(4))
    with pytest.raises(ValueError, match="can't be cut"):
        cut(Atom(3), [1, 1])
    with pytest.raises(ValueError, match="has no factors"):
        factor(Atom(6), [4, 2])


def test_what_stays_of_a_sum_and_of_a_product_follows_its_atoms() -> None:
    a, b = Atom(2), Atom(3)
    masks = {b: torch.tensor([True, False, True])}
    assert kept(concat([a, b]), masks).tolist() == [True, True, True, False, True]
    assert kept(product([a, b]), masks).tolist() == [True, False, True] * 2
    assert channels(product([a, b]), b).tolist() == [0, 1, 2, 0, 1, 2]
    assert channels(product([a, b]), a).tolist() == [0, 0, 0, 1, 1, 1]
    assert channels(concat([a, b]), a).tolist() == [0, 1, -1, -1, -1]
    assert count(product([a, concat([b, Atom(4)])]), {b: 1}) == 2 * (1 + 4)


def expression(size: int, random: Random) -> Axis:
    """A random axis of the given size: an atom, a sum, or a product of smaller ones."""
    divisors = [d for d in range(2, size) if size % d == 0]
    match random.choice(["atom", "sum", "product"]):
        case "sum" if size > 1:
            head = random.randrange(1, size)
            return concat([expression(head, random), expression(size - head, random)])
        case "product" if divisors:
            outer = random.choice(divisors)
            return product([expression(outer, random), expression(size // outer, random)])
    return Atom(size)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from([4, 6, 8, 12, 24]), st.randoms(use_true_random=False))
def test_unified_axes_keep_the_same_indices_whatever_is_removed(size: int, random: Random) -> None:
    a, b, c = (expression(size, random) for _ in range(3))
    unify(a, b)
    unify(b, c)
    atoms = dict.fromkeys([*leaves(a), *leaves(b), *leaves(c)])
    masks = {atom: torch.tensor([random.random() > 0.4 for _ in range(atom.size)]) for atom in atoms if not atom.frozen}
    assert torch.equal(kept(a, masks), kept(b, masks))
    assert torch.equal(kept(b, masks), kept(c, masks))
