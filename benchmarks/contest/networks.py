"""The contest's networks and data: one of each kind, small enough that an entry takes minutes on one core."""

from __future__ import annotations

import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pruning.training.recipe import Recipe
from zoo.datasets import fashion_mnist, glyphs
from zoo.datasets.splits import Samples, Splits
from zoo.models import densenet, mobilenet, resnet20, vgg11

PACKAGES = ("asyncio", "ctypes", "distutils", "email", "encodings", "idlelib", "lib2to3", "multiprocessing", "tkinter")
LENGTH = 96  # bytes of a text
TEXTS = "source code"


@dataclass(frozen=True)
class Network:
    """One kind of network.

    Attributes:
        make: (shape of one input, number of classes) -> the network, its weights from the global seed.
        rate: Highest learning rate of the baseline's training; SGD where the norms are batch norms, else AdamW.
        reads_text: Whether its inputs are bytes; else images.
    """

    make: Callable[[tuple[int, ...], int], nn.Module]
    rate: float
    reads_text: bool = False

    def recipe(self, epochs: int) -> Recipe:
        """How a baseline is trained, and a thin network from scratch."""
        adaptive = self.rate < 0.02
        return Recipe(
            epochs=epochs,
            learning_rate=self.rate,
            schedule="one_cycle",
            batch_size=64,
            optimizer="adamw" if adaptive else "sgd",
            gradient_clip=1.0 if adaptive else None,
        )


class Attention(nn.Module):
    """Self-attention with one layer for queries, keys and values: [N, T, C] to the same."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.qkv, self.out, self.heads = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels), heads

    def forward(self, x: Tensor) -> Tensor:
        """Attend over the tokens."""
        n, t, _ = x.shape
        q, k, v = self.qkv(x).reshape(n, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, t, -1))  # type: ignore[no-any-return]


class Block(nn.Module):
    """A transformer's block with its norms in front: [N, T, C] to the same."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.attention = Attention(channels, heads)
        self.mlp = nn.Sequential(nn.Linear(channels, 4 * channels), nn.GELU(), nn.Linear(4 * channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        """Attend, then work on each token."""
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))  # type: ignore[no-any-return]


