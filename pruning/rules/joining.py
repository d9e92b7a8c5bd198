"""Operators that put tensors together and take them apart."""

from __future__ import annotations

from pruning.algebra.axes import Atom, Axis, concat
from pruning.algebra.unification import cut, unify
from pruning.rules.call import Call, rule


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
    """a x+y c -> a x c, a y c; parts that the code makes equal lose equal counts."""
    x = call["self"]
    dim = call.dim(x, call["dim"] or 0)
    axes = call.axes(x)
    sizes = [t.shape[dim] for t in call.outputs]
    pieces = cut(axes[dim], sizes)
    if len(pieces) > 1 and len(set(sizes)) == 1:
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
