"""Normalisations: whether an operator computes its statistics over an axis decides whether channels of it can go."""

from __future__ import annotations

from collections.abc import Sequence

from pruning.algebra.axes import Axis
from pruning.algebra.unification import factor, unify
from pruning.rules.call import Call, frozen, is_open, rule
from pruning.rules.facts import Count


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
    for source in call.typed(direction).sources:
        call.facts.unmasked.add((source, dim))
    call.zero = True
    return [axes, call.axes(length)]
