# ruff: noqa: D102 - what `forward` computes is what its class says
"""Networks that give an image for an image: U-Nets of all kinds."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.architectures.own.blocks import conv


class UNet(nn.Module):
    """The classical one: concatenated skips, transposed convolutions, attention gates if wished."""

    def __init__(self, depth: int = 3, width: int = 8, gated: bool = False) -> None:
        super().__init__()
        widths = [width + 6 * level * level for level in range(depth + 1)]
        self.downs = nn.ModuleList(nn.Sequential(conv(i, o), conv(o, o)) for i, o in pairwise([3, *widths]))
        self.ups = nn.ModuleList(nn.ConvTranspose2d(i, o, 2, 2) for o, i in pairwise(widths))
        self.merges = nn.ModuleList(nn.Sequential(conv(2 * o, o), conv(o, o)) for o in widths[:-1])
        self.gates = nn.ModuleList(
            nn.ModuleList([nn.Conv2d(o, 5, 1), nn.Conv2d(o, 5, 1), nn.Conv2d(5, 1, 1)]) if gated else nn.Identity()
            for o in widths[:-1]
        )
        self.gated = gated
        self.last = nn.Conv2d(width, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for level, down in enumerate(self.downs):
            x = down(x if level == 0 else F.max_pool2d(x, 2))
            skips.append(x)
        for level in reversed(range(len(self.ups))):
            x, skip = self.ups[level](x), skips[level]
            if self.gated:
                a, b, c = self.gates[level].children()
                skip = skip * torch.sigmoid(c(F.relu(a(skip) + b(x))))
            x = self.merges[level](torch.cat([skip, x], 1))
        return self.last(x)  # type: ignore[no-any-return]


class NestedUNet(nn.Module):
    """UNet++: every node takes all nodes of its row and one from below."""

    def __init__(self) -> None:
        super().__init__()
        widths = [8, 12, 18]
        self.columns = nn.ModuleList()
        for j in range(3):
            nodes = nn.ModuleList()
            for i in range(3 - j):
                before = (3 if i == 0 else widths[i - 1]) if j == 0 else widths[i] * j + widths[i + 1]
                nodes.append(conv(before, widths[i]))
            self.columns.append(nodes)
        self.heads = nn.ModuleList(nn.Conv2d(8, 4, 1) for _ in range(2))

    def forward(self, x: Tensor) -> list[Tensor]:
        grid: list[list[Tensor]] = [[] for _ in range(3)]
        for i, node in enumerate(self.columns[0].children()):
            x = node(x if i == 0 else F.max_pool2d(x, 2))
            grid[i].append(x)
        for column in list(self.columns)[1:]:
            for i, node in enumerate(column.children()):
                up = F.interpolate(grid[i + 1][-1], scale_factor=2, mode="bilinear", align_corners=True)
                grid[i].append(node(torch.cat([*grid[i], up], 1)))
        return [head(y) for head, y in zip(self.heads, grid[0][1:], strict=True)]


class UNet3d(nn.Module):
    """Volumes: convolutions in three dimensions, instance norms, trilinear upsampling."""

    def __init__(self) -> None:
        super().__init__()

        def block(i: int, o: int) -> nn.Module:
            return nn.Sequential(nn.Conv3d(i, o, 3, padding=1), nn.InstanceNorm3d(o, affine=True), nn.LeakyReLU(0.01))

        self.a, self.b, self.c = block(2, 6), block(6, 10), block(10, 14)
        self.up = nn.ConvTranspose3d(14, 10, 2, 2)
        self.d, self.e = block(20, 10), block(16, 6)
        self.last = nn.Conv3d(6, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x)
        b = self.b(F.max_pool3d(a, 2))
        c = self.c(F.max_pool3d(b, 2))
        d = self.d(torch.cat([self.up(c), b], 1))
        d = F.interpolate(d, scale_factor=2, mode="trilinear")
        return self.last(self.e(torch.cat([d, a], 1)))  # type: ignore[no-any-return]


class DiffusionBlock(nn.Module):
    """Residual block with group norms, shifted and scaled by an embedding of the time."""

    def __init__(self, i: int, o: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(4, i), nn.Conv2d(i, o, 3, padding=1)
        self.norm2, self.conv2 = nn.GroupNorm(4, o), nn.Conv2d(o, o, 3, padding=1)
        self.time, self.skip = nn.Linear(22, 2 * o), nn.Conv2d(i, o, 1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        y = self.conv1(F.silu(self.norm1(x)))
        scale, shift = self.time(time)[:, :, None, None].chunk(2, 1)
        y = self.conv2(F.silu(self.norm2(y) * (1 + scale) + shift))
        return y + self.skip(x)  # type: ignore[no-any-return]


class DiffusionUNet(nn.Module):
    """Noise predictor of a diffusion model, with self-attention at the lowest resolution."""

    def __init__(self) -> None:
        super().__init__()
        self.time = nn.Sequential(nn.Linear(14, 26), nn.SiLU(), nn.Linear(26, 22))
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.down, self.stride = DiffusionBlock(16, 16), nn.Conv2d(16, 24, 3, 2, 1)
        self.middle, self.norm = DiffusionBlock(24, 24), nn.GroupNorm(4, 24)
        self.qkv, self.out = nn.Conv2d(24, 72, 1), nn.Conv2d(24, 24, 1)
        self.up, self.merge = nn.Conv2d(24, 16, 3, padding=1), DiffusionBlock(32, 16)
        self.last = nn.Conv2d(16, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        steps = torch.arange(x.shape[0], dtype=x.dtype)[:, None] * torch.exp(-torch.arange(7) * math.log(100) / 7)
        time = self.time(torch.cat([steps.sin(), steps.cos()], 1))
        a = self.down(self.first(x), time)
        b = self.middle(self.stride(a), time)
        n, c, h, w = b.shape
        q, k, v = self.qkv(self.norm(b)).reshape(n, 3, c, h * w).unbind(1)
        weights = torch.softmax(torch.einsum("bci,bcj->bij", q, k) * c**-0.5, -1)
        b = b + self.out(torch.einsum("bij,bcj->bci", weights, v).reshape(n, c, h, w))
        b = self.up(F.interpolate(b, scale_factor=2, mode="nearest"))
        return self.last(self.merge(torch.cat([a, b], 1), time))  # type: ignore[no-any-return]
