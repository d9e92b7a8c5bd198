"""An architecture to try: how to build it, and inputs to run it on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from math import prod
from zlib import crc32

import torch
from torch import Tensor, nn

from pruning.containers import Inputs


@dataclass(frozen=True)
class Architecture:
    """One row of the table.

    Attributes:
        name: Package and model, e.g. "torchvision/resnet18".
        build: Makes the module with random weights; downloads nothing.
        inputs: Makes inputs, other ones for another generator state.
        package: The package it comes from, None for the ones written here.
    """

    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[torch.Generator], Inputs]
    package: str | None = None

    @property
    def installed(self) -> bool:
        """Whether the package it comes from can be imported."""
        return self.package is None or find_spec(self.package) is not None

    def make(self) -> nn.Module:
        """Build the module, the same each time, in eval mode, with values on which a fault would show."""
        torch.manual_seed(crc32(self.name.encode()))
        model = self.build().eval()
        enliven(model)
        return model

    def make_inputs(self, seed: int) -> Inputs:
        """Make the inputs of a seed."""
        return self.inputs(torch.Generator().manual_seed(seed))


def enliven(model: nn.Module) -> None:
    """Replace initial values under which wrong pruning would go unnoticed.

    Scales of one, biases of zero and layer scales of 1e-6 tell no channel from another, and matrices of standard
    deviation 0.02 leave attention uniform whatever its temperature.
    """
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and isinstance(module.running_mean, Tensor):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 2.0)  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in model.parameters():
            _enliven(parameter)


def _enliven(parameter: Tensor) -> None:
    if parameter.numel() < 2 or not parameter.is_floating_point():
        return
    constant = bool(parameter.min() == parameter.max())  # its deviation can be rounded to something above zero
    deviation = float(parameter.std())
    wanted = prod(parameter.shape[1:]) ** -0.5 if parameter.ndim > 1 else 0.2
    if constant:
        parameter.add_(torch.randn_like(parameter), alpha=wanted)
    elif parameter.ndim > 1 and deviation < 0.7 * wanted:
        parameter.mul_(wanted / deviation)
