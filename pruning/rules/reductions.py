"""Operators that reduce an axis or compute along it."""

from __future__ import annotations

from pruning.algebra.axes import Atom, Axis, freeze
from pruning.rules.call import Call, rule
from pruning.rules.pointwise import broadcast_axes, stays_zero_in_sum


def _reduce(call: Call, dims: list[int], keepdim: bool) -> list[list[Axis]]:
    axes = call.axes(call.inputs[0])
    call.facts.summed.extend(axes[i] for i in dims)
    if keepdim:
        kept = [Atom(1, "it is a single channel") if i in dims else axis for i, axis in enumerate(axes)]
    else:
        kept = [axis for i, axis in enumerate(axes) if i not in dims]
    return [kept for _ in call.outputs]


@rule("sum", "linalg_vector_norm", "norm", "any")
def sums(call: Call) -> list[list[Axis]]:
    """Zeros add nothing: a removed channel that holds zeros may go, any other may not."""
    x = call.inputs[0]
    dims = call.dims(x, call["dim"])
    order = call["ord"] if call["ord"] is not None else call["p"]
    exact = call.zero and (order is None or (isinstance(order, (int, float)) and 0 < order < float("inf")))
    if not exact:
        for i in dims:
            call.mix(call.axes(x)[i], f"{call.name} sums over it")
    return _reduce(call, dims, bool(call["keepdim"]))


@rule("mean", "var", "std", "var_mean", "std_mean", "amax", "amin", "aminmax", "logsumexp", "prod", "all")
def statistics(call: Call) -> list[list[Axis]]:
    """A statistic over an axis changes when a channel goes."""
    x = call.inputs[0]
    dims = call.dims(x, call["dim"])
    for i in dims:
        call.mix(call.axes(x)[i], f"{call.name} is computed over it")
    # Only an axis that stays whole is reduced, so a channel of zeros gives 0 for all of these but the logarithm.
    call.zero = call.zero and call.name not in ("logsumexp", "prod", "all")
    return _reduce(call, dims, bool(call["keepdim"]))


@rule("max", "min", "argmax", "argmin", "median", "mode", "kthvalue")
def extremes(call: Call) -> list[list[Axis]]:
    """A value and the index at which it lies; with a second tensor, the larger of two."""
    if isinstance(call["other"], type(call.inputs[0])):
        out = broadcast_axes(*(call.axes(t) for t in call.inputs))
        call.zero = stays_zero_in_sum(out, [(call.axes(t), call.typed(t).zero) for t in call.inputs])
        return [out]
    x = call.inputs[0]
    dims = call.dims(x, call["dim"])
    for i in dims:
        freeze(call.axes(x)[i], f"{call.name} gives an index into it")
    call.zero = False
    return _reduce(call, dims, bool(call["keepdim"]))


@rule("softmax", "_softmax", "log_softmax", "_log_softmax")
def softmax(call: Call) -> list[list[Axis]]:
    """... -> ..., normalised over one axis."""
    x = call.inputs[0]
    call.mix(call.axes(x)[call.dim(x, call["dim"])], "softmax normalises over it")
    call.zero = False
    return [call.axes(x)]


@rule("cumsum", "cumprod", "cummax", "cummin", "logcumsumexp", "sort", "argsort", "topk", "flip", "roll")
def along(call: Call) -> list[list[Axis]]:
    """Each position depends on where it stands, so the axes worked along stay whole."""
    x = call.inputs[0]
    given = call["dims"] if call["dims"] is not None else call["dim"]
    for i in call.dims(x, given):
        freeze(call.axes(x)[i], f"{call.name} depends on the position of each channel")
    axes = call.axes(x)
    out = [
        axes[i] if axes[i].size == size else Atom(size, "it is ranked") for i, size in enumerate(call.outputs[0].shape)
    ]
    call.zero = call.zero and call.name not in ("cumprod", "logcumsumexp", "argsort")
    return [out for _ in call.outputs]
