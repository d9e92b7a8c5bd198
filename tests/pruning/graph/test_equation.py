from __future__ import annotations

import pytest

from pruning.graph.axes import Atom, resolve
from pruning.graph.equation import Names, contracted, parse


def test_names_products_sums_and_runs_are_told_apart() -> None:
    (inputs, outputs) = parse("... (g i) *, x+y _ -> ... g")
    assert [[token.kind for token in pattern] for pattern in inputs] == [
        ["run", "product", "spatial"],
        ["sum", "product"],
    ]
    assert inputs[1][0].names == ("x", "y")
    assert outputs[0][1].names == ("g",)


def test_contracted_names_are_those_on_inputs_alone() -> None:
    assert contracted("b (g i) *, (g o) i *, (g o) -> b (g o) *") == ("i",)
    assert contracted("... n d, ... s d, ... s v -> ... n v") == ("d", "s")


@pytest.mark.parametrize(
    ("equation", "message"),
    [("a, b", "exactly one '->'"), ("(a b -> a", "'\\(' is never closed"), ("a-b -> a", "token 'a-b'")],
)
def test_a_malformed_equation_names_the_offending_token(equation: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse(equation)


def test_a_capital_and_an_underscore_are_never_pruned() -> None:
    names = Names({})
    axes = [Atom(3), Atom(4), Atom(5)]
    names.match(parse("V _ c -> c")[0][0], axes)
    assert [bool(axis.frozen) for axis in axes] == [True, True, False]


def test_one_unknown_factor_is_inferred_and_two_are_refused() -> None:
    names = Names({"g": 3})
    names.match(parse("(g i) -> i")[0][0], [Atom(12)])
    assert names.axes["i"].size == 4
    with pytest.raises(ValueError, match="sizes of a, b are not known"):
        Names({}).match(parse("(a b) -> a")[0][0], [Atom(12)])


def test_leading_axes_broadcast_from_the_right() -> None:
    names = Names({})
    wide, single, other = Atom(4), Atom(1), Atom(4)
    pattern = parse("... c -> c")[0][0]
    names.match(pattern, [Atom(7), single, Atom(5)])
    names.match(pattern, [wide, Atom(5)])
    names.match(pattern, [other, Atom(5)])
    assert [axis.size for axis in names.run] == [7, 4]
    assert resolve(wide) is resolve(other)


def test_an_operand_of_another_rank_is_refused() -> None:
    with pytest.raises(ValueError, match="operand of 1 axes"):
        Names({}).match(parse("a b -> a")[0][0], [Atom(2)])
