"""The built-in models: factories that take `input_shape` and `num_classes` and return a module with fresh weights.

Randomness comes from torch's global generator, which the caller seeds. A factory of one's own looks the same; it need
not accept these two arguments if the settings give all that it wants.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

__all__ = ["densenet", "mlp", "mobilenet", "resnet", "resnet20", "vgg", "vgg11", "vgg16"]


SMALLEST_SIDE = 8


def he_initialise(model: nn.Module) -> None:
    """Draw the weights of convolutions and linear layers anew, in place, so that ReLUs keep the variance.

    Convolutions: normal with variance 2 / (outputs that read one input). Linear layers: variance 1 / inputs, since the
    last one feeds no ReLU. Biases are 0; norms are left at 1 and 0.

    Source: He et al. 2015, arXiv 1502.01852.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
        else:
            continue
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def check_image(input_shape: tuple[int, int, int], num_classes: int) -> None:
    """Refuse inputs and class counts for which the convolutional models are not made.

    Args:
        input_shape: Channels, height, width of one image.
        num_classes: Number of outputs.

    Raises:
        ValueError: The shape isn't that of an image of at least 8 × 8, or there is no class.
    """
    if len(input_shape) != 3 or input_shape[0] < 1 or min(input_shape[1:]) < SMALLEST_SIDE:
        raise ValueError(
            f"input_shape is {tuple(input_shape)}, expected (channels, height, width) with sides of at least"
            f" {SMALLEST_SIDE}; enlarge the images or use zoo.models:mlp"
        )
    if num_classes < 1:
        raise ValueError(f"num_classes is {num_classes}, expected at least 1")


def mlp(
    input_shape: Sequence[int] = (1, 8, 8), num_classes: int = 10, hidden: Sequence[int] = (256, 128)
) -> nn.Sequential:
    """Build fully connected layers, each hidden one with batch norm and ReLU.

    With the default arguments 51,210 parameters.

    Args:
        input_shape: Shape of one input, of any number of axes; it is flattened.
        num_classes: Number of outputs.
        hidden: Width of each hidden layer; empty for a linear model.
    """
    widths = [math.prod(input_shape), *hidden]
    layers: list[nn.Module] = [nn.Flatten()]
    for narrow, wide in zip(widths, hidden, strict=False):
        layers += [nn.Linear(narrow, wide, bias=False), nn.BatchNorm1d(wide), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Linear(widths[-1], num_classes))
    he_initialise(model)
    return model


class ResidualBlock(nn.Module):
    """Two 3 × 3 convolutions with batch norm, added to their input.

    Where the shape changes, a 1 × 1 convolution with batch norm brings the input to the new one (the paper's option B).
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU()
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            projection = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(out_channels))

    def forward(self, inputs: Tensor) -> Tensor:
        """Compute [N, out_channels, H / stride, W / stride] from [N, in_channels, H, W]."""
        hidden = self.relu(self.bn1(self.conv1(inputs)))
        hidden = self.bn2(self.conv2(hidden))
        return self.relu(hidden + self.shortcut(inputs))  # type: ignore[no-any-return]  # modules return Any


class ResNet(nn.Module):
    """A 3 × 3 convolution, three stages of residual blocks, a linear layer on the global average."""

    def __init__(self, in_channels: int, num_classes: int, blocks_per_stage: int, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.stage1 = _stage(width, width, blocks_per_stage, stride=1)
        self.stage2 = _stage(width, 2 * width, blocks_per_stage, stride=2)
        self.stage3 = _stage(2 * width, 4 * width, blocks_per_stage, stride=2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(4 * width, num_classes)

    def forward(self, inputs: Tensor) -> Tensor:
        """Compute logits [N, num_classes] from images [N, C, H, W]."""
        hidden = self.relu(self.bn1(self.conv1(inputs)))
        hidden = self.stage3(self.stage2(self.stage1(hidden)))
        return self.fc(self.pool(hidden).flatten(1))  # type: ignore[no-any-return]  # modules return Any


def _stage(in_channels: int, out_channels: int, depth: int, stride: int) -> nn.Sequential:
    first = ResidualBlock(in_channels, out_channels, stride)
    return nn.Sequential(first, *(ResidualBlock(out_channels, out_channels, 1) for _ in range(depth - 1)))


def resnet(
    input_shape: tuple[int, int, int] = (3, 32, 32), num_classes: int = 10, depth: int = 20, width: int = 16
) -> ResNet:
    """Build a residual network of any depth 6n + 2 and any width.

    Stages have `width`, 2 · `width` and 4 · `width` channels, the second and third halve the image.

    Args:
        input_shape: Channels, height, width of one image, at least 8 × 8.
        num_classes: Number of outputs.
        depth: Number of layers with weights, shortcuts not counted: 8, 14, 20, 26, 32, ...
        width: Channels of the first stage.

    Raises:
        ValueError: The arguments describe no network.

    Source: He et al. 2015, arXiv 1512.03385, section 4.2, which has shortcuts without weights (option A).
    """
    check_image(input_shape, num_classes)
    if depth < 8 or depth % 6 != 2 or width < 1:
        raise ValueError(
            f"depth is {depth} and width is {width}; expected a depth of 6n + 2 (8, 14, 20, 26, ...) and a width of"
            " at least 1"
        )
    model = ResNet(input_shape[0], num_classes, (depth - 2) // 6, width)
    he_initialise(model)
    return model


def resnet20(input_shape: tuple[int, int, int] = (3, 32, 32), num_classes: int = 10, width: int = 16) -> ResNet:
    """Build `resnet` with 20 layers: 272,474 parameters with the default arguments."""
    return resnet(input_shape, num_classes, 20, width)


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