class ViT(nn.Module):
    """A vision transformer on patches of 4 × 4; its blocks share no weights, the mean over tokens is classified."""

    def __init__(
        self, shape: tuple[int, ...], classes: int, channels: int = 96, depth: int = 4, heads: int = 4
    ) -> None:
        super().__init__()
        self.patches = nn.Conv2d(shape[0], channels, 4, 4)
        self.positions = nn.Parameter(0.02 * torch.randn(1, (shape[1] // 4) * (shape[2] // 4), channels))
        self.blocks = nn.Sequential(*(Block(channels, heads) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(channels), nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Classify images [N, C, H, W]."""
        x = self.patches(x).flatten(2).transpose(1, 2) + self.positions
        return self.head(self.norm(self.blocks(x)).mean(1))  # type: ignore[no-any-return]


class MixerBlock(nn.Module):
    """Linear layers over tokens, then over channels: [N, T, C] to the same."""

    def __init__(self, tokens: int, channels: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.tokens = nn.Sequential(nn.Linear(tokens, 2 * tokens), nn.GELU(), nn.Linear(2 * tokens, tokens))
        self.mlp = nn.Sequential(nn.Linear(channels, 4 * channels), nn.GELU(), nn.Linear(4 * channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        """Mix tokens, then channels."""
        x = x + self.tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.mlp(self.norm2(x))  # type: ignore[no-any-return]


class Mixer(nn.Module):
    """An MLP-Mixer on patches of 4 × 4. Source: Tolstikhin et al. 2021, arXiv 2105.01601."""

    def __init__(self, shape: tuple[int, ...], classes: int, channels: int = 96, depth: int = 4) -> None:
        super().__init__()
        tokens = (shape[1] // 4) * (shape[2] // 4)
        self.patches = nn.Conv2d(shape[0], channels, 4, 4)
        self.blocks = nn.Sequential(*(MixerBlock(tokens, channels) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(channels), nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Classify images [N, C, H, W]."""
        x = self.blocks(self.patches(x).flatten(2).transpose(1, 2))
        return self.head(self.norm(x).mean(1))  # type: ignore[no-any-return]


class ConvNextBlock(nn.Module):
    """A depthwise convolution, a norm over channels and a wide layer, scaled and added: [N, C, H, W] to the same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 5, padding=2, groups=channels)
        self.norm = nn.LayerNorm(channels)
        self.mlp = nn.Sequential(nn.Linear(channels, 4 * channels), nn.GELU(), nn.Linear(4 * channels, channels))
        self.scale = nn.Parameter(0.1 * torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Add what the branch says."""
        branch = self.mlp(self.norm(self.depthwise(x).permute(0, 2, 3, 1)))
        return x + (branch * self.scale).permute(0, 3, 1, 2)  # type: ignore[no-any-return]


class ConvNext(nn.Module):
    """Three stages of ConvNeXt's blocks. Source: Liu et al. 2022, arXiv 2201.03545."""

    def __init__(self, shape: tuple[int, ...], classes: int, channels: int = 32, depth: int = 2) -> None:
        super().__init__()
        stages: list[nn.Module] = [nn.Conv2d(shape[0], channels, 4, 4, padding=0)]
        for stage in range(3):
            if stage:
                stages.append(nn.Conv2d(channels, 2 * channels, 2, 2))
                channels *= 2
            stages += [ConvNextBlock(channels) for _ in range(depth)]
        self.stages, self.norm, self.head = nn.Sequential(*stages), nn.LayerNorm(channels), nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Classify images [N, C, H, W]."""
        return self.head(self.norm(self.stages(x).mean((2, 3))))  # type: ignore[no-any-return]


class TextTransformer(nn.Module):
    """A transformer over the bytes of a text [N, T], the mean over tokens is classified."""

    def __init__(
        self, shape: tuple[int, ...], classes: int, channels: int = 64, depth: int = 3, heads: int = 4
    ) -> None:
        super().__init__()
        self.embed = nn.Embedding(256, channels)
        self.positions = nn.Parameter(0.02 * torch.randn(1, shape[0], channels))
        self.blocks = nn.Sequential(*(Block(channels, heads) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(channels), nn.Linear(channels, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        """Classify texts."""
        x = self.blocks(self.embed(tokens) + self.positions)
        return self.head(self.norm(x).mean(1))  # type: ignore[no-any-return]


def _of_zoo(make: Callable[..., nn.Module], **kwargs: int) -> Callable[[tuple[int, ...], int], nn.Module]:
    return lambda shape, classes: make(input_shape=shape, num_classes=classes, **kwargs)


NETWORKS = {
    "resnet20": Network(_of_zoo(resnet20), 0.15),
    "vgg": Network(_of_zoo(vgg11, width=16), 0.1),
    "mobilenet": Network(_of_zoo(mobilenet, width=16), 0.15),
    "densenet": Network(_of_zoo(densenet, depth=22), 0.15),
    "vit": Network(ViT, 2e-3),
    "mixer": Network(Mixer, 2e-3),
    "convnext": Network(ConvNext, 4e-3),
    "text": Network(TextTransformer, 2e-3, reads_text=True),
}


def source_code(num_samples: int, num_validation: int, num_test: int, seed: int = 0) -> Splits:
    """Pieces of Python's own standard library: which package is it from?

    Inputs are int64 `[N, 96]`, bytes of the file from a random place on; classes are balanced. Of ten files in turn
    eight are for training, one for validation, one for the test: no file is in two splits. They depend on Python's
    version.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    packages = [name for name in PACKAGES if (root / name).is_dir()]
    parts: dict[str, list[Path]] = {}
    for name in packages:
        for number, file in enumerate(sorted((root / name).rglob("*.py"))):
            if file.stat().st_size > 2 * LENGTH:
                part = {8: "validation", 9: "test"}.get(number % 10, "train")
                parts.setdefault(f"{part} {name}", []).append(file)
    counts = {"train": num_samples, "validation": num_validation, "test": num_test}
    generator = torch.Generator().manual_seed(seed)
    splits = [
        _pieces([parts[f"{part} {name}"] for name in packages], count, generator) for part, count in counts.items()
    ]
    return Splits(splits[0], splits[1], splits[2], tuple(packages))


def _pieces(files: list[list[Path]], count: int, generator: torch.Generator) -> Samples:
    texts = [[file.read_bytes() for file in group] for group in files]
    inputs, targets = torch.empty(count, LENGTH, dtype=torch.int64), torch.arange(count) % len(texts)
    for row, target in zip(inputs, targets.tolist(), strict=True):
        group = texts[target]
        weights = torch.tensor([float(len(text)) for text in group])
        text = group[int(torch.multinomial(weights, 1, generator=generator))]
        begin = int(torch.randint(len(text) - LENGTH, (1,), generator=generator))
        row.copy_(torch.tensor(list(text[begin : begin + LENGTH])))
    order = torch.randperm(count, generator=generator)
    return Samples(inputs[order], targets[order])


def _some(splits: Splits, num_samples: int, num_validation: int, num_test: int) -> Splits:
    counts = (num_samples, num_validation, num_test)
    parts = [
        samples.take(torch.arange(min(count, len(samples))))
        for count, (_, samples) in zip(counts, splits.named(), strict=True)
    ]
    return Splits(parts[0], parts[1], parts[2], splits.classes)


def data_of(name: str, num_samples: int, num_validation: int, num_test: int, folder: Path | None = None) -> Splits:
    """Return so many samples of the data called `name`: glyphs, fashion_mnist (read from `folder`), source code.

    Raises:
        ValueError: The files of Fashion-MNIST aren't there.
    """
    if name == "glyphs":
        return glyphs(num_samples=num_samples, num_validation=num_validation, num_test=num_test)
    if name == TEXTS:
        return source_code(num_samples, num_validation, num_test)
    return _some(fashion_mnist(str(folder)), num_samples, num_validation, num_test)
