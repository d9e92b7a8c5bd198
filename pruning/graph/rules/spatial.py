"""Convolutions, pooling, resizing, padding and shuffling: channels stay, extents are never pruned."""

from __future__ import annotations

from dataclasses import replace

from pruning.graph.axes import Atom, Axis, concat, factor, product
from pruning.graph.equation import EXTENT
from pruning.graph.rules.call import Call, Count, freeze_all, frozen, rule


@rule(
    "conv1d",
    "conv2d",
    "conv3d",
    "convolution",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
)
def convolution(call: Call) -> list[list[Axis]]:
    """b (g i) *, (g o) i *, (g o) -> b (g o) *; transposed: b (g i) *, (g i) o *, (g o) -> b (g o) *"""
    x, weight, bias, groups = call["input"], call["weight"], call["bias"], call["groups"]
    transposed = "transpose" in call.name or bool(call["transposed"])
    call.use("convolution.weight", weight)
    call.use("convolution.bias", bias)
    kernel = "(g i) o *" if transposed else "(g o) i *"
    batch = "b " if x.ndim == weight.ndim else ""
    equation = f"{batch}(g i) *, {kernel}, (g o) -> {batch}(g o) *"
    axes = call.contraction(equation, x, weight, bias, g=groups)
    if transposed:  # each position of the input meets each weight once
        noted = call.facts.contractions[-1]
        terms = (*call.axes(x), *call.axes(weight)[1:])
        call.facts.contractions[-1] = replace(noted, terms=terms)
    if groups > 1:
        channel_axis = call.axes(x)[len(batch) // 2]
        group = factor(channel_axis, [groups, channel_axis.size // groups])[0]
        call.facts.counts.append(Count(call.module, "groups", group))
    return axes


def _leading(call: Call, extents: int) -> list[list[Axis]]:
    """Keep all axes but the last `extents`, which are never pruned."""
    x = call.inputs[0]
    axes = call.axes(x)
    freeze_all(axes[x.ndim - extents :], EXTENT)
    return [[*axes[: x.ndim - extents], *frozen(out.shape[out.ndim - extents :], EXTENT)] for out in call.outputs]


def _extents(name: str) -> int:
    return next(int(n) for n in "123" if f"{n}d" in name)


@rule(
    *(f"{kind}{n}d" for n in "123" for kind in ("max_pool", "avg_pool", "adaptive_avg_pool", "adaptive_max_pool")),
    *(f"max_pool{n}d_with_indices" for n in "23"),
)  # fmt: skip
def pooling(call: Call) -> list[list[Axis]]:
    """... * -> ... *"""
    # The largest of zeros and the mean of zeros are zero; the indices beside them are not, and lead nowhere.
    return _leading(call, _extents(call.name))


@rule(
    "upsample_linear1d", "upsample_bilinear2d", "upsample_trilinear3d", "upsample_bicubic2d", "_upsample_bilinear2d_aa",
    "_upsample_bicubic2d_aa",
    *(f"{kind}{n}d" for n in "123" for kind in ("upsample_nearest", "_upsample_nearest_exact")),
    *(f"{kind}_pad{n}d" for n in "123" for kind in ("reflection", "replication")),
)  # fmt: skip
def resizing(call: Call) -> list[list[Axis]]:
    """... * -> ... *"""
    return _leading(call, _extents(call.name))


@rule("constant_pad_nd")
def constant_pad(call: Call) -> list[list[Axis]]:
    """x -> before+x+after on each padded axis; what is added has no parameters and stays."""
    x, pad = call["self"], call["pad"]
    axes = list(call.axes(x))
    reason = "it is padding"
    for position in range(len(pad) // 2):
        before, after = pad[2 * position], pad[2 * position + 1]
        dim = x.ndim - 1 - position
        if before < 0 or after < 0:
            freeze_all([axes[dim]], EXTENT)
            axes[dim] = Atom(call.outputs[0].shape[dim], EXTENT)
        elif before or after:
            axes[dim] = concat([Atom(before, reason), axes[dim], Atom(after, reason)])
    call.zero = call.zero and not call["value"]
    return [axes]


@rule("pixel_shuffle")
def pixel_shuffle(call: Call) -> list[list[Axis]]:
    """... (c R S) H W -> ... c _ _"""
    r = call["upscale_factor"]
    return call.equation("... (c R S) H W -> ... c _ _", call["self"], R=r, S=r)


@rule("pixel_unshuffle")
def pixel_unshuffle(call: Call) -> list[list[Axis]]:
    """... c H W -> ... (c R S) _ _"""
    r = call["downscale_factor"]
    [c] = call.equation("... c H W -> ... c _ _", call["self"])
    *leading, channel, height, width = c
    return [[*leading, product([channel, Atom(r * r, EXTENT)]), height, width]]


@rule("channel_shuffle", "native_channel_shuffle")
def channel_shuffle(call: Call) -> list[list[Axis]]:
    """b (G c) * -> b (c G) *"""
    x = call["self"]
    axes = call.axes(x)
    group, channel = factor(axes[1], [call["groups"], x.shape[1] // call["groups"]])
    freeze_all([group], "the code shuffles a fixed number of groups")
    return [[axes[0], product([channel, group]), *axes[2:]]]


@rule("im2col")
def im2col(call: Call) -> list[list[Axis]]:
    """b c * -> b (c K) _, with K positions of the window"""
    x = call["self"]
    *leading, channel = call.axes(x)[:-2]
    [out] = _leading(call, 2)
    return [[*leading, product([channel, Atom(call.outputs[0].shape[-2] // channel.size, EXTENT)]), out[-1]]]


@rule("col2im")
def col2im(call: Call) -> list[list[Axis]]:
    """b (c K) * -> b c *, with K positions of the window"""
    x, out = call["self"], call.outputs[0]
    *leading, windows, place = call.axes(x)
    channel, window = factor(windows, [out.shape[-3], x.shape[-2] // out.shape[-3]])
    freeze_all([window, place], EXTENT)
    return [[*leading, channel, *frozen(out.shape[-2:], EXTENT)]]


@rule("grid_sampler")
def grid_sampler(call: Call) -> list[list[Axis]]:
    """b c *, b * -> b c *"""
    x, grid = call["input"], call["grid"]
    call.zero = call.typed(x).zero  # a weighted mean of zeros, wherever they are read
    return call.equation("b c *, b * -> b c *", x, grid)
