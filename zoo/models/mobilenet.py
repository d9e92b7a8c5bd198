"""Inverted residuals with depthwise convolutions, after MobileNetV2."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from zoo.models.initialisation import check_image, he_initialise

# channels at width 32, number of blocks, whether the first block halves the image, expansion: the paper's table 2
STAGES = (
    (16, 1, False, 1),
    (24, 2, True, 6),
    (32, 3, True, 6),
    (64, 4, True, 6),
    (96, 3, False, 6),
    (160, 3, True, 6),
    (320, 1, False, 6),
)
STEM, HEAD = 32, 1280
SMALLEST_MAP = 4


class InvertedResidual(nn.Module):
    """Widen by a 1 × 1 convolution, filter each channel by itself, narrow by a 1 × 1 convolution without activation.

    The input is added where the shapes agree.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = in_channels * expansion
        widen = _convolution(in_channels, wide, 1) if expansion > 1 else ()
        self.layers = nn.Sequential(
            *widen,
            *_convolution(wide, wide, 3, stride, groups=wide),
            nn.Conv2d(wide, out_channels, 1, bias=False),
            nn.BatchNorm2d(out_channels),
        )
        self.residual = stride == 1 and in_channels == out_channels

    def forward(self, inputs: Tensor) -> Tensor:
        """Compute [N, out_channels, H / stride, W / stride] from [N, in_channels, H, W]."""
        outputs: Tensor = self.layers(inputs)
        return inputs + outputs if self.residual else outputs


def mobilenet(
    input_shape: tuple[int, int, int] = (3, 32, 32), num_classes: int = 10, width: int = 32, dropout: float = 0.0
) -> nn.Sequential:
    """Build a MobileNetV2-style network: 2,236,682 parameters with the default arguments.

    Of the paper's five halvings of the image the first ones are left out where the feature map would shrink below
    4 × 4: an image of 224 × 224 is halved five times, one of 32 × 32 three times, one of 8 × 8 once.

    Args:
        input_shape: Channels, height, width of one image, at least 8 × 8.
        num_classes: Number of outputs.
        width: Channels of the first convolution; all others follow in proportion, in multiples of 8. The head is never
            narrower than at width 32.
        dropout: Share of the last features that is dropped in training (0.2 in the paper).

    Raises:
        ValueError: The arguments describe no network.

    Source: Sandler et al. 2018, arXiv 1801.04381.
    """
    check_image(input_shape, num_classes)
    if width < 1 or not 0 <= dropout < 1:
        raise ValueError(f"width is {width} and dropout {dropout}; expected a width of at least 1, a dropout in [0, 1)")
    num_halvings = (min(input_shape[1:]) // SMALLEST_MAP).bit_length() - 1
    strides = _strides(num_halvings)
    channels = _scale(STEM, width)
    layers: list[nn.Module] = [nn.Sequential(*_convolution(input_shape[0], channels, 3, next(strides)))]
    for size, depth, halves, expansion in STAGES:
        for block in range(depth):
            stride = next(strides) if halves and block == 0 else 1
            layers.append(InvertedResidual(channels, _scale(size, width), stride, expansion))
            channels = _scale(size, width)
    head = max(HEAD, _scale(HEAD, width))
    layers += [nn.Sequential(*_convolution(channels, head, 1)), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    model = nn.Sequential(*layers, nn.Dropout(dropout), nn.Linear(head, num_classes))
    he_initialise(model)
    return model


def _convolution(
    in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1
) -> tuple[nn.Module, ...]:
    padding = kernel // 2
    convolution = nn.Conv2d(in_channels, out_channels, kernel, stride, padding, groups=groups, bias=False)
    return convolution, nn.BatchNorm2d(out_channels), nn.ReLU6()


def _strides(num_halvings: int) -> Iterator[int]:
    """Say for each of the five places that may halve the image whether it does; the last ones are the last to go."""
    places = 1 + sum(halves for _, _, halves, _ in STAGES)
    for place in range(places):
        yield 2 if places - place <= num_halvings else 1


def _scale(channels: int, width: int) -> int:
    """Scale a channel count by width / 32 to the nearest multiple of 8, at least 8."""
    return max(8, int(channels * width / STEM + 4) // 8 * 8)
