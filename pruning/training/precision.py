"""The forward pass in half precision, and the scaled gradients that fp16 needs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pruning.containers import with_tensors
from pruning.training.recipe import Recipe

_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Precision:
    """Runs a model, its backward pass and its optimizer in a recipe's precision; give it to a checkpointer.

    fp16 has few exponents, so the loss is scaled up, by a factor that falls where gradients overflow, whose step is
    left out, and rises where they don't. Source: Micikevicius et al. 2018, arXiv 1710.03740.
    """

    def __init__(self, recipe: Recipe, device: torch.device) -> None:
        """Take the device that the model is on."""
        self._device, self._type = device.type, _TYPES.get(recipe.precision)
        self._scaler = torch.amp.GradScaler(device.type) if recipe.precision == "fp16" else None
        if self._scaler is not None:
            self._scaler.scale(torch.zeros((), device=device))  # makes the scale, which is kept before the first step

    def run(self, forward: Callable[[], Any]) -> Any:
        """Run a forward pass; its outputs are fp32, so that any loss can be computed of them."""
        if self._type is None:
            return forward()
        with torch.autocast(self._device, dtype=self._type):
            outputs = forward()
        return with_tensors(outputs, lambda one: one.float() if one.dtype == self._type else one)

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a loss to those of the parameters."""
        torch.autograd.backward(loss if self._scaler is None else self._scaler.scale(loss))

    def step(self, optimizer: torch.optim.Optimizer, parameters: Iterable[nn.Parameter], largest: float | None) -> None:
        """Take a step, the gradient's norm clipped to what is the largest allowed."""
        if self._scaler is not None:
            self._scaler.unscale_(optimizer)
        if largest is not None:
            nn.utils.clip_grad_norm_(parameters, largest)
        if self._scaler is None:
            optimizer.step()
        else:
            self._scaler.step(optimizer)
            self._scaler.update()

    def state_dict(self) -> dict[str, Tensor]:
        """Return scale and count of steps since it changed."""
        if self._scaler is None:
            return {}
        state = self._scaler.state_dict()
        return {name: torch.tensor(state[name], dtype=torch.float64) for name in ("scale", "_growth_tracker")}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from that."""
        if self._scaler is not None:
            found = {"scale": state["scale"].item(), "_growth_tracker": int(state["_growth_tracker"])}
            self._scaler.load_state_dict(self._scaler.state_dict() | found)
