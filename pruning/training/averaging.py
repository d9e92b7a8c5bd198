"""A moving average of a model's weights over the steps of its training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class MovingAverage:
    """v ← d v + (1 − d) w after each step, d = min(decay, (1 + t)/(10 + t)) after t steps.

    All parameters and buffers of floating point are averaged, the rest are the last. The decay begins low, so that a
    short run forgets what it began with. Source: TensorFlow's ExponentialMovingAverage with `num_updates`.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        """Begin with a model's weights."""
        self._decay, self._steps = decay, 0
        self._values = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take in the model after a step."""
        self._steps += 1
        decay = min(self._decay, (1 + self._steps) / (10 + self._steps))
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                self._values[name].lerp_(tensor, 1 - decay)
            else:
                self._values[name].copy_(tensor)

    @contextmanager
    def swapped_in(self, model: nn.Module) -> Iterator[None]:
        """Give a model the averaged weights within the block."""
        own = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        model.load_state_dict(self._values)
        try:
            yield
        finally:
            model.load_state_dict(own)

    def write_to(self, model: nn.Module) -> None:
        """Give a model the averaged weights."""
        model.load_state_dict(self._values)

    def state_dict(self) -> dict[str, Tensor]:
        """Return it by name, as tensors on the CPU."""
        found = {f"of.{name}": tensor.cpu() for name, tensor in self._values.items()}
        return found | {"steps": torch.tensor(self._steps)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Remember that instead."""
        self._steps = int(state["steps"])
        for name, tensor in self._values.items():
            tensor.copy_(state[f"of.{name}"])
