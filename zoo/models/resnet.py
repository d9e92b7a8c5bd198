"""Residual networks for small images."""

from __future__ import annotations

from torch import Tensor, nn

from zoo.models.initialisation import check_image, he_initialise


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
