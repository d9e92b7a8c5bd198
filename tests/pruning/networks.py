"""Small networks in the style of torchvision's classifiers and of what broke other pruning tools; random, with real
statistics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pruning

NETWORKS: dict[str, Callable[[], nn.Module]] = {}
IMAGE = (2, 3, 16, 16)


def network(maker: type[nn.Module]) -> type[nn.Module]:
    NETWORKS[maker.__name__] = maker
    return maker


def make(name: str) -> nn.Module:
    """A network with random weights and batch-norm statistics that differ from channel to channel."""
    torch.manual_seed(7)
    model = NETWORKS[name]()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for tensor, low, high in [
                (module.weight, 0.5, 1.5),
                (module.bias, -1, 1),
                (module.running_mean, -1, 1),
                (module.running_var, 0.5, 2),
            ]:
                if tensor is not None:
                    nn.init.uniform_(tensor, low, high)
    return model.eval()


def conv(i: int, o: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(i, o, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(o),
        nn.ReLU(inplace=True),
    )


class Head(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc = nn.Linear(channels, 10)

    def forward(self, x: Tensor) -> Any:
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


class Classifier(nn.Module):
    def __init__(self, channels: int, *layers: nn.Module) -> None:
        super().__init__()
        self.features = nn.Sequential(*layers)
        self.head = Head(channels)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.features(x))


def a_third(groups: pruning.Groups, seed: int) -> pruning.Plan:
    """Choose a third of the channels of every group at random; tied groups lose equal counts."""
    generator = torch.Generator().manual_seed(seed)
    removed: dict[str, list[int]] = {}
    for group in groups:
        tied = next((len(removed[other]) for other in group.ties if other in removed), None)
        count = tied if tied is not None else max(1, group.size // 3)
        removed[group.name] = torch.randperm(group.size, generator=generator)[:count].tolist()
    return pruning.Plan.of(groups, removed)


class Halves(nn.Module):
    """Two groups that chunk ties, and one free."""

    def __init__(self) -> None:
        super().__init__()
        self.split, self.left, self.right = nn.Linear(4, 16), nn.Linear(8, 6), nn.Linear(8, 6)
        self.fc = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.split(x).chunk(2, dim=1)
        out: Tensor = self.fc((self.left(a) + self.right(b)).relu())
        return out


@network
class Plain(Classifier):
    def __init__(self) -> None:
        super().__init__(24, conv(3, 12), nn.MaxPool2d(2), conv(12, 24), nn.Dropout())
        self.head = nn.Sequential(
            nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(96, 20), nn.ReLU(), nn.Linear(20, 10)
        )  # type: ignore[assignment]


class Bottleneck(nn.Module):
    def __init__(self, i: int, o: int, stride: int, groups: int = 1) -> None:
        super().__init__()
        self.body = nn.Sequential(
            conv(i, 12, 1), conv(12, 12, 3, stride, groups), nn.Conv2d(12, o, 1), nn.BatchNorm2d(o)
        )
        self.short = (
            nn.Sequential(nn.Conv2d(i, o, 1, stride), nn.BatchNorm2d(o)) if stride > 1 or i != o else nn.Identity()
        )

    def forward(self, x: Tensor) -> Any:
        return F.relu(self.body(x) + self.short(x))


@network
class Residual(Classifier):
    def __init__(self) -> None:
        super().__init__(20, conv(3, 16), Bottleneck(16, 16, 1), Bottleneck(16, 20, 2), Bottleneck(20, 20, 1))


@network
class ResidualWithGroups(Classifier):
    def __init__(self) -> None:
        super().__init__(20, conv(3, 16), Bottleneck(16, 16, 1, groups=4), Bottleneck(16, 20, 2, groups=3))


class PaddedShortcut(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = conv(8, 16, 3, 2), nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16))

    def forward(self, x: Tensor) -> Any:
        return F.relu(self.second(self.first(x)) + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4)))


@network
class ResidualWithPadding(Classifier):
    def __init__(self) -> None:
        super().__init__(16, conv(3, 8), PaddedShortcut())


class Inverted(nn.Module):
    def __init__(self, i: int, o: int, stride: int, squeeze: bool) -> None:
        super().__init__()
        wide = 3 * i
        self.expand, self.depthwise = conv(i, wide, 1), conv(wide, wide, 3, stride, wide)
        self.squeeze: nn.Module = nn.Identity()
        if squeeze:
            self.squeeze = nn.Sequential(
                nn.AdaptiveAvgPool2d(1), nn.Conv2d(wide, 6, 1), nn.SiLU(), nn.Conv2d(6, wide, 1), nn.Sigmoid()
            )
        self.project = nn.Sequential(nn.Conv2d(wide, o, 1, bias=False), nn.BatchNorm2d(o))
        self.add, self.squeezed = stride == 1 and i == o, squeeze

    def forward(self, x: Tensor) -> Any:
        y = self.depthwise(self.expand(x))
        y = self.project(y * self.squeeze(y) if self.squeezed else y)
        return x + y if self.add else y


@network
class Depthwise(Classifier):
    def __init__(self) -> None:
        super().__init__(16, conv(3, 8), Inverted(8, 8, 1, False), Inverted(8, 12, 2, False), conv(12, 16, 1))


@network
class SqueezeAndExcite(Classifier):
    def __init__(self) -> None:
        super().__init__(
            16, conv(3, 8), nn.Hardswish(), Inverted(8, 8, 1, True), Inverted(8, 12, 2, True), conv(12, 16, 1)
        )


class DenseLayer(nn.Module):
    def __init__(self, i: int) -> None:
        super().__init__()
        self.norm, self.bottleneck, self.grow = nn.BatchNorm2d(i), conv(i, 12, 1), nn.Conv2d(12, 6, 3, padding=1)

    def forward(self, x: Tensor) -> Any:
        return torch.cat([x, self.grow(self.bottleneck(F.relu(self.norm(x))))], 1)


@network
class DenselyConnected(Classifier):
    def __init__(self) -> None:
        super().__init__(
            21,
            conv(3, 9),
            DenseLayer(9),
            DenseLayer(15),
            DenseLayer(21),
            nn.BatchNorm2d(27),
            nn.Conv2d(27, 15, 1),
            nn.AvgPool2d(2),
            DenseLayer(15),
        )


class Inception(nn.Module):
    def __init__(self, i: int) -> None:
        super().__init__()
        self.one, self.three = conv(i, 6, 1), nn.Sequential(conv(i, 5, 1), conv(5, 8, 3))
        self.five, self.pool = (
            nn.Sequential(conv(i, 4, 1), conv(4, 7, 5)),
            nn.Sequential(nn.MaxPool2d(3, 1, 1), conv(i, 5, 1)),
        )

    def forward(self, x: Tensor) -> Any:
        return torch.cat([self.one(x), self.three(x), self.five(x), self.pool(x)], 1)


@network
class InceptionStyle(Classifier):
    def __init__(self) -> None:
        super().__init__(26, conv(3, 10), Inception(10), nn.MaxPool2d(2, ceil_mode=True), Inception(26))


class Shuffle(nn.Module):
    def __init__(self, channels: int, down: bool) -> None:
        super().__init__()
        half, self.down = channels // 2, down
        self.left = (
            nn.Sequential(
                nn.Conv2d(channels, channels, 3, 2, 1, groups=channels),
                nn.BatchNorm2d(channels),
                conv(channels, half, 1),
            )
            if down
            else nn.Identity()
        )
        i = channels if down else half
        self.right = nn.Sequential(
            conv(i, half, 1),
            nn.Conv2d(half, half, 3, 2 if down else 1, 1, groups=half),
            nn.BatchNorm2d(half),
            conv(half, half, 1),
        )

    def forward(self, x: Tensor) -> Any:
        a, b = (x, x) if self.down else x.chunk(2, dim=1)
        out = torch.cat([self.left(a), self.right(b)], 1)
        n, c, h, w = out.shape
        return out.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, c, h, w)


@network
class ChannelShuffle(Classifier):
    def __init__(self) -> None:
        super().__init__(16, conv(3, 16), Shuffle(16, True), Shuffle(16, False), Shuffle(16, False), conv(16, 16, 1))


@network
class ShuffleModule(Classifier):
    def __init__(self) -> None:
        super().__init__(
            12, conv(3, 12), nn.ChannelShuffle(3), conv(12, 12, 3, 1, 3), nn.ChannelShuffle(3), conv(12, 12, 1)
        )


class Fire(nn.Module):
    def __init__(self, i: int) -> None:
        super().__init__()
        self.squeeze, self.one, self.three = conv(i, 6, 1), conv(6, 8, 1), conv(6, 10, 3)

    def forward(self, x: Tensor) -> Any:
        x = self.squeeze(x)
        return torch.cat((self.one(x), self.three(x)), 1)


@network
class FullyConvolutional(Classifier):
    def __init__(self) -> None:
        super().__init__(18, conv(3, 8), Fire(8), Fire(18), nn.Conv2d(18, 10, 1))
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())  # type: ignore[assignment]


class C2f(nn.Module):
    """YOLO's block: one convolution chunked in two, each part also concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = conv(8, 16, 1), conv(32, 12, 1)
        self.blocks = nn.ModuleList(conv(8, 8, 3) for _ in range(2))

    def forward(self, x: Tensor) -> Any:
        parts = list(self.first(x).chunk(2, 1))
        parts.extend(block(parts[-1]) for block in self.blocks)
        return self.last(torch.cat(parts, 1))


