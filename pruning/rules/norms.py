"""Normalisations: whether an operator computes its statistics over an axis decides whether channels of it can go."""

from __future__ import annotations

from collections.abc import Sequence

from pruning.axes import Axis, mix
from pruning.rules.call import Call, frozen, rule
from pruning.unification import factor, unify


def _follow(call: Call, names: Sequence[str], axes: Sequence[Axis]) -> None:
    """State that the operands of these names lie along `axes`, and note what they are used as."""
    for name in names:
        if call[name] is not None:
            call.use(f"{call.name}.{name}", call[name])
            for mine, its in zip(axes, call.axes(call[name]), strict=True):
                unify(mine, its)


def _outputs(call: Call, axes: list[Axis]) -> list[list[Axis]]:
    return [axes, *(frozen(t.shape, "it is a batch statistic") for t in call.outputs[1:])]


@rule("batch_norm", "native_batch_norm", "_native_batch_norm_legit_no_training", "cudnn_batch_norm", "instance_norm")
def batch_norm(call: Call) -> list[list[Axis]]:
    """B c *, c, c, c, c -> b c *"""  # noqa: D415 - an equation
    axes = call.axes(call["input"])
    _follow(call, ("weight", "bias", "running_mean", "running_var"), axes[1:2])
    # The scale and shift are zero where a channel is removed, and so is the output.
    call.zero = call["weight"] is not None
    return _outputs(call, axes)


@rule("layer_norm", "rms_norm", "native_layer_norm", "_fused_rms_norm")
def layer_norm(call: Call) -> list[list[Axis]]:
    """... c, c, c -> ... c, its statistics over c."""
    x = call["input"]
    axes = call.axes(x)
    normalized = axes[x.ndim - len(call["normalized_shape"]) :]
    _follow(call, ("weight", "bias"), normalized)
    for axis in normalized:
        mix(axis, f"{call.name} computes its statistics over it")
    call.zero = call["weight"] is not None
    return _outputs(call, axes)


@rule("group_norm")
def group_norm(call: Call) -> list[list[Axis]]:
    """B (g i) *, (g i), (g i) -> b (g i) *, its statistics over i; a whole group can go."""
    x, groups = call["input"], call["num_groups"]
    axes = call.axes(x)
    _follow(call, ("weight", "bias"), axes[1:2])
    group, inside = factor(axes[1], [groups, x.shape[1] // groups])
    mix(inside, "group_norm computes its statistics over it")
    call.facts.group_counts[call.module] = group
    call.zero = call["weight"] is not None
    return [axes]
