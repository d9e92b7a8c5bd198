"""Models that are sent to other processes, which find their classes here."""

from __future__ import annotations

import math
import os
import signal
from typing import Any

import torch
from torch import Tensor, nn


class DiesElsewhere(nn.Module):
    """Ends any process that runs it, other than the one that has made it, after some passes."""

    def __init__(self, model: nn.Module, passes: int) -> None:
        super().__init__()
        self.model, self.home, self.left = model, os.getpid(), passes

    def forward(self, x: Tensor) -> Tensor:
        self.left -= 1
        if os.getpid() != self.home and self.left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        found: Tensor = self.model(x)
        return found


class ForgetsElsewhere(nn.Module):
    """Loses its weights on the way to another process."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_modules": {"model": nn.Sequential(nn.Flatten(), nn.Linear(4, 4))}}

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.model(x)
        return found


FACTOR = 1.0
"""What a model reads that isn't its own."""


class ReadsVariable(nn.Module):
    """Multiplies by a variable of its module, which is another one in another process."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.model(x) * FACTOR
        return found


class Counts(nn.Module):
    """Answers otherwise each time."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.calls = model, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        found: Tensor = self.model(x) * self.calls
        return found


class Drops(nn.Module):
    """Draws random numbers in eval mode too."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(self.model(x), 0.5, training=True)


class RaisesElsewhere(nn.Module):
    """Raises in any process other than the one that has made it, by a whole batch."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.home = model, os.getpid()

    def forward(self, x: Tensor) -> Tensor:
        if os.getpid() != self.home and len(x) > 2:
            raise ValueError("not at home")
        found: Tensor = self.model(x)
        return found


def make_scaled(factor: float, input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """Build a network, and set what it reads outside of itself."""
    global FACTOR
    FACTOR = factor
    torch.manual_seed(0)
    return ReadsVariable(nn.Sequential(nn.Flatten(), nn.Linear(math.prod(input_shape), num_classes)))
