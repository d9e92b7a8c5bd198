"""Rendered scenes, as boxes and as masks, and small networks for both: a one-stage detector and a U-Net.

The file stands alone, so that tests can put it into a repository of their own.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

CLASSES = ("disc", "square", "cross")
SIDE = 48


class Scenes(Dataset[Any]):
    """Two to four discs, squares and crosses of any colour and size on a noisy ground, apart from each other."""

    def __init__(self, seed: int, count: int, what: str = "boxes", empty: float = 0.05) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.images, self.masks = torch.zeros(count, 3, SIDE, SIDE), torch.zeros(count, SIDE, SIDE, dtype=torch.int64)
        self.boxes, self.what = list[dict[str, Tensor]](), what
        y, x = torch.meshgrid(torch.arange(SIDE) + 0.5, torch.arange(SIDE) + 0.5, indexing="ij")
        for image, mask in zip(self.images, self.masks, strict=True):
            image += 0.12 * torch.randn(3, SIDE, SIDE, generator=generator)
            rows, labels = list[Tensor](), list[int]()
            for cell in torch.randperm(4, generator=generator)[: int(torch.randint(2, 5, (), generator=generator))]:
                if float(torch.rand((), generator=generator)) < empty:
                    continue
                label = int(torch.randint(len(CLASSES), (), generator=generator))
                radius = float(torch.rand((), generator=generator)) * 6 + 5
                free = SIDE / 2 - 2 * radius
                at = torch.rand(2, generator=generator) * free + radius
                across, down = float(at[0]) + SIDE / 2 * (int(cell) % 2), float(at[1]) + SIDE / 2 * (int(cell) // 2)
                far, near = (torch.maximum, torch.minimum)
                dx, dy = (x - across).abs(), (y - down).abs()
                inside = (
                    dx**2 + dy**2 <= radius**2,
                    far(dx, dy) <= 0.9 * radius,
                    (near(dx, dy) <= 0.3 * radius) & (far(dx, dy) <= radius),
                )[label]
                colour = 0.4 + 0.6 * torch.rand(3, generator=generator)
                image[:, inside] += colour[:, None]
                mask[inside] = 1 + label
                ys, xs = inside.nonzero().unbind(1)
                rows.append(torch.stack([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]).float())
                labels.append(label)
            self.boxes.append(
                {
                    "boxes": torch.stack(rows) if rows else torch.zeros(0, 4),
                    "labels": torch.tensor(labels, dtype=torch.int64),
                }
            )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Any:
        return self.images[index], self.boxes[index] if self.what == "boxes" else self.masks[index]


def scenes(train: int = 192, validation: int = 48, test: int = 64, what: str = "boxes") -> dict[str, Any]:
    """Return the three splits; classes of masks have the ground first."""
    counts = {"train": train, "validation": validation, "test": test}
    parts = {name: Scenes(number, count, what) for number, (name, count) in enumerate(counts.items())}
    return {**parts, "classes": CLASSES if what == "boxes" else ("ground", *CLASSES)}


def block(channels: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


class Head(nn.Module):
    """At each place of a map with stride 4 the logit of each class, and distances to the sides of a box."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.tower = nn.Sequential(block(width, width), block(width, width))
        self.logits, self.sides = nn.Conv2d(width, classes, 1), nn.Conv2d(width, 4, 1)
        assert self.logits.bias is not None
        nn.init.constant_(self.logits.bias, -3.0)  # few places lie in a box

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        found = self.tower(features)
        return {"logits": self.logits(found).flatten(2).mT, "sides": self.sides(found).flatten(2).mT}