@network
class ChunkedBlocks(Classifier):
    def __init__(self) -> None:
        super().__init__(12, conv(3, 8), C2f())


@network
class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2, self.middle = conv(3, 8), conv(8, 12), conv(12, 16)
        self.up2, self.merge2 = nn.ConvTranspose2d(16, 10, 2, 2), conv(22, 10)
        self.merge1, self.last = conv(18, 8), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Any:
        a = self.down1(x)
        b = self.down2(F.max_pool2d(a, 2))
        c = self.middle(F.avg_pool2d(b, 2))
        b = self.merge2(torch.cat([self.up2(c), b], 1))
        a = self.merge1(torch.cat([F.interpolate(b, scale_factor=2, mode="bilinear"), a], 1))
        return self.last(a)


@network
class SuperResolution(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            conv(3, 8), nn.Conv2d(8, 24, 3, padding=1), nn.PixelShuffle(2), nn.PReLU(6), nn.Conv2d(6, 3, 3, padding=1)
        )

    def forward(self, x: Tensor) -> Any:
        return self.body(x)


@network
class Decoder(nn.Module):
    """Linear, view, transposed convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.flat, self.fc = nn.Flatten(), nn.Linear(768, 32)
        self.up, self.last = nn.ConvTranspose2d(8, 6, 2, 2), nn.Conv2d(6, 3, 1)

    def forward(self, x: Tensor) -> Any:
        x = torch.tanh(self.fc(self.flat(x)))
        return self.last(torch.sigmoid(self.up(x.view(x.size(0), -1, 2, 2))))


@network
class GroupNormed(Classifier):
    def __init__(self) -> None:
        super().__init__(
            12,
            nn.Conv2d(3, 12, 3),
            nn.GroupNorm(4, 12),
            nn.GELU(),
            nn.Conv2d(12, 12, 3),
            nn.InstanceNorm2d(12),
            nn.Conv2d(12, 12, 3, 2),
        )


@network
class FunctionalParameters(nn.Module):
    """Parameters used through functions, one of them twice."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(8, 3, 3, 3))
        self.square = nn.Parameter(torch.randn(8, 8, 1, 1))
        self.scale = nn.Parameter(torch.rand(8, 1, 1))
        self.out = nn.Parameter(torch.randn(8, 10))

    def forward(self, x: Tensor) -> Any:
        x = F.relu(F.conv2d(x, self.w)) * self.scale
        for _ in range(2):
            x = x + F.conv2d(x, self.square)
        return torch.einsum("bchw,co->bo", x, self.out)


