"""Operators that reduce an axis, compute along it (softmax), or normalise over it."""

from __future__ import annotations

from collections.abc import Sequence

from pruning.graph.axes import Atom, Axis, factor, freeze, unify
from pruning.graph.rules.call import Call, Count, frozen, is_open, rule
from pruning.graph.rules.pointwise import broadcast_axes, stays_zero_in_sum

NORMS = frozenset({"layer_norm", "rms_norm", "group_norm"})

OVER_KEPT = NORMS | {"mean", "var", "std", "var_mean", "std_mean", "sum", "norm", "linalg_vector_norm"}
"""Operators whose statistic can be taken over the channels that stay: the narrowed model's, by the operator alone."""


def is_over_kept(reason: str) -> bool:
    """Whether what mixes an axis, which a reason begins with, is one of these operators."""
    return reason.partition(" ")[0] in OVER_KEPT


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


def _follow(call: Call, names: Sequence[str], axes: Sequence[Axis]) -> None:
    """State that the operands of these names lie along `axes`, and note what they are used as."""
    for name in names:
        if call[name] is not None:
            call.use(f"{call.name}.{name}", call[name])
            for mine, its in zip(axes, call.axes(call[name]), strict=True):
                unify(mine, its)


def _scaled_to_zero(call: Call, axes: Sequence[Axis], scaled: Sequence[Axis]) -> bool:
    """The scale and shift are zero where a channel is removed; along other axes the shift stays."""
    others = [axis for axis in axes if not any(axis is s for s in scaled)]
    given = [call.typed(call[name]) for name in ("weight", "bias") if call[name] is not None]
    return call["weight"] is not None and all(typed.zero for typed in given) and not any(map(is_open, others))


def _outputs(call: Call, axes: list[Axis]) -> list[list[Axis]]:
    return [axes, *(frozen(t.shape, "it is a batch statistic") for t in call.outputs[1:])]


@rule("batch_norm", "instance_norm")
def batch_norm(call: Call) -> list[list[Axis]]:
    """b c *, c, c, c, c -> b c *, its statistics over all but c where they are taken from the input."""
    axes = call.axes(call["input"])
    over = [axes[0], *axes[2:]] if call["training"] else axes[2:] if call["use_input_stats"] else []
    for axis in over:
        call.mix(axis, f"{call.name} computes its statistics over it")
    _follow(call, ("weight", "bias", "running_mean", "running_var"), axes[1:2])
    call.zero = _scaled_to_zero(call, axes, axes[1:2])
    return _outputs(call, axes)


@rule("layer_norm", "rms_norm")
def layer_norm(call: Call) -> list[list[Axis]]:
    """... c, c, c -> ... c, its statistics over c."""
    x = call["input"]
    axes = call.axes(x)
    normalized = axes[x.ndim - len(call["normalized_shape"]) :]
    _follow(call, ("weight", "bias"), normalized)
    for axis in normalized:
        call.mix(axis, f"{call.name} computes its statistics over it")
    call.zero = _scaled_to_zero(call, axes, normalized)
    return _outputs(call, axes)


@rule("group_norm")
def group_norm(call: Call) -> list[list[Axis]]:
    """b (g i) *, (g i), (g i) -> b (g i) *, its statistics over i; a whole group can go."""
    x, groups = call["input"], call["num_groups"]
    axes = call.axes(x)
    _follow(call, ("weight", "bias"), axes[1:2])
    group, inside = factor(axes[1], [groups, x.shape[1] // groups])
    for axis in (inside, *axes[2:]):
        call.mix(axis, "group_norm computes its statistics over it")
    call.facts.counts.append(Count(call.module, "num_groups", group))
    call.zero = _scaled_to_zero(call, axes, axes[1:2])
    return [axes]


@rule("_weight_norm_interface")
def weight_norm(call: Call) -> list[list[Axis]]:
    """v · g / ‖v‖, the norm over all axes but one; along that one a zero of g is enough, and v must not be zero."""
    direction, length = call["v"], call["g"]
    dim = call.dim(direction, call["dim"])
    axes = call.axes(direction)
    unify(axes[dim], call.axes(length)[dim])
    call.facts.summed.extend(axis for position, axis in enumerate(axes) if position != dim)
    for source in call.typed(direction).sources:
        call.facts.unmasked.add((source, dim))
    call.zero = True
    return [axes, call.axes(length)]
