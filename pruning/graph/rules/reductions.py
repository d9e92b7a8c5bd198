"""Operators that work value by value; that reduce an axis, compute along it (softmax), or normalise over it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from torch import Tensor

from pruning.graph.axes import Atom, Axis, factor, freeze, unify
from pruning.graph.rules.call import Call, Count, Typed, frozen, is_open, rule

BATCH_NORMS = frozenset({"batch_norm", "instance_norm"})
"""Their gains lie along another axis than their statistics. On filters, a batch norm standardises weights."""

NORMS = BATCH_NORMS | {"layer_norm", "rms_norm", "group_norm"}

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
    adds = order is None or (isinstance(order, (int, float)) and 0 < order < float("inf"))
    for axis in (call.axes(x)[i] for i in dims):
        if not adds or not call.typed(x).zero_along(axis):
            call.mix(axis, f"{call.name} sums over it")
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
        call.nonzero = nonzero_in_sum(out, map(call.typed, call.inputs))
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


def _scaled_to_zero(call: Call, axes: Sequence[Axis], scaled: Sequence[Axis], *, centred: bool = False) -> bool:
    """The scale and shift are zero where a channel is removed; along other axes the shift stays.

    What is centred by its own mean (`centred`) needs no scale to stay at zero.
    """
    others = [axis for axis in axes if not any(axis is s for s in scaled)]
    given = [call.typed(call[name]) for name in ("weight", "bias") if call[name] is not None]
    scales = call["weight"] is not None or centred
    return scales and all(typed.zero for typed in given) and not any(map(is_open, others))


def _outputs(call: Call, axes: list[Axis]) -> list[list[Axis]]:
    return [axes, *(frozen(t.shape, "it is a batch statistic") for t in call.outputs[1:])]


@rule("batch_norm", "instance_norm")
def batch_norm(call: Call) -> list[list[Axis]]:
    """b c *, c, c, c, c -> b c *, its statistics over all but c where they are taken from the input.

    Weight standardisation is one over filters, (1, o, i *) -> (1, o, i *): where i loses channels, over those that
    stay, and zero for the others.
    """
    axes = call.axes(call["input"])
    over = [axes[0], *axes[2:]] if call["training"] else axes[2:] if call["use_input_stats"] else []
    for axis in over:
        call.mix(axis, f"{call.name} computes its statistics over it")
    _follow(call, ("weight", "bias", "running_mean", "running_var"), axes[1:2])
    centred = bool(over) and call.typed(call["input"]).zero
    call.zero = _scaled_to_zero(call, axes, [axes[1], *over], centred=centred)
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


# f(0) = 0 for these, so a channel of zeros stays one.
KEEPS_ZERO = frozenset(
    (
        *("abs", "asin", "asinh", "atan", "ceil", "celu", "elu", "erf", "expm1", "floor", "frac", "gelu", "hardswish"),
        *("leaky_relu", "log1p", "mish", "neg", "relu", "round", "selu", "sgn", "sign", "silu", "sin", "sinh"),
        *("softshrink", "sqrt", "square", "tan", "tanh", "trunc", "_prelu_kernel"),
    )
)

# f(0) is no number or infinite for these, by the operand that must not be zero.
NEEDS_NONZERO = {
    **dict.fromkeys(("digamma", "lgamma", "log", "log10", "log2", "polygamma", "reciprocal", "rsqrt"), "self"),
    **dict.fromkeys(("div", "floor_divide", "fmod", "remainder"), "other"),
}


def broadcast_axes(*operands: list[Axis]) -> list[Axis]:
    """Unify axes aligned from the right; an axis of size 1 broadcasts and couples nothing."""
    out: list[Axis] = []
    for axes in operands:
        out = [*axes[: len(axes) - len(out)], *out] if len(axes) > len(out) else out
    for axes in operands:
        for position, axis in enumerate(axes, start=len(out) - len(axes)):
            if out[position].size == 1:
                out[position] = axis
            elif axis.size != 1:
                unify(out[position], axis)
    return out


def nonzero_in_sum(out: Sequence[Axis], operands: Iterable[Typed]) -> tuple[Axis, ...]:
    """A sum is zero where all terms are; a term that is broadcast along an open axis is not."""
    return _unless(all, out, list(operands))


def _unless(hold: Callable[[Iterable[bool]], bool], out: Sequence[Axis], operands: Sequence[Typed]) -> tuple[Axis, ...]:
    """The open axes but those along which all operands, or any, have removed channels of zeros."""

    def is_zero(typed: Typed, position: int) -> bool:
        mine = position - (len(out) - len(typed.axes))
        return mine >= 0 and typed.axes[mine].size != 1 and typed.zero_along(typed.axes[mine])

    return tuple(
        axis for i, axis in enumerate(out) if is_open(axis) and not hold(is_zero(typed, i) for typed in operands)
    )


@rule("_prelu_kernel", "hardswish", "log_sigmoid_forward", "masked_fill")
def broadcast(call: Call) -> list[list[Axis]]:
    """The rule of all pointwise operators."""
    _freeze_undefined(call)
    axes = broadcast_axes(*(call.axes(tensor) for tensor in call.inputs))
    call.nonzero = _nonzero(call, axes)
    return [axes for _ in call.outputs]


def _freeze_undefined(call: Call) -> None:
    """Where a removed channel's zeros would give no number, it can't be masked: no zero after it makes up for that."""
    negative = call.name == "pow" and isinstance(call["exponent"], (int, float)) and call["exponent"] < 0
    operand = call["self"] if negative else call[NEEDS_NONZERO.get(call.name, "")]
    if isinstance(operand, Tensor):
        for axis in filter(call.typed(operand).zero_along, filter(is_open, call.axes(operand))):
            freeze(axis, f"{call.name} gives no number for the zeros of a removed channel")


def _nonzero(call: Call, out: list[Axis]) -> tuple[Axis, ...] | None:
    operands = [call.typed(t) for t in call.inputs]
    if call.name == "mul":  # zero where one factor is that has the axis itself
        return _unless(any, out, operands)
    if call.name == "div":
        return nonzero_in_sum(out, operands[:1])
    return nonzero_in_sum(out, operands) if _keeps_zeros(call) else None


def _keeps_zeros(call: Call) -> bool:
    """Whether zeros of all operands give zero."""
    if call.name in ("add", "sub"):
        return len(call.inputs) == 2 or call["other"] == 0
    if call.name == "hardtanh":
        return bool(call["min_val"] <= 0 <= call["max_val"])
    if call.name == "clamp":
        low, high = call["min"], call["max"]
        return len(call.inputs) == 1 and (low is None or low <= 0) and (high is None or high >= 0)
    if call.name == "pow":
        exponent = call["exponent"]
        return isinstance(exponent, (int, float)) and exponent > 0
    return call.name in KEEPS_ZERO


@rule(
    "native_dropout",
    "alias", "clone", "contiguous", "detach", "lift_fresh", "positive", "to", "_to_copy",
    "type_as",
)  # fmt: skip
def copy_of_first(call: Call) -> list[list[Axis]]:
    """... -> ..."""
    return [call.axes(call.inputs[0]) for _ in call.outputs]


@rule("copy")
def copy_into(call: Call) -> list[list[Axis]]:
    """The second operand is broadcast to the first and replaces its values."""
    out = broadcast_axes(call.axes(call["self"]), call.axes(call["src"]))
    call.nonzero = nonzero_in_sum(out, [call.typed(call["src"])])
    return [out]


@rule("zeros", "ones", "full", "empty", "new_zeros", "new_ones", "new_full", "new_empty", "scalar_tensor")
def constant(call: Call) -> list[list[Axis]]:
    """The same value everywhere: each axis may hold whatever channels it meets."""
    call.zero = call.name in ("zeros", "new_zeros")
    return [[Atom(size, "it is a single channel" if size == 1 else None) for size in call.outputs[0].shape]]


@rule("zeros_like", "ones_like", "full_like", "empty_like", "rand_like", "randn_like")
@rule("fill", "zero", "bernoulli", "uniform", "normal")
def like(call: Call) -> list[list[Axis]]:
    """The axes of the tensor that gives the shape."""
    call.zero = call.name in ("zeros_like", "zero")
    return [call.axes(call.inputs[0])]


@rule("arange", "linspace", "logspace", "eye", "rand", "randn", "randint", "randperm")
def positional(call: Call) -> list[list[Axis]]:
    """Each position holds another value, computed from the size."""
    call.zero = False
    return [frozen(call.outputs[0].shape, f"{call.name} computes its values from the size")]
