"""CREPE, which tells the pitch of a sound, by its published description: six convolutions over 64 ms of samples.

    frame [N, 1024] at 16 kHz → six times (convolution → ReLU → batch norm → the larger of two neighbours) → scores
    [N, 360] of pitches 20 cents apart

Source: Kim et al. 2018, arXiv 1802.06182. Modules bear the names of the published weights, so that these load by name.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

FRAME = 1024
PITCHES = 360
CAPACITIES = {"full": 32, "tiny": 4}
"""What the numbers of filters are multiplied by; the published ones are also called medium (16) and so on."""
_FILTERS = (32, 4, 4, 4, 8, 16)
_TAPS = (512, 64, 64, 64, 64, 64)
_EPS = 1e-3  # of the framework that the weights were trained in


class Crepe(nn.Module):
    """The network, up to the scores before the sigmoid."""

    def __init__(self, capacity: str = "full") -> None:
        super().__init__()
        filters = [1, *(number * CAPACITIES[capacity] for number in _FILTERS)]
        for index, taps in enumerate(_TAPS):
            stride = 4 if index == 0 else 1
            convolution = nn.Conv2d(filters[index], filters[index + 1], (taps, 1), (stride, 1))
            self.add_module(f"conv{index + 1}", convolution)
            self.add_module(f"conv{index + 1}_BN", nn.BatchNorm2d(filters[index + 1], eps=_EPS))
        self.classifier = nn.Linear(4 * filters[-1], PITCHES)

    def forward(self, frames: Tensor) -> Tensor:
        """Return scores [N, 360] of frames [N, 1024] of mean 0 and standard deviation 1."""
        x = frames[:, None, :, None]
        for index, taps in enumerate(_TAPS):
            around = taps - (4 if index == 0 else 1)  # zeros, so that a step gives one value
            x = functional.pad(x, (0, 0, around // 2, around - around // 2))
            x = getattr(self, f"conv{index + 1}")(x).relu()
            x = functional.max_pool2d(getattr(self, f"conv{index + 1}_BN")(x), (2, 1))
        scores: Tensor = self.classifier(torch.flatten(x.transpose(1, 2), 1))
        return scores


def make(capacity: str = "full") -> Crepe:
    """Return the network; `model.weights` brings its weights."""
    return Crepe(capacity)
