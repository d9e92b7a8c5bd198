"""Plain stacks of 3 × 3 convolutions with batch norm, after VGG."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from zoo.models.initialisation import check_image, he_initialise

VGG11 = (1, 1, 2, 2, 2)
VGG16 = (2, 2, 3, 3, 3)
WIDEST = 8  # times the first stage's width


def vgg(
    input_shape: tuple[int, int, int] = (3, 32, 32),
    num_classes: int = 10,
    stages: Sequence[int] = VGG11,
    width: int = 64,
) -> nn.Sequential:
    """Build stages of 3 × 3 convolutions, each followed by batch norm and ReLU.

    A stage ends with a pooling that halves the image, as long as two pixels are left to halve. The width doubles from
    stage to stage up to eight times the first. One linear layer on the global average replaces the paper's three
    fully connected ones, so that any input size will do.

    Args:
        input_shape: Channels, height, width of one image, at least 8 × 8.
        num_classes: Number of outputs.
        stages: Number of convolutions in each stage.
        width: Channels of the first stage.

    Raises:
        ValueError: The arguments describe no network.

    Source: Simonyan & Zisserman 2014, arXiv 1409.1556; batch norm as in Ioffe & Szegedy 2015, arXiv 1502.03167.
    """
    check_image(input_shape, num_classes)
    if not stages or min(stages) < 1 or width < 1:
        raise ValueError(f"stages are {list(stages)} and width is {width}, expected numbers of at least 1")
    channels, side = input_shape[0], min(input_shape[1:])
    layers: list[nn.Module] = []
    for stage, depth in enumerate(stages):
        wide = width * min(2**stage, WIDEST)
        for _ in range(depth):
            layers += [nn.Conv2d(channels, wide, 3, padding=1, bias=False), nn.BatchNorm2d(wide), nn.ReLU()]
            channels = wide
        if side >= 2:
            layers.append(nn.MaxPool2d(2))
            side //= 2
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, num_classes))
    he_initialise(model)
    return model


def vgg11(input_shape: tuple[int, int, int] = (3, 32, 32), num_classes: int = 10, width: int = 64) -> nn.Sequential:
    """Build `vgg` with 8 convolutions: 9,228,362 parameters with the default arguments."""
    return vgg(input_shape, num_classes, VGG11, width)


def vgg16(input_shape: tuple[int, int, int] = (3, 32, 32), num_classes: int = 10, width: int = 64) -> nn.Sequential:
    """Build `vgg` with 13 convolutions: 14,724,042 parameters with the default arguments."""
    return vgg(input_shape, num_classes, VGG16, width)
