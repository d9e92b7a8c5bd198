"""A multi-layer perceptron."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import nn

from zoo.models.initialisation import he_initialise


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
