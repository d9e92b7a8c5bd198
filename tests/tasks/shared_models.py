"""Models that are sent to other processes, which find their classes here."""

from __future__ import annotations

import os
import signal
from typing import Any

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
