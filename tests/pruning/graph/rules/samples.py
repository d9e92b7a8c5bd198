"""One row or more for every operator's rule: a call, the shapes of its operands, and how many groups of channels it leaves free."""

# ruff: noqa: E501, B008 - a row of the table is a line; a loop's variable is bound as a default
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

aten: Any = torch.ops.aten


@dataclass(frozen=True)
class Sample:
    name: str
    function: Callable[..., Any]
    shapes: tuple[tuple[int, ...], ...]
    free: int  # groups of channels that the rule leaves free
    mixed: int = 0  # groups over which the operator computes a statistic
    carried: bool = False  # channels of an output are also summed over inside, so both laws hold at once


def row(
    name: str, function: Callable[..., Any], *shapes: tuple[int, ...], free: int, mixed: int = 0, carried: bool = False
) -> Any:
    return pytest.param(Sample(name, function, shapes, free, mixed, carried), id=name)


def grouped(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return F.conv2d(x, w, b, groups=x.shape[1] // w.shape[1])


def batch_norm(x: Tensor, w: Tensor, b: Tensor, m: Tensor, v: Tensor) -> Tensor:
    return F.batch_norm(x, m, v, w, b)


def in_place(x: Tensor, y: Tensor) -> Tensor:
    out = torch.zeros(y.shape[0], y.shape[1])
    return out.copy_(x).add_(y).relu_()


SAMPLES = [
    row("linear", F.linear, (2, 3, 7), (5, 7), (5,), free=4),
    row("linear without batch", F.linear, (7,), (5, 7), free=2),
    row("matmul", torch.matmul, (2, 3, 7), (2, 7, 5), free=4),
    row("matmul broadcasts", torch.matmul, (2, 3, 7), (7, 5), free=4),
    row("matrix and vector", torch.matmul, (3, 7), (7,), free=2),
    row("vector and matrix", torch.matmul, (7,), (7, 5), free=2),
    row("mm", torch.mm, (3, 7), (7, 5), free=3),
    row("bmm", torch.bmm, (2, 3, 7), (2, 7, 5), free=4),
    row("mv", torch.mv, (3, 7), (7,), free=2),
    row("dot", torch.dot, (7,), (7,), free=1),
    row("vdot", torch.vdot, (7,), (7,), free=1),
    row("addmm", torch.addmm, (5,), (3, 7), (7, 5), free=3),
    row("baddbmm", torch.baddbmm, (2, 3, 5), (2, 3, 7), (2, 7, 5), free=4),
    row("grouped_mm", lambda x, w: torch._grouped_mm(x, w, torch.tensor([2, 5, 6], dtype=torch.int32)), (6, 24), (3, 24, 12), free=2),
    row("solve_triangular", lambda a, b: torch.linalg.solve_triangular(a, b, upper=False), (2, 5, 5), (2, 5, 7), free=1),
    row("solve_triangular, ones on the diagonal", lambda a, b: torch.linalg.solve_triangular(a, b, upper=True, unitriangular=True),
        (2, 5, 5), (2, 5, 7), free=2),
    row("solve_triangular from the right, one matrix for all", lambda a, b: torch.linalg.solve_triangular(a, b, upper=False, left=False),
        (5, 5), (2, 7, 5), free=2),
    row("outer", torch.outer, (3,), (5,), free=2),
    row("einsum", lambda a, b: torch.einsum("bhq,khq->bhk", a, b), (2, 3, 7), (5, 3, 7), free=4),
    row("einsum with ellipsis", lambda a, b: torch.einsum("...i,oi", a, b), (2, 3, 7), (5, 7), free=4),
    row("einsum with capitals", lambda a, b: torch.einsum("Bi,oi->Bo", a, b), (2, 7), (5, 7), free=3),
    row("conv1d", F.conv1d, (2, 7, 11), (5, 7, 3), (5,), free=3),
    row("conv2d", F.conv2d, (2, 7, 11, 9), (5, 7, 3, 2), (5,), free=3),
    row("conv2d without batch", F.conv2d, (7, 11, 9), (5, 7, 3, 2), free=2),
    row("conv2d, padded by name", lambda x, w: F.conv2d(x, w, padding="same"), (2, 7, 11, 9), (5, 7, 3, 3), free=3),
    row("conv3d", F.conv3d, (2, 7, 5, 6, 4), (5, 7, 3, 2, 1), free=3),
    row("convolution", lambda x, w: torch.convolution(x, w, None, [1], [0], [1], False, [0], 1), (2, 7, 11), (5, 7, 3), free=3),
    row("grouped conv2d", grouped, (2, 12, 6, 5), (9, 4, 3, 3), (9,), free=4),
    row("depthwise conv2d", grouped, (2, 7, 6, 5), (7, 1, 3, 3), (7,), free=2),
    row("depthwise conv2d, multiplier 2", grouped, (2, 7, 6, 5), (14, 1, 3, 3), (14,), free=3),
    row("conv_transpose1d", F.conv_transpose1d, (2, 7, 5), (7, 3, 2), (3,), free=3),
    row("conv_transpose2d", F.conv_transpose2d, (2, 7, 5, 6), (7, 3, 2, 4), (3,), free=3),
    row("conv_transpose3d", F.conv_transpose3d, (2, 7, 5, 6, 4), (7, 3, 2, 4, 1), (3,), free=3),
    row("grouped conv_transpose2d", lambda x, w, b: F.conv_transpose2d(x, w, b, groups=b.shape[0] // w.shape[1]),
        (2, 12, 5, 6), (12, 5, 2, 4), (15,), free=4),
    row("batch_norm", batch_norm, (2, 7, 5, 3), (7,), (7,), (7,), (7,), free=4),
    row("batch_norm, of its own statistics", lambda x: F.batch_norm(x, None, None, training=True), (2, 7, 5, 3), free=1, mixed=3),
    row("batch_norm of filters", lambda w: F.batch_norm(w.reshape(1, w.shape[0], -1), None, None, training=True).reshape_as(w),
        (5, 7, 3, 2), free=1, mixed=3),
    row("instance_norm", F.instance_norm, (2, 7, 5, 3), free=2, mixed=2),
    row("layer_norm", lambda x, w, b: F.layer_norm(x, w.shape, w, b), (2, 5, 7), (7,), (7,), free=2, mixed=1),
    row("rms_norm", lambda x, w: F.rms_norm(x, w.shape, w), (2, 5, 7), (7,), free=2, mixed=1),
    row("group_norm", lambda x, w, b: F.group_norm(x, w.shape[0] // 4, w, b), (2, 12, 5, 3), (12,), (12,), free=2, mixed=3),
    row("max_pool1d", lambda x: F.max_pool1d(x, 2), (2, 7, 6), free=2),
    row("max_pool2d", lambda x: F.max_pool2d(x, 2), (2, 7, 6, 8), free=2),
    row("max_pool3d", lambda x: F.max_pool3d(x, 2), (2, 7, 6, 8, 4), free=2),
    row("max_pool2d with indices", lambda x: F.max_pool2d(x, 2, return_indices=True)[0], (2, 7, 6, 8), free=2),
    row("max_pool3d with indices", lambda x: F.max_pool3d(x, 2, return_indices=True)[0], (2, 7, 6, 8, 4), free=2),
    row("avg_pool1d", lambda x: F.avg_pool1d(x, 2), (2, 7, 6), free=2),
    row("avg_pool2d", lambda x: F.avg_pool2d(x, 2), (2, 7, 6, 8), free=2),
    row("avg_pool2d without batch", lambda x: F.avg_pool2d(x, 2), (7, 6, 8), free=1),
    row("avg_pool3d", lambda x: F.avg_pool3d(x, 2), (2, 7, 6, 8, 4), free=2),
    row("adaptive_avg_pool1d", lambda x: F.adaptive_avg_pool1d(x, 3), (2, 7, 6), free=2),
    row("adaptive_avg_pool2d", lambda x: F.adaptive_avg_pool2d(x, (3, 1)), (2, 7, 6, 8), free=2),
    row("adaptive_avg_pool3d", lambda x: F.adaptive_avg_pool3d(x, 2), (2, 7, 6, 8, 4), free=2),
    row("adaptive_max_pool1d", lambda x: F.adaptive_max_pool1d(x, 3), (2, 7, 6), free=2),
    row("adaptive_max_pool2d", lambda x: F.adaptive_max_pool2d(x, 3), (2, 7, 6, 8), free=2),
    row("adaptive_max_pool3d", lambda x: F.adaptive_max_pool3d(x, 2), (2, 7, 6, 8, 4), free=2),
    *(row(f"interpolate, {mode}", lambda x, m=mode: F.interpolate(x, scale_factor=2, mode=m), shape, free=2)
      for mode, shape in [("nearest", (2, 7, 4)), ("linear", (2, 7, 4)), ("nearest", (2, 7, 4, 3)), ("bilinear", (2, 7, 4, 3)),
                          ("bicubic", (2, 7, 4, 3)), ("nearest", (2, 7, 4, 3, 5)), ("trilinear", (2, 7, 4, 3, 5)),
                          ("nearest-exact", (2, 7, 4)), ("nearest-exact", (2, 7, 4, 3)), ("nearest-exact", (2, 7, 4, 3, 5))]),
    *(row(f"interpolate, {mode}, antialiased", lambda x, m=mode: F.interpolate(x, size=(2, 5), mode=m, antialias=True),
          (2, 7, 4, 3), free=2) for mode in ("bilinear", "bicubic")),
    *(row(f"pad {len(pad) // 2}d, {mode}", lambda x, m=mode, p=pad: F.pad(x, p, mode=m), (2, 7, 4, 3, 5)[: 2 + len(pad) // 2], free=2)
      for mode in ("reflect", "replicate") for pad in ((1, 2), (1, 2, 1, 1), (1, 2, 1, 1, 0, 1))),
    row("pad channels with zeros", lambda x: F.pad(x, (1, 1, 0, 0, 2, 3)), (2, 7, 4, 3), free=4),
    row("pad with a number", lambda x: F.pad(x, (1, 1), value=2.0), (2, 7, 4), free=3),
    row("im2col", lambda x: F.unfold(x, (2, 3), padding=1), (3, 5, 4, 7), free=2),
    row("col2im", lambda x: F.fold(x, (3, 4), (2, 2)), (3, 20, 6), free=2),
    row("col2im of a product", lambda x, y: F.fold(x * y, (3, 4), (2, 2)), (3, 20, 6), (3, 20, 6), free=2),
    row("grid_sample", lambda x, g: F.grid_sample(x, g.tanh(), align_corners=False), (3, 5, 4, 7), (3, 6, 5, 2), free=2),
    row("grid_sample 3d", lambda x, g: F.grid_sample(x, g.tanh(), align_corners=True), (3, 5, 4, 7, 2), (3, 6, 5, 2, 3), free=2),
    row("pixel_shuffle", lambda x: F.pixel_shuffle(x, 2), (3, 20, 4, 7), free=2),
    row("pixel_unshuffle", lambda x: F.pixel_unshuffle(x, 2), (3, 5, 4, 6), free=2),
    row("channel_shuffle", lambda x: F.channel_shuffle(x, 2), (3, 10, 4, 7), free=4),
    row("native_channel_shuffle", lambda x: F.native_channel_shuffle(x, 2), (3, 10, 4, 7), free=4),
    row("shuffle by view and transpose", lambda x, g: (x.view(len(x), len(g), -1) * g[:, None]).transpose(1, 2).reshape(len(x), -1),
        (3, 10), (2,), free=3),
    row("sum", lambda x: x.sum(1), (3, 5, 7), free=3),
    row("sum, kept", lambda x: x.sum((0, 2), keepdim=True), (3, 5, 7), free=3),
    row("norm", lambda x: torch.linalg.vector_norm(x, dim=1), (3, 5, 7), free=3),
    row("old norm", lambda x: aten.norm.ScalarOpt_dim(x, 2, [1]), (3, 5, 7), free=3),
    *(row(name, lambda x, n=name, f=getattr(torch, name): f(x if n == "amin" else -x, dim=1), (3, 5, 7), free=2, mixed=1)
      for name in ("mean", "var", "std", "amax", "amin", "logsumexp", "prod", "softmax", "log_softmax")),
    *(row(name, lambda x, f=getattr(torch, name): f(x, dim=1)[0], (3, 5, 7), free=2, mixed=1)
      for name in ("var_mean", "std_mean", "aminmax")),
    *(row(name, lambda x, f=getattr(torch, name): f(x, dim=1)[0], (3, 5, 7), free=2) for name in ("max", "min", "median", "mode")),
    row("kthvalue", lambda x: torch.kthvalue(x, 2, dim=1)[0], (3, 5, 7), free=2),
    row("max of two", torch.max, (3, 5), (3, 5), free=2),
    *(row(name, lambda x, f=getattr(torch, name): f(x, dim=1).float(), (3, 5, 7), free=2) for name in ("argmax", "argmin", "argsort")),
    *(row(name, lambda x, f=getattr(torch, name): f(x, dim=1), (3, 5, 7), free=2) for name in ("cumsum", "cumprod", "logcumsumexp")),
    *(row(name, lambda x, f=getattr(torch, name): f(x, dim=1)[0], (3, 5, 7), free=2) for name in ("cummax", "cummin", "sort")),
    row("topk", lambda x: torch.topk(x, 2, dim=1)[0], (3, 5, 7), free=2),
    row("flip", lambda x: x.flip(1), (3, 5, 7), free=2),
    row("roll", lambda x: x.roll(2, 1), (3, 5, 7), free=2),
    row("softmax, as decomposed", lambda x: aten._softmax(x, 1, False), (3, 5, 7), free=2, mixed=1),
    row("log_softmax, as decomposed", lambda x: aten._log_softmax(x, 1, False), (3, 5, 7), free=2, mixed=1),
    row("all", lambda x: (x > 0.3).all(1).float(), (3, 5, 7), free=2, mixed=1),
    row("any", lambda x: x.any(1).float(), (3, 5, 7), free=3),
    row("view merges", lambda x: x.view(len(x), -1), (3, 5, 7), free=3),
    row("view splits", lambda x, y: x.view(len(x), len(y), -1) * y[:, None], (3, 35), (5,), free=3),
    row("view merges and splits", lambda x: x.view(len(x), -1, x.shape[3]), (3, 5, 2, 7), free=4),
    row("reshape", lambda x: x.reshape(x.shape[0], 1, -1), (3, 5, 7), free=3),
    row("unsafe view", lambda x: aten._unsafe_view(x, [x.shape[0], x.shape[1] * x.shape[2]]), (3, 5, 7), free=3),
    row("flatten", lambda x: x.flatten(1), (3, 5, 7), free=3),
    row("unflatten", lambda x, y: x.unflatten(1, (len(y), -1)) * y[:, None], (3, 35), (5,), free=3),
    row("glu", lambda x: F.glu(x, 1), (3, 10), free=2),
    row("view_as", lambda x, y: x.view_as(y), (3, 5), (3, 5), free=2),
    row("reshape_as", lambda x, y: x.reshape_as(y), (3, 5), (3, 5), free=2),
    row("ravel", lambda x: x.ravel(), (3, 5), free=2),
    row("permute", lambda x: x.permute(2, 0, 1), (3, 5, 7), free=3),
    row("transpose", lambda x: x.transpose(0, -1), (3, 5, 7), free=3),
    row("t", lambda x: x.t(), (3, 5), free=2),
    row("swapaxes", lambda x: x.swapaxes(0, 2), (3, 5, 7), free=3),
    row("movedim", lambda x: x.movedim(0, 2), (3, 5, 7), free=3),
    row("T", lambda x: x.T, (3, 5), free=2),
    row("mT", lambda x: x.mT, (2, 3, 5), free=3),
    row("adjoint", lambda x: x.adjoint(), (2, 3, 5), free=3),
    row("unsqueeze", lambda x: x.unsqueeze(-1), (3, 5), free=2),
    row("squeeze", lambda x: x.squeeze(), (3, 1, 5, 1), free=2),
    row("squeeze one", lambda x: x.squeeze(1), (3, 1, 5, 1), free=2),
    row("expand", lambda x: x.expand(-1, 4, -1), (3, 1, 5), free=2),
    row("expand_as", lambda x, y: x.expand_as(y) + y, (3, 1), (3, 5), free=2),
    row("repeat", lambda x: x.repeat(1, 2, 1), (3, 4, 5), free=3),
    row("select", lambda x: x[:, 2], (3, 5, 7), free=2),
    row("unbind", lambda x: x.unbind(1), (3, 5, 7), free=2),
    row("slice a step", lambda x: x[:, ::2], (3, 10), free=1),
    row("narrow to all", lambda x: x.narrow(1, 0, x.shape[1]), (3, 10), free=2),
    row("index_select", lambda x: x.index_select(1, torch.tensor([1, 3])), (3, 5), free=1),
    row("gather", lambda x: x.gather(1, torch.tensor([[1], [3], [0]])), (3, 5), free=0),
    row("gather for each channel", lambda x: x.gather(1, torch.tensor([[1, 3], [0, 2], [4, 4]])[:, :, None].repeat(1, 1, x.shape[2])), (3, 5, 7), free=1),
    row("take_along_dim", lambda x: x.take_along_dim(torch.tensor([[1], [3], [0]]), 1), (3, 5), free=0),
    row("index", lambda x: x[:, torch.tensor([[0, 2]])], (3, 5, 7), free=2),
    row("index two axes", lambda x: x[torch.tensor([0, 2]), :, torch.tensor([1, 1])], (3, 5, 7), free=1),
    row("index_add", lambda x, v: (x * 1).index_add(1, torch.tensor([0, 2]), v), (3, 5, 7), (3, 2, 7), free=2),
    row("index_copy", lambda x, v: (x * 1).index_copy(1, torch.tensor([0, 2]), v), (3, 5, 7), (3, 2, 7), free=2),
    row("scatter", lambda x: x.scatter(1, torch.tensor([[1], [3], [0]]), 2.0), (3, 5), free=0),
    row("scatter_add", lambda x, v: x.scatter_add(1, torch.tensor([[1], [3], [0]]), v), (3, 5), (3, 1), free=0),
    row("scatter_reduce", lambda x, v: x.scatter_reduce(1, torch.tensor([[1], [3], [0]]), v, "amax"), (3, 5), (3, 1), free=0),
    row("unfold", lambda x: x.unfold(1, 3, 2), (3, 9, 5), free=2),
    row("windows", lambda x: x.as_strided((x.shape[0], 3, 2, x.shape[2]), (x.stride(0), x.stride(1), x.stride(1), 1)), (3, 6, 5), free=2),
    row("windows of windows", lambda x: x.view(x.shape[0], 2, 3, -1).as_strided((x.shape[0], 3, 3, x.shape[2]), (x.stride(0), x.stride(1), x.stride(1), 1)),
        (4, 6, 5), free=2),
    row("windows that cross rows", lambda x: x.as_strided((3, 6), (6, 1)), (3, 7), free=0),
    row("an axis by strides alone", lambda x: x.as_strided((x.shape[1], x.shape[0]), (1, x.shape[1])), (3, 7), free=2),
    row("tril", torch.tril, (3, 4, 5), free=1),
    row("triu", torch.triu, (3, 4, 5), free=1),
    row("index_put", lambda x, v: aten.index_put_(x * 1, [None, torch.tensor([0, 2])], v), (3, 5, 7), (3, 2, 7), free=2),
    row("index_put by a mask", lambda x, v: aten.index_put_(x * 1, [torch.arange(15).reshape(3, 5) % 2 == 0], v), (3, 5, 7), (7,), free=1),
    row("index_put of what a mask picks", lambda x, v: aten.index_put_(x * 1, [torch.arange(3) != 1], v), (3, 5, 7), (2, 5, 7), free=2),
    row("weight_norm", lambda v, g: torch._weight_norm(v, g, 0), (5, 3, 2), (5, 1, 1), free=3, carried=True),
    row("masked_fill", lambda x: x.masked_fill(x > 0.5, 0.0), (3, 5), free=2),
    row("scalar_tensor", lambda x: torch.scalar_tensor(2.0) * x, (3, 5), free=2),
    row("cat", lambda x, y: torch.cat([x, y], 1), (3, 5, 7), (3, 4, 7), free=4),
    row("stack", lambda x, y: torch.stack([x, y], 1), (3, 5), (3, 5), free=2),
    row("split", lambda x: x.split(x.shape[1] // 2, 1), (3, 10), free=3),
    row("split with sizes", lambda x, y: x.split_with_sizes([x.shape[1] - y.shape[1], y.shape[1]], 1)[1] + y, (3, 10), (3, 4), free=3),
    row("chunk", lambda x: x.chunk(2, 1), (3, 10), free=3),
    row("chunk with a shorter last part", lambda x: x.chunk(3, 1), (3, 8), free=4),
    row("tensor_split", lambda x: x.tensor_split(2, 1), (3, 10), free=3),
    row("unsafe_chunk", lambda x: torch.unsafe_chunk(x, 2, 1), (3, 10), free=3),
    row("unsafe_split", lambda x: torch.unsafe_split(x, x.shape[1] // 2, 1), (3, 10), free=3),
    row("embedding", lambda w: F.embedding(torch.tensor([[1, 3]]), w), (5, 7), free=1),
    row("attention", lambda q, k, v: F.scaled_dot_product_attention(q, k, v, scale=0.3), (2, 3, 5, 7), (2, 3, 4, 7), (2, 3, 4, 6),
        free=5, mixed=1),
    row("attention with a bias", lambda q, k, v, m: F.scaled_dot_product_attention(q, k, v, m, scale=0.3),
        (2, 3, 5, 7), (2, 3, 4, 7), (2, 3, 4, 6), (3, 5, 4), free=5, mixed=1),
    row("attention, scaled by its size", F.scaled_dot_product_attention, (2, 3, 5, 7), (2, 3, 4, 7), (2, 3, 4, 6), free=4, mixed=2),
    row("attention with grouped queries", lambda q, k, v: F.scaled_dot_product_attention(q, k, v, scale=0.3, enable_gqa=True),
        (2, 6, 5, 7), (2, 3, 4, 7), (2, 3, 4, 8), free=6, mixed=1),
    row("lstm", lambda x, *p: aten.lstm.input(x, [x.new_zeros(1, x.shape[1], p[1].shape[1])] * 2, p, True, 1, 0.0, False, False, False)[0],
        (3, 2, 7), (20, 7), (20, 5), (20,), (20,), free=3, carried=True),
    row("lstm, projected, both ways, two layers", lambda x, *p: aten.lstm.input(
        x, [x.new_zeros(4, x.shape[1], p[1].shape[1]), x.new_zeros(4, x.shape[1], p[2].shape[1])], p, False, 2, 0.0, False, True, False)[0],
        (3, 2, 7), *[(20, 7), (20, 3), (3, 5)] * 2, *[(20, 6), (20, 3), (3, 5)] * 2, free=4, carried=True),
    row("gru", lambda x, *p: aten.gru.input(x, x.new_zeros(1, x.shape[0], p[1].shape[1]), p, True, 1, 0.0, False, False, True)[0],
        (3, 2, 7), (15, 7), (15, 5), (15,), (15,), free=3, carried=True),
    row("rnn_tanh", lambda x, *p: aten.rnn_tanh.input(x, x.new_zeros(1, x.shape[1], p[1].shape[1]), p, False, 1, 0.0, False, False, False)[0],
        (3, 2, 7), (5, 7), (5, 5), free=3, carried=True),
    row("rnn_relu", lambda x, *p: aten.rnn_relu.input(x, x.new_zeros(1, x.shape[1], p[1].shape[1]), p, False, 1, 0.0, False, False, False)[0],
        (3, 2, 7), (5, 7), (5, 5), free=3, carried=True),
    *(row(f"pack, {name}", lambda x, first=first: aten._pack_padded_sequence(x, torch.tensor([4, 2]), first)[0], shape, free=1)
      for name, first, shape in (("batch first", True, (2, 4, 7)), ("time first", False, (4, 2, 7)))),
    *(row(f"pad, {name}", lambda x, f=first: aten._pad_packed_sequence(x, torch.tensor([2, 2, 1]), f, 0.0, 3)[0], (5, 7), free=1)
      for name, first in (("batch first", True), ("time first", False))),
    row("pad with a number", lambda x: aten._pad_packed_sequence(x, torch.tensor([2, 1]), True, 1.5, 4)[0], (3, 7), free=1),
    row("lstm, packed, both ways", lambda x, *p: aten.lstm.data(
        x, torch.tensor([2, 2, 1]), [x.new_zeros(2, 2, p[1].shape[1])] * 2, p, True, 1, 0.0, False, True)[0],
        (5, 7), *[(20, 7), (20, 5), (20,), (20,)] * 2, free=2, carried=True),
    *(row(f"{name}, packed", lambda x, *p, f=getattr(aten, name).data: f(
        x, torch.tensor([2, 2, 1]), x.new_zeros(1, 2, p[1].shape[1]), p, False, 1, 0.0, False, False)[0],
        (5, 7), (g * 5, 7), (g * 5, 5), free=2, carried=True)
      for name, g in (("gru", 3), ("rnn_tanh", 1), ("rnn_relu", 1))),
    row("lstm_cell", lambda x, *p: torch.lstm_cell(x, [x.new_zeros(x.shape[0], p[1].shape[1])] * 2, *p), (2, 7), (20, 7), (20, 5), (20,), (20,), free=3),
    row("gru_cell", lambda x, *p: torch.gru_cell(x, x.new_zeros(x.shape[0], p[1].shape[1]), *p), (2, 7), (15, 7), (15, 5), (15,), (15,), free=3),
    row("rnn_tanh_cell", lambda x, *p: torch.rnn_tanh_cell(x, x.new_zeros(x.shape[0], p[1].shape[1]), *p), (2, 7), (5, 7), (5, 5), free=3),
    row("rnn_relu_cell", lambda x, *p: torch.rnn_relu_cell(x, x.new_zeros(x.shape[0], p[1].shape[1]), *p), (2, 7), (5, 7), (5, 5), free=3),
    row("native_dropout", lambda x: torch.native_dropout(x, 0.0, True)[0], (3, 5), free=2),
    *(row(f"{name} in place", lambda x, n=name: getattr(torch.zeros_like(x), n + "_")().mul(0).add(x), (3, 5), free=2)
      for name in ("bernoulli", "uniform", "normal")),
    row("clone", lambda x: x.clone(), (3, 5), free=2),
    row("contiguous", lambda x: x.t().contiguous(), (3, 5), free=2),
    row("detach", lambda x: x.detach(), (3, 5), free=2),
    row("alias", lambda x: aten.alias(x), (3, 5), free=2),
    row("to another type", lambda x: x.to(torch.float64), (3, 5), free=2),
    row("type_as", lambda x, y: x.type_as(y) + y, (3, 5), (3, 5), free=2),
    row("_to_copy", lambda x: aten._to_copy(x, dtype=torch.float64), (3, 5), free=2),
    row("lift", lambda x: aten.lift_fresh(x), (3, 5), free=2),
    row("positive", lambda x: torch.positive(x), (3, 5), free=2),
    row("in place", in_place, (3, 5), (3, 5), free=2),
    *(row(f"{name} and add", lambda x, f=getattr(torch, name): f(x.shape[0], x.shape[1]) * 0 + x, (3, 5), free=2)
      for name in ("zeros", "ones", "empty")),
    row("full", lambda x: torch.full((x.shape[0], 1), 2.0) * x, (3, 5), free=2),
    *(row(name, lambda x, n=name: getattr(x, n)(x.shape) * 0 + x, (3, 5), free=2) for name in ("new_zeros", "new_ones", "new_empty")),
    row("new_full", lambda x: x.new_full(x.shape, 2.0) + x, (3, 5), free=2),
    *(row(name, lambda x, f=getattr(torch, name): f(x) * 0 + x, (3, 5), free=2) for name in ("zeros_like", "ones_like", "rand_like", "randn_like")),
    row("full_like", lambda x: torch.full_like(x, 2.0) + x, (3, 5), free=2),
    row("empty_like and fill", lambda x: torch.empty_like(x).fill_(3.0) * x, (3, 5), free=2),
    row("empty_like and zero", lambda x: torch.empty_like(x).zero_() + x, (3, 5), free=2),
    *(row(name, lambda x, f=getattr(torch, name): f(5) * x, (3, 5), free=1) for name in ("arange", "randperm")),
    *(row(name, lambda x, f=getattr(torch, name): f(1, 2, 5) * x, (3, 5), free=1) for name in ("linspace", "logspace")),
    row("eye", lambda x: torch.eye(5) * x.sum(), (3, 5), free=2),
    *(row(name, lambda x, f=getattr(torch, name): f(3, 5) * 0 + x, (3, 5), free=0) for name in ("rand", "randn")),
    row("randint", lambda x: torch.randint(0, 2, (3, 5)) * 0 + x, (3, 5), free=0),
    row("add", torch.add, (2, 3, 5), (3, 1), free=3),
    row("mul, broadcasting both", torch.mul, (3, 1), (1, 5), free=2),
    row("where", lambda x, y: torch.where(x > 0.5, x, y), (3, 5), (3, 5), free=2),
    row("sigmoid", torch.sigmoid, (3, 5), free=2),
    row("leaky_relu", F.leaky_relu, (3, 5), free=2),
    row("hardswish", F.hardswish, (3, 5), free=2),
    row("logsigmoid", F.logsigmoid, (3, 5), free=2),
    row("hardtanh", F.relu6, (3, 5), free=2),
    row("clamp", lambda x: x.clamp(0.2, 0.5), (3, 5), free=2),
    row("pow", lambda x: x**2, (3, 5), free=2),
    row("div", torch.div, (3, 5), (1, 5), free=1),  # zeros must not be divided by
    row("sub a number", lambda x: x - 1, (3, 5), free=2),
    row("prelu", F.prelu, (2, 5, 7), (5,), free=3),
]  # fmt: skip
