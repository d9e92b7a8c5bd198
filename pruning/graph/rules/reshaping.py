"""Operators that rearrange axes, put tensors together and take them apart, without touching values.

Of those that pick or write positions by an index, the axes that are indexed stay whole, the others go along.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from pruning.graph.axes import Atom, Axis, concat, cut, factor, freeze, product, unify
from pruning.graph.rules.call import Call, Inapplicable, freeze_all, frozen, rule
from pruning.graph.rules.reductions import broadcast_axes


def regroup(axes: Sequence[Axis], shape: Sequence[int]) -> list[Axis]:
    """Carry axes over to another shape with the same elements in the same order.

    Both shapes are walked from the left; the shortest runs of axes with equal products are flattened and factored anew.
    """
    if any(size == 0 for size in shape):
        freeze_all(axes, "it is empty")
        return frozen(shape, "it is empty")
    wide = [axis for axis in axes if axis.size != 1]
    out: list[Axis] = []
    rest = list(shape)
    while rest:
        size = rest.pop(0)
        if size == 1:
            out.append(Atom(1, "it is a single channel"))
            continue
        left, right = [wide.pop(0)], [size]
        have, want = left[0].size, size
        while have != want:
            if have < want:
                left.append(wide.pop(0))
                have *= left[-1].size
            else:
                right.append(rest.pop(0))
                want *= right[-1]
        out.extend(factor(product(left), right))
    return out


@rule("view", "reshape", "_unsafe_view", "flatten", "unflatten", "view_as", "reshape_as", "ravel")
def view(call: Call) -> list[list[Axis]]:
    """The same elements in the same order under another shape."""
    out = regroup(call.axes(call["self"]), call.outputs[0].shape)
    return [broadcast_axes(out, call.axes(call["other"])) if call["other"] is not None else out]


@rule("permute", "transpose", "t", "swapaxes", "movedim", "numpy_T", "mT", "adjoint")
def permute(call: Call) -> list[list[Axis]]:
    """a b c -> c a b"""
    x = call["self"]
    axes = call.axes(x)
    order = list(range(x.ndim))
    if call.name == "permute":
        order = call.dims(x, call["dims"])
    elif call.name == "movedim":
        source, target = call.dims(x, call["source"]), call.dims(x, call["destination"])
        others = [i for i in order if i not in source]
        for place, dim in sorted(zip(target, source, strict=True)):
            others.insert(place, dim)
        order = others
    elif call.name == "numpy_T":
        order.reverse()
    elif x.ndim >= 2:
        first, second = call["dim0"], call["dim1"]
        if first is None:
            first, second = (call["axis0"], call["axis1"]) if call["axis0"] is not None else (-2, -1)
        i, j = call.dim(x, first), call.dim(x, second)
        order[i], order[j] = order[j], order[i]
    return [[axes[i] for i in order]]


@rule("unsqueeze", "squeeze")
def squeeze(call: Call) -> list[list[Axis]]:
    """a -> a 1, and back."""
    x = call["self"]
    axes = list(call.axes(x))
    if call.name == "unsqueeze":
        axes.insert(call["dim"] % (x.ndim + 1), Atom(1, "it is a single channel"))
        return [axes]
    dims = call.dims(x, call["dim"])
    return [[axis for i, axis in enumerate(axes) if i not in dims or axis.size != 1]]


@rule("expand", "expand_as")
def expand(call: Call) -> list[list[Axis]]:
    """1 -> n: a new axis may hold whatever channels it meets."""
    x, shape = call["self"], call.outputs[0].shape
    axes = [Atom(1), *[Atom(1)] * len(shape)][: len(shape) - x.ndim] + call.axes(x)
    out = [axis if axis.size == size else Atom(size) for axis, size in zip(axes, shape, strict=True)]
    _hold_values(call, [a for a, b in zip(out, axes, strict=True) if a is not b])
    return [broadcast_axes(out, call.axes(call["other"])) if call["other"] is not None else out]


@rule("repeat")
def repeat(call: Call) -> list[list[Axis]]:
    """c -> (new c)"""
    x, times = call["self"], call["repeats"]
    axes = [*(Atom(1, "it is a single channel") for _ in range(len(times) - x.ndim)), *call.axes(x)]
    new = [Atom(n) for n in times]
    _hold_values(call, new)
    return [[axis if n.size == 1 else product([n, axis]) for n, axis in zip(new, axes, strict=True)]]


def _hold_values(call: Call, new: Sequence[Axis]) -> None:
    """State that the channels of new axes are no zeros, whichever of them go."""
    call.nonzero = None if call.nonzero is None else (*call.nonzero, *new)


def slice_start(start: int | Tensor | None, size: int) -> int:
    """Where a slice of an axis begins, counted from its first position."""
    start = int(start or 0)  # code may give a tensor, which must not be calculated with
    return min(size, start + size if start < 0 else start)


@rule("slice", "narrow")
def slice_(call: Call) -> list[list[Axis]]:
    """before+piece+after -> piece."""
    x = call["self"]
    axes = list(call.axes(x))
    dim = call.dim(x, call["dim"])
    size, length = x.shape[dim], call.outputs[0].shape[dim]
    if length == size:
        return [axes]
    start = slice_start(call["start"], size)
    if (call["step"] or 1) != 1 or length == 0:
        freeze(axes[dim], PICKED)
        axes[dim] = Atom(length, PICKED)
    elif length == 1:
        freeze(axes[dim], PICKED)
        axes[dim] = Atom(1, PICKED)
    else:
        whole = axes[dim]
        axes[dim] = cut(whole, [start, length, size - start - length])[1]
        if call.typed(x).sources:
            call.facts.cuts.append(((id(x), dim), whole, axes[dim]))
    return [axes]


@rule("cat")
def cat(call: Call) -> list[list[Axis]]:
    """a x c, a y c -> a x+y c"""
    tensors = [t for t in call.inputs if t.ndim > 1 or t.numel()]
    dim = call.dim(tensors[0], call["dim"] or 0)
    first, *others = (call.axes(t) for t in tensors)
    for axes in others:
        for i, axis in enumerate(axes):
            if i != dim:
                unify(first[i], axis)
    joined = concat([axes[dim] for axes in (first, *others)])
    return [[joined if i == dim else axis for i, axis in enumerate(first)]]


@rule("stack")
def stack(call: Call) -> list[list[Axis]]:
    """a, a -> N a"""
    first, *others = (call.axes(t) for t in call.inputs)
    for axes in others:
        for mine, its in zip(first, axes, strict=True):
            unify(mine, its)
    out = list(first)
    out.insert(call["dim"] % (len(first) + 1), Atom(len(call.inputs), "the code stacks a fixed number of tensors"))
    return [out]


@rule("split", "chunk", "split_with_sizes", "tensor_split", "unsafe_chunk", "unsafe_split")
def split(call: Call) -> list[list[Axis]]:
    """a x+y c -> a x c, a y c; parts that the code makes equal lose equal counts, and so does a shorter last one.

    A chunk is as long as the axis over their number, rounded up: of 30, 30 and 28 channels that lose d each, 30 − d.
    """
    x = call["self"]
    dim = call.dim(x, call["dim"] or 0)
    axes = call.axes(x)
    sizes = [t.shape[dim] for t in call.outputs]
    pieces = cut(axes[dim], sizes)
    alike = sizes[:-1] if call.name in ("chunk", "unsafe_chunk") and sizes[-1] < sizes[0] else sizes
    if len(pieces) > 1 and len(set(alike)) == 1:
        call.facts.ties.append(tuple(pieces))
    return [[piece if i == dim else axis for i, axis in enumerate(axes)] for piece in pieces]


@rule("glu")
def glu(call: Call) -> list[list[Axis]]:
    """a x+x -> a x: the second half gates the first, channel by channel."""
    x = call["self"]
    dim = call.dim(x, call["dim"])
    axes = list(call.axes(x))
    half, gate = cut(axes[dim], [x.shape[dim] // 2] * 2)
    unify(half, gate)
    axes[dim] = half
    return [axes]


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


@rule("as_strided")
def as_strided(call: Call) -> list[list[Axis]]:
    """Windows over axes that lie one after another in memory: these stay whole, the others go along."""
    x, shape, strides = call["self"], call["size"], call["stride"]
    last = sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    if not is_dense(x) or call["storage_offset"] not in (None, x.storage_offset()) or last >= x.numel():
        raise Inapplicable("windows of a tensor without gaps, the first at its beginning, are what is understood")
    axes, steps = call.axes(x), list(zip(shape, strides, strict=True))
    places = {step: i for i, step in enumerate(zip(x.shape, x.stride(), strict=True)) if step[0] > 1}
    along = {j: places.pop(step) for j, step in enumerate(steps) if step in places}
    crossed = set(along)
    while crossed:
        moving = [step for j, step in enumerate(steps) if j not in along]
        crossed = {j for j, i in along.items() if _reach(moving, x.stride(i) * axes[i].size) >= x.stride(i)}
        along = {j: i for j, i in along.items() if j not in crossed}
    freeze_all([axis for i, axis in enumerate(axes) if i not in along.values()], PICKED)
    return [[axes[along[j]] if j in along else Atom(size, PICKED) for j, size in enumerate(shape)]]


def _reach(moving: Sequence[tuple[int, int]], period: int) -> int:
    """How far axes of these sizes and strides lead, those aside that lead to the same place in every period."""
    return sum((size - 1) * stride for size, stride in moving if stride % period)


def is_dense(x: Tensor) -> bool:
    """Whether the axes of a tensor lie one within another in memory, in whatever order, without gaps."""
    step = 1
    for stride, size in sorted((stride, size) for stride, size in zip(x.stride(), x.shape, strict=True) if size > 1):
        if stride != step:
            return False
        step *= size
    return True


def steps_of(strides: Sequence[int], x: Tensor) -> tuple[tuple[int, ...], ...]:
    """How many positions along each axis of a dense tensor each of some strides leads on."""
    return tuple(
        tuple(stride // step % size if size > 1 else 0 for step, size in zip(x.stride(), x.shape, strict=True))
        for stride in strides
    )


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
