"""Operators that pick or write positions by an index: the axes that are indexed stay whole, the others go along."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from pruning.graph.axes import Atom, Axis, freeze, unify
from pruning.graph.rules.call import Call, Inapplicable, freeze_all, rule
from pruning.graph.rules.pointwise import broadcast_axes

PICKED = "the code picks single positions of it"


@rule("embedding")
def embedding(call: Call) -> list[list[Axis]]:
    """V c, ... -> ... c"""
    call.use("embedding.weight", call["weight"])
    return call.equation("V c, ... -> ... c", call["weight"], call["indices"])


@rule("select", "unbind")
def select(call: Call) -> list[list[Axis]]:
    """One position of an axis: the axis stays whole."""
    x = call["self"]
    axes = call.axes(x)
    dim = call.dim(x, call["dim"])
    freeze(axes[dim], PICKED)
    return [[axis for i, axis in enumerate(axes) if i != dim] for _ in call.outputs]


@rule("index_select", "gather", "take_along_dim")
def pick(call: Call) -> list[list[Axis]]:
    """Positions given by an index: the axis stays whole. An index for each channel has the same channels."""
    x = call["self"]
    axes = list(call.axes(x))
    dim = call.dim(x, call["dim"])
    if call.name == "index_select":
        freeze(axes[dim], PICKED)
    else:
        for place, (axis, other) in enumerate(zip(axes, call.axes(call.inputs[1]), strict=True)):
            if place == dim or axis.size != other.size:
                freeze_all([axis, other], PICKED)
            else:
                unify(axis, other)
    shape = call.outputs[0].shape
    return [[Atom(n, PICKED) if i == dim or axes[i].size != n else axes[i] for i, n in enumerate(shape)]]


@rule("index")
def index(call: Call) -> list[list[Axis]]:
    """x[i, :, j]: the axes of the indices stand where the indexed axes stood, or first where those were apart."""
    return [_indexed(call, call["self"], call["indices"])]


@rule("index_put")
def index_put(call: Call) -> list[list[Axis]]:
    """x[i, :, j] = v, and x[mask] = v: what the mask lies over stays whole, as does the axis of what it picks."""
    x, values = call["self"], call.axes(call["values"])
    first = call["indices"][0]
    if first is not None and not first.dtype.is_signed and not any(i is not None for i in call["indices"][1:]):
        behind = call.axes(x)[first.ndim :]
        picked = max(0, len(values) - len(behind))
        freeze_all([*call.axes(x)[: first.ndim], *call.axes(first), *values[:picked]], PICKED)
        broadcast_axes(behind, values[picked:])
    else:
        broadcast_axes(_indexed(call, x, call["indices"]), values)
    call.zero = call.typed(x).zero and call.typed(call["values"]).zero
    return [call.axes(x)]


@rule("index_add", "index_copy")
def index_add(call: Call) -> list[list[Axis]]:
    """x[:, i] += v, x[:, i] = v: the axis that is indexed stays whole."""
    x, values = call["self"], call["source"]
    dim = call.dim(x, call["dim"])
    for position, (axis, given) in enumerate(zip(call.axes(x), call.axes(values), strict=True)):
        if position == dim:
            freeze_all([axis, given], PICKED)
        else:
            unify(axis, given)
    call.zero = call.typed(x).zero and call.typed(values).zero
    return [call.axes(x)]


@rule("scatter", "scatter_add", "scatter_reduce")
def scatter(call: Call) -> list[list[Axis]]:
    """Each value goes where its own index says: all axes stay whole."""
    for tensor in call.inputs:
        freeze_all(call.axes(tensor), PICKED)
    return [call.axes(call["self"])]


@rule("unfold")
def unfold(call: Call) -> list[list[Axis]]:
    """Windows of an axis, which become an axis of their own at the end: both stay whole."""
    x = call["self"]
    axes = list(call.axes(x))
    dim = call.dim(x, call["dimension"])
    freeze(axes[dim], PICKED)
    shape = call.outputs[0].shape
    axes[dim] = Atom(shape[dim], PICKED)
    return [[*axes, Atom(shape[-1], PICKED)]]


@rule("tril", "triu")
def triangle(call: Call) -> list[list[Axis]]:
    """... * -> ... *: what stays depends on the positions."""
    axes = call.axes(call["self"])
    freeze_all(axes[-2:], PICKED)
    return [axes]


def _indexed(call: Call, x: Tensor, indices: Sequence[Tensor | None]) -> list[Axis]:
    axes = call.axes(x)
    places = [place for place, index in enumerate(indices) if index is not None]
    given = [index for index in indices if index is not None]
    if any(not index.dtype.is_signed for index in given):
        raise Inapplicable("a mask picks as many positions as it holds")
    for place in places:
        freeze(axes[place], PICKED)
    picked = broadcast_axes(*(call.axes(index) for index in given))
    rest = [axis for place, axis in enumerate(axes) if place not in places]
    start = places[0] if places == list(range(places[0], places[0] + len(places))) else 0
    return [*rest[:start], *picked, *rest[start:]]
