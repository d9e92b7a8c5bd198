"""Densely connected networks for small images."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from zoo.models.initialisation import check_image, he_initialise

BOTTLENECK = 4  # times the growth
NUM_STAGES = 3


class DenseLayer(nn.Module):
    """Compute `growth` new channels from all there are, and hand on both."""

    def __init__(self, in_channels: int, growth: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, BOTTLENECK * growth, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(BOTTLENECK * growth)
        self.conv2 = nn.Conv2d(BOTTLENECK * growth, growth, 3, padding=1, bias=False)
        self.relu = nn.ReLU()

    def forward(self, inputs: Tensor) -> Tensor:
        """Compute [N, in_channels + growth, H, W] from [N, in_channels, H, W]."""
        hidden = self.conv1(self.relu(self.bn1(inputs)))
        hidden = self.conv2(self.relu(self.bn2(hidden)))
        return torch.cat([inputs, hidden], dim=1)


def densenet(
    input_shape: tuple[int, int, int] = (3, 32, 32),
    num_classes: int = 10,
    depth: int = 40,
    growth: int = 12,
    compression: float = 0.5,
) -> nn.Sequential:
    """Build a densely connected network with bottlenecks (DenseNet-BC): 176,122 parameters with the default arguments.

    A convolution with 2 · `growth` channels, three stages of dense layers, between them a 1 × 1 convolution that
    compresses the channels and a pooling that halves the image.

    Args:
        input_shape: Channels, height, width of one image, at least 8 × 8.
        num_classes: Number of outputs.
        depth: Number of layers with weights, 6n + 4: 10, 16, 22, 40, 100, ...
        growth: Channels that each dense layer adds.
        compression: Share of the channels that a transition keeps, in (0, 1].

    Raises:
        ValueError: The arguments describe no network.

    Source: Huang et al. 2016, arXiv 1608.06993.
    """
    check_image(input_shape, num_classes)
    if depth < 10 or depth % 6 != 4 or growth < 1 or not 0 < compression <= 1:
        raise ValueError(
            f"depth is {depth}, growth {growth}, compression {compression}; expected a depth of 6n + 4 (10, 16, 22,"
            " ...), a growth of at least 1 and a compression in (0, 1]"
        )
    channels = 2 * growth
    layers: list[nn.Module] = [nn.Conv2d(input_shape[0], channels, 3, padding=1, bias=False)]
    for stage in range(NUM_STAGES):
        for _ in range((depth - 4) // 6):
            layers.append(DenseLayer(channels, growth))
            channels += growth
        layers += [nn.BatchNorm2d(channels), nn.ReLU()]
        if stage < NUM_STAGES - 1:
            kept = int(channels * compression)
            layers += [nn.Conv2d(channels, kept, 1, bias=False), nn.AvgPool2d(2)]
            channels = kept
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, num_classes))
    he_initialise(model)
    return model