@network
class Siamese(nn.Module):
    """The same layers called twice, and two names for one parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.branch = nn.Sequential(conv(3, 8), conv(8, 8))
        self.left, self.right = nn.Conv2d(8, 6, 1), nn.Conv2d(8, 6, 1)
        self.right.weight = self.left.weight
        self.last = nn.Conv2d(12, 4, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        a, b = self.branch(x), self.branch(x.flip(-1))
        return {"joined": self.last(torch.cat([self.left(a), self.right(b)], 1)), "size": torch.ones(2)}


@network
class MLPMixerLike(nn.Module):
    """Linear layers over a middle axis, by transposition."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 4, 4)
        self.tokens = nn.Sequential(nn.Linear(16, 9), nn.ReLU(), nn.Linear(9, 16))
        self.channels = nn.Sequential(nn.Linear(12, 20), nn.GELU(), nn.Linear(20, 12))
        self.fc = nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Any:
        x = self.stem(x).flatten(2).transpose(1, 2)
        x = x + self.tokens(x.transpose(1, 2)).transpose(1, 2)
        x = x + self.channels(x)
        return self.fc(x.mean(1))


@network
class AuxiliaryHead(nn.Module):
    """A classifier with a second head that runs in training alone, as GoogLeNet and Inception have."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = conv(3, 12), nn.Sequential(conv(12, 16), nn.Dropout(0.3))
        self.auxiliary = nn.Sequential(conv(12, 9, 1), nn.Dropout2d(0.2), Head(9))
        self.head = Head(16)

    def forward(self, x: Tensor) -> Any:
        x = self.first(x)
        out = self.head(self.second(x))
        return (out, self.auxiliary(x)) if self.training else out
