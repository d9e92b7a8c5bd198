"""Networks that no package has, or that they have only in part: written here, plainly, as a user would."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.architectures.architecture import Architecture
from benchmarks.architectures.own import detectors, images, segmenters, sequences

Shape = tuple[int, ...]

_IMAGES: dict[str, tuple[Callable[[], nn.Module], Shape]] = {
    "unet": (segmenters.UNet, (1, 3, 32, 32)),
    "unet-deep": (partial(segmenters.UNet, depth=5), (1, 3, 64, 64)),
    "unet-attention": (partial(segmenters.UNet, gated=True), (1, 3, 32, 32)),
    "unet-plus-plus": (segmenters.NestedUNet, (1, 3, 32, 32)),
    "unet-3d": (segmenters.UNet3d, (1, 2, 16, 16, 16)),
    "unet-diffusion": (segmenters.DiffusionUNet, (2, 3, 16, 16)),
    "yolo-c2f": (detectors.Yolo, (1, 3, 64, 64)),
    "ssd-like": (detectors.Ssd, (1, 3, 64, 64)),
    "detr-like": (detectors.Detr, (1, 3, 64, 64)),
    "mobilenet-v1": (images.MobileNetV1, (2, 3, 32, 32)),
    "super-resolution": (images.SuperResolution, (1, 3, 12, 12)),
    "dcgan-generator": (images.Generator, (2, 18)),
    "vae": (images.VariationalAutoencoder, (2, 3, 32, 32)),
    "siamese": (images.Siamese, (2, 2, 3, 16, 16)),
    "weight-norm-convolutions": (images.weight_normed, (2, 3, 16, 16)),
    "spectral-norm-convolutions": (images.spectral_normed, (2, 3, 16, 16)),
    "mlp-mixer": (images.Mixer, (2, 3, 32, 32)),
    "mlp": (images.make_mlp, (3, 1, 8, 8)),
}
_SEQUENCES: dict[str, tuple[Callable[[], nn.Module], Shape]] = {
    "tcn": (sequences.TemporalConvolutions, (2, 7, 40)),
    "wavenet-like": (sequences.WaveNet, (2, 7, 40)),
    "lstm": (sequences.Recurrent, (2, 11, 7)),
    "lstm-bidirectional": (partial(sequences.Recurrent, bidirectional=True, num_layers=2), (2, 11, 7)),
    "lstm-projected": (partial(sequences.Recurrent, projection=10), (2, 11, 7)),
    "gru": (partial(sequences.Recurrent, kind=nn.GRU, num_layers=2), (2, 11, 7)),
    "rnn": (partial(sequences.Recurrent, kind=nn.RNN), (2, 11, 7)),
    "lstm-cell": (partial(sequences.Unrolled, nn.LSTMCell), (2, 5, 7)),
    "gru-cell": (partial(sequences.Unrolled, nn.GRUCell), (2, 5, 7)),
    "crnn": (sequences.ConvolutionalRecurrent, (2, 1, 16, 40)),
    "transformer-encoder": (sequences.Encoder, (2, 11, 7)),
    "transformer-encoder-pre-norm": (partial(sequences.Encoder, norm_first=True), (2, 11, 7)),
    "pointnet": (sequences.PointNet, (2, 3, 50)),
}


def architectures() -> list[Architecture]:
    """Return all rows of this package, and those that take other inputs than one tensor of numbers."""
    rows = [
        Architecture(f"own/{name}", build, partial(_numbers, shape))
        for name, (build, shape) in (_IMAGES | _SEQUENCES).items()
    ]
    rows.append(Architecture("own/transformer-translation", sequences.Translation, _token_pair))
    rows.append(Architecture("own/lstm-language-model", sequences.LanguageModel, _tokens))
    rows.append(Architecture("own/dlrm", sequences.Recommender, _clicks))
    rows.append(Architecture("own/graph-convolutions", sequences.GraphConvolutions, _graph))
    return rows


def _numbers(shape: Shape, generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator)


def _tokens(generator: torch.Generator) -> Tensor:
    return torch.randint(0, 101, (2, 11), generator=generator)


def _token_pair(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    return _tokens(generator), torch.randint(0, 101, (2, 7), generator=generator)


def _clicks(generator: torch.Generator) -> dict[str, Tensor]:
    return {
        "numbers": torch.randn(4, 13, generator=generator),
        "categories": torch.randint(0, 29, (4, 3), generator=generator),
    }


def _graph(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    return torch.randn(9, 15, generator=generator), torch.rand(9, 9, generator=generator)
