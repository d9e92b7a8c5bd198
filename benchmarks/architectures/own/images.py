# ruff: noqa: D102 - what `forward` computes is what its class says
"""Classifiers, generators and networks with uncommon parameters."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from benchmarks.architectures.own.blocks import conv


class MobileNetV1(nn.Module):
    """Depthwise and pointwise convolutions in turns."""

    def __init__(self) -> None:
        super().__init__()
        layers = [conv(3, 8, 3, 2)]
        for i, o, stride in ((8, 14, 1), (14, 20, 2), (20, 20, 1), (20, 30, 2)):
            layers += [conv(i, i, 3, stride, groups=i), conv(i, o, 1)]
        self.features, self.fc = nn.Sequential(*layers), nn.Linear(30, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x).mean((2, 3)))  # type: ignore[no-any-return]


class SuperResolution(nn.Module):
    """Residual blocks without norms, a long skip, pixel shuffle."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 12, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(12, 20, 3, padding=1), nn.PReLU(20), nn.Conv2d(20, 12, 3, padding=1))
            for _ in range(3)
        )
        self.up = nn.Sequential(nn.Conv2d(12, 40, 3, padding=1), nn.PixelShuffle(2), nn.PReLU(10))
        self.last = nn.Conv2d(10, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = first = self.first(x)
        for block in self.blocks:
            y = y + 0.1 * block(y)
        return self.last(self.up(y + first))  # type: ignore[no-any-return]


class Generator(nn.Module):
    """DCGAN's: a vector to an image."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(18, 24 * 4 * 4)
        self.body = nn.Sequential(
            nn.BatchNorm2d(24), nn.ReLU(), nn.ConvTranspose2d(24, 16, 4, 2, 1), nn.BatchNorm2d(16), nn.LeakyReLU(0.2),
            nn.ConvTranspose2d(16, 10, 4, 2, 1), nn.BatchNorm2d(10), nn.ReLU(),
            nn.ConvTranspose2d(10, 3, 4, 2, 1), nn.Tanh(),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self.fc(x).view(-1, 24, 4, 4))  # type: ignore[no-any-return]


class VariationalAutoencoder(nn.Module):
    """Convolutions, mean and logarithm of the variance from one layer, a decoder."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(conv(3, 10, 3, 2), conv(10, 14, 3, 2), nn.Flatten(), nn.Linear(14 * 64, 2 * 9))
        self.widen = nn.Linear(9, 14 * 64)
        self.decoder = nn.Sequential(nn.ConvTranspose2d(14, 10, 2, 2), nn.ELU(), nn.ConvTranspose2d(10, 3, 2, 2))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, log_variance = self.encoder(x).chunk(2, dim=-1)
        z = mean + torch.randn_like(mean) * torch.exp(0.5 * log_variance) if self.training else mean
        return self.decoder(F.relu(self.widen(z)).view(-1, 14, 8, 8)), mean, log_variance


class Siamese(nn.Module):
    """One trunk called on both images of a pair."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(conv(3, 10), nn.MaxPool2d(2), conv(10, 16), nn.AdaptiveAvgPool2d(2), nn.Flatten())
        self.embed, self.compare = nn.Linear(64, 20), nn.Linear(20, 1)

    def forward(self, pair: Tensor) -> Tensor:
        a, b = (self.embed(self.trunk(x)) for x in pair.unbind(1))
        return self.compare((a - b).abs())  # type: ignore[no-any-return]


class Mixer(nn.Module):
    """MLP-Mixer: linear layers over tokens, then over channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 24, 8, 8)
        self.norms = nn.ModuleList(nn.LayerNorm(24) for _ in range(4))
        self.tokens = nn.ModuleList(nn.Sequential(nn.Linear(16, 14), nn.GELU(), nn.Linear(14, 16)) for _ in range(2))
        self.channels = nn.ModuleList(nn.Sequential(nn.Linear(24, 40), nn.GELU(), nn.Linear(40, 24)) for _ in range(2))
        self.fc = nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2).transpose(1, 2)
        for i in range(2):
            x = x + self.tokens[i](self.norms[2 * i](x).transpose(1, 2)).transpose(1, 2)
            x = x + self.channels[i](self.norms[2 * i + 1](x))
        return self.fc(x.mean(1))  # type: ignore[no-any-return]


def weight_normed() -> nn.Module:
    """Convolutions whose weights are a length times a direction."""
    return nn.Sequential(
        weight_norm(nn.Conv2d(3, 12, 3)), nn.ReLU(), weight_norm(nn.Conv2d(12, 20, 3)), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), weight_norm(nn.Linear(20, 10)),
    )  # fmt: skip


def spectral_normed() -> nn.Module:
    """Convolutions divided by their largest singular value, as in a GAN's critic."""
    return nn.Sequential(
        spectral_norm(nn.Conv2d(3, 12, 3)), nn.LeakyReLU(0.1), spectral_norm(nn.Conv2d(12, 20, 3)), nn.LeakyReLU(0.1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(20, 1),
    )  # fmt: skip


def make_mlp() -> nn.Module:
    """Linear layers, a norm, a dropout."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(64, 40),
        nn.BatchNorm1d(40),
        nn.ReLU(),
        nn.Dropout(),
        nn.Linear(40, 28),
        nn.ReLU(),
        nn.Linear(28, 10),
    )
