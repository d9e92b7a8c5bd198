# ruff: noqa: D102 - what `forward` computes is what its class says
"""Detectors: YOLO-, SSD- and DETR-like."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.architectures.own.blocks import conv


class C2f(nn.Module):
    """YOLOv8's block: one convolution chunked in two, each part also concatenated."""

    def __init__(self, i: int, o: int, n: int = 1, shortcut: bool = True) -> None:
        super().__init__()
        self.hidden = o // 2
        self.first, self.last = conv(i, o, 1, act=nn.SiLU), conv((2 + n) * self.hidden, o, 1, act=nn.SiLU)
        self.blocks = nn.ModuleList(
            nn.Sequential(conv(self.hidden, self.hidden, act=nn.SiLU), conv(self.hidden, self.hidden, act=nn.SiLU))
            for _ in range(n)
        )
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Any:
        parts = list(self.first(x).chunk(2, 1))
        for block in self.blocks:
            y = block(parts[-1])
            parts.append(parts[-1] + y if self.shortcut else y)
        return self.last(torch.cat(parts, 1))


class PooledPyramid(nn.Module):
    """YOLO's SPPF."""

    def __init__(self, i: int, o: int) -> None:
        super().__init__()
        self.first, self.last = conv(i, i // 2, 1, act=nn.SiLU), conv(2 * i, o, 1, act=nn.SiLU)

    def forward(self, x: Tensor) -> Any:
        pooled = [self.first(x)]
        for _ in range(3):
            pooled.append(F.max_pool2d(pooled[-1], 5, 1, 2))
        return self.last(torch.cat(pooled, 1))


class Yolo(nn.Module):
    """Backbone of C2f blocks, feature pyramid in both directions, decoupled heads with box distributions."""

    def __init__(self, classes: int = 6, bins: int = 8) -> None:
        super().__init__()
        self.classes, self.bins = classes, bins
        self.p2 = nn.Sequential(conv(3, 8, 3, 2, act=nn.SiLU), conv(8, 16, 3, 2, act=nn.SiLU), C2f(16, 16))
        self.p3 = nn.Sequential(conv(16, 24, 3, 2, act=nn.SiLU), C2f(24, 24, 2))
        self.p4 = nn.Sequential(conv(24, 36, 3, 2, act=nn.SiLU), C2f(36, 36), PooledPyramid(36, 36))
        self.top, self.down, self.low = C2f(60, 28, shortcut=False), conv(28, 28, 3, 2, act=nn.SiLU), C2f(64, 40)
        self.boxes = nn.ModuleList(nn.Sequential(conv(c, 14), nn.Conv2d(14, 4 * bins, 1)) for c in (28, 40))
        self.scores = nn.ModuleList(nn.Sequential(conv(c, 18), nn.Conv2d(18, classes, 1)) for c in (28, 40))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        p3 = self.p3(self.p2(x))
        p4 = self.p4(p3)
        n3 = self.top(torch.cat([F.interpolate(p4, scale_factor=2.0), p3], 1))
        n4 = self.low(torch.cat([self.down(n3), p4], 1))
        outs = [torch.cat([b(y), s(y)], 1) for b, s, y in zip(self.boxes, self.scores, (n3, n4), strict=True)]
        joined = torch.cat([y.view(y.shape[0], 4 * self.bins + self.classes, -1) for y in outs], 2)
        box, score = torch.split(joined, [4 * self.bins, self.classes], 1)
        n, _, anchors = box.shape
        spread = box.view(n, 4, self.bins, anchors).transpose(2, 1).softmax(1)
        return torch.einsum("nbka,b->nka", spread, torch.arange(self.bins, dtype=x.dtype)), score.sigmoid()


class Ssd(nn.Module):
    """Multi-scale heads over a VGG-like trunk, one normalised with a learned scale."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.classes = classes
        self.trunk = nn.Sequential(
            conv(3, 12), nn.MaxPool2d(2), conv(12, 20), nn.MaxPool2d(2, ceil_mode=True), conv(20, 28)
        )
        self.extras = nn.ModuleList(nn.Sequential(conv(i, 10, 1), conv(10, o, 3, 2)) for i, o in ((28, 24), (24, 18)))
        self.scale = nn.Parameter(torch.full((28,), 20.0))
        self.boxes = nn.ModuleList(nn.Conv2d(c, 4 * 3, 3, padding=1) for c in (28, 24, 18))
        self.labels = nn.ModuleList(nn.Conv2d(c, classes * 3, 3, padding=1) for c in (28, 24, 18))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.trunk(x)
        maps = [F.normalize(x) * self.scale.view(1, -1, 1, 1)]
        for extra in self.extras:
            x = extra(x)
            maps.append(x)
        boxes = [b(y).permute(0, 2, 3, 1).reshape(x.shape[0], -1, 4) for b, y in zip(self.boxes, maps, strict=True)]
        labels = [
            h(y).permute(0, 2, 3, 1).reshape(x.shape[0], -1, self.classes)
            for h, y in zip(self.labels, maps, strict=True)
        ]
        return {"boxes": torch.cat(boxes, 1), "labels": torch.cat(labels, 1)}


class Detr(nn.Module):
    """Convolutions, torch's own transformer over the flattened map, learned queries."""

    def __init__(self, queries: int = 6) -> None:
        super().__init__()
        self.trunk = nn.Sequential(conv(3, 12, 3, 2), conv(12, 20, 3, 2), conv(20, 28, 3, 2))
        self.project = nn.Conv2d(28, 36, 1)
        self.transformer = nn.Transformer(36, 3, 2, 2, 52, batch_first=True)
        self.queries = nn.Parameter(torch.rand(queries, 36))
        self.rows, self.columns = nn.Parameter(torch.rand(16, 18)), nn.Parameter(torch.rand(16, 18))
        self.labels, self.boxes = nn.Linear(36, 7), nn.Sequential(nn.Linear(36, 22), nn.ReLU(), nn.Linear(22, 4))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = self.project(self.trunk(x))
        n, _, h, w = y.shape
        where = torch.cat(
            [self.columns[:w].unsqueeze(0).repeat(h, 1, 1), self.rows[:h].unsqueeze(1).repeat(1, w, 1)], -1
        )
        y = y.flatten(2).permute(0, 2, 1) + 0.1 * where.flatten(0, 1).unsqueeze(0)
        y = self.transformer(y, self.queries.unsqueeze(0).repeat(n, 1, 1))
        return {"labels": self.labels(y), "boxes": self.boxes(y).sigmoid()}
