"""Squares of gradient times weight, value by value, of minibatches or of single samples."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from pruning.containers import find_tensors, take, with_tensors
from pruning.evaluation import Loss
from pruning.tracing.watch import Inputs, as_call

_GRADIENTS = 1 << 25  # values of per-sample gradients at a time

_log = logging.getLogger(__name__)


class SquaredProducts:
    """(g·w)² of some parameters of a model in evaluation mode."""

    def __init__(self, model: nn.Module, parameters: Mapping[str, Tensor], loss: Loss) -> None:
        self._model, self._parameters, self._loss = model, dict(parameters), loss
        self._vectorised = True

    def of_batch(self, inputs: Inputs, targets: Tensor) -> dict[str, Tensor]:
        """Return (g·w)² with g the gradient of the minibatch's mean loss."""
        own = {name: tensor.clone().requires_grad_(True) for name, tensor in self._parameters.items()}
        with torch.enable_grad():
            value = self._loss(functional_call(self._model, own, *as_call(inputs)), targets)
            found = torch.autograd.grad(value, list(own.values()), allow_unused=True)
        gradients = zip(self._parameters.items(), found, strict=True)
        return {name: (torch.zeros_like(w) if g is None else g * w).square() for (name, w), g in gradients}

    def of_samples(self, inputs: Inputs, targets: Tensor) -> dict[str, Tensor]:
        """Return the sum over samples of (g·w)², with g the gradient of one sample's loss."""
        size = sum(parameter.numel() for parameter in self._parameters.values())
        step = max(1, _GRADIENTS // max(1, size))
        totals = {name: torch.zeros_like(parameter) for name, parameter in self._parameters.items()}
        for start in range(0, len(targets), step):
            here = slice(start, start + step)
            gradients = self._per_sample(take(inputs, here), targets[here])
            for name, gradient in gradients.items():
                totals[name] += (gradient * self._parameters[name]).square().sum(dim=0)
        return totals

    def _per_sample(self, inputs: Inputs, targets: Tensor) -> dict[str, Tensor]:
        """Return each sample's gradients, [samples, ...] per parameter."""
        tensors = find_tensors(inputs)

        def loss_of(parameters: Mapping[str, Tensor], sample: list[Tensor], target: Tensor) -> Tensor:
            alone = {id(tensor): one[None] for tensor, one in zip(tensors, sample, strict=True)}
            call = as_call(with_tensors(inputs, lambda tensor: alone[id(tensor)]))
            return self._loss(functional_call(self._model, dict(parameters), *call), target[None])

        of_one = grad(loss_of)
        if self._vectorised:
            try:
                return _as_tensors(vmap(of_one, in_dims=(None, 0, 0))(self._parameters, tensors, targets))
            except RuntimeError as fault:  # operators that change tensors in place, control flow that reads values
                self._vectorised = False
                _log.info("per-sample gradients one by one, since vmap can't take this model: %s", fault)
        samples = zip(*tensors, strict=True)
        rows = [of_one(self._parameters, [*sample], target) for sample, target in zip(samples, targets, strict=True)]
        return {name: torch.stack([row[name] for row in rows]) for name in self._parameters}


def _as_tensors(found: Any) -> dict[str, Tensor]:
    return dict(found)