class Detector(nn.Module):
    """FCOS-like, by torchvision's convention: losses in training mode, boxes in evaluation mode."""

    def __init__(self, classes: int = len(CLASSES), width: int = 24) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            block(3, width, 2),
            block(width, 2 * width, 2),
            block(2 * width, 2 * width),
            block(2 * width, 2 * width),
        )
        self.head = Head(2 * width, classes)

    def forward(self, images: Tensor, targets: list[dict[str, Tensor]] | None = None) -> Any:
        found = self.head(self.backbone(images))
        side = images.shape[-1] // 4
        y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
        places = (torch.stack([x, y], -1).reshape(-1, 2).to(images) + 0.5) * 4
        sides = found["sides"].exp() * 4
        boxes = torch.cat([places - sides[..., :2], places + sides[..., 2:]], -1)
        if self.training:
            assert targets is not None, "torchvision's detectors say the same"
            return self.losses(found["logits"], boxes, places, targets)
        return [self.kept(logits, own) for logits, own in zip(found["logits"], boxes, strict=True)]

    def losses(self, logits: Tensor, boxes: Tensor, places: Tensor, targets: list[dict[str, Tensor]]) -> Any:
        wanted, overlaps, count = torch.zeros_like(logits), logits.new_zeros(()), 0
        for number, target in enumerate(targets):
            for box, label in zip(target["boxes"], target["labels"], strict=True):
                middle, extent = (box[:2] + box[2:]) / 2, (box[2:] - box[:2]) / 4
                inside = ((places - middle).abs() <= extent.clamp(min=2.1)).all(-1)
                wanted[number, inside, label] = 1
                count += int(inside.sum())
                overlaps = overlaps + (1 - iou(boxes[number, inside], box[None])[:, 0]).sum()
                reach = boxes[number, inside] - box
                overlaps = overlaps + 0.05 * F.smooth_l1_loss(reach, torch.zeros_like(reach), reduction="sum")
        shares = logits.sigmoid()
        hard = torch.where(wanted > 0, 0.5 * (1 - shares) ** 2, 0.5 * shares**2).detach()
        each = F.binary_cross_entropy_with_logits(logits, wanted, weight=4 * hard, reduction="sum")
        return {"classes": each / max(1, count), "boxes": overlaps / max(1, count)}

    def kept(self, logits: Tensor, boxes: Tensor) -> dict[str, Tensor]:
        scores, labels = logits.sigmoid().max(-1)
        order = scores.argsort(descending=True, stable=True)
        order = order[scores[order] > 0.05]
        left = list[Tensor]()
        while len(order):
            left.append(order[0])
            order = order[1:][iou(boxes[order[:1]], boxes[order[1:]])[0] < 0.5]
        chosen = torch.stack(left) if left else torch.zeros(0, dtype=torch.int64)
        return {"boxes": boxes[chosen], "scores": scores[chosen], "labels": labels[chosen]}


def iou(boxes: Tensor, others: Tensor) -> Tensor:
    low = torch.maximum(boxes[:, None, :2], others[:, :2])
    high = torch.minimum(boxes[:, None, 2:], others[:, 2:])
    shared = (high - low).clamp(min=0).prod(-1)
    areas = [(one[:, 2:] - one[:, :2]).clamp(min=0).prod(-1) for one in (boxes, others)]
    return shared / (areas[0][:, None] + areas[1] - shared).clamp(min=1e-6)


class UNet(nn.Module):
    """Down twice and up again, each level joined to its own."""

    def __init__(self, classes: int = 1 + len(CLASSES), width: int = 16) -> None:
        super().__init__()
        self.down = nn.ModuleList([block(3, width), block(width, 2 * width, 2), block(2 * width, 4 * width, 2)])
        self.up = nn.ModuleList([nn.ConvTranspose2d((4, 2)[i] * width, (2, 1)[i] * width, 2, 2) for i in range(2)])
        self.join = nn.ModuleList([block(4 * width, 2 * width), block(2 * width, width)])
        self.last = nn.Conv2d(width, classes, 1)

    def forward(self, images: Tensor) -> Tensor:
        levels = [images]
        for part in self.down:
            levels.append(part(levels[-1]))
        found = levels.pop()
        for up, join in zip(self.up, self.join, strict=True):
            found = join(torch.cat([up(found), levels.pop()], 1))
        logits: Tensor = self.last(found)
        return logits
