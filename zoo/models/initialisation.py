"""How fresh weights are drawn, and which inputs the built-in models take."""

from __future__ import annotations

from torch import nn

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
