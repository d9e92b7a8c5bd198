"""Scales that weigh each channel against a knockoff of itself."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from pruning.evaluation import Loss
from pruning.gathering.consumers import changed_inputs, module_channels, owner_of, readers_of, unowned
from pruning.gathering.gatherer import Batch, Gathered, Gatherer
from pruning.structure.groups import Groups

NEEDS = ("knockoffs",)
_RATE = 0.05
_MOMENTUM = 0.9


class KnockoffGatherer(Gatherer):
    """Learns β, one per channel, from ½, by one step per minibatch, the weights being frozen.

    What a consumer reads becomes β A + (1 − β) Ã; the knockoff Ã is A of other samples of the minibatch, in a shuffled
    order: it has the channel's distribution, and tells nothing of the sample. A step goes against the gradient of the
    loss divided by its root mean square over the group, with momentum; β stays in [0, 1].
    """

    def __init__(self, groups: Groups, loss: Loss) -> None:
        self._groups, self._loss = groups, loss
        self._model = copy.deepcopy(groups.model).eval().requires_grad_(False)
        self._readers = readers_of(groups)
        self._unowned = {group.name: unowned(groups.model, group) for group in groups}
        self._scales = {group.name: torch.full((group.size,), 0.5, dtype=torch.float64) for group in groups}
        self._momenta = {name: torch.zeros_like(scale) for name, scale in self._scales.items()}

    def see(self, batch: Batch) -> None:
        """Take one step."""
        if len(batch.inputs) < 2:  # there is no other sample to shuffle in
            return
        order = torch.randperm(len(batch.inputs), generator=batch.generator).to(batch.inputs.device)
        scales = {name: scale.clone().requires_grad_(True) for name, scale in self._scales.items()}

        def mix(weight: str, inputs: Tensor, axis: int) -> Tensor:
            if len(inputs) != len(order) or axis == 0:
                for group, _ in self._readers[weight]:
                    self._unowned[group.name] = f"the samples do not lie on axis 0 of what {weight} reads"
                return inputs
            share = inputs.new_ones(inputs.shape[axis])
            module = owner_of(self._model, weight)
            assert module is not None, "only owned weights are hooked"
            for group, piece in self._readers[weight]:
                at = module_channels(module, piece).to(inputs.device)
                share = torch.where(at < 0, share, scales[group.name].to(inputs)[at.clamp(min=0)])
            share = share.reshape([-1 if position == axis else 1 for position in range(inputs.ndim)])
            return share * inputs + (1 - share) * inputs[order]

        with torch.enable_grad(), changed_inputs(self._model, self._readers, mix):
            value = self._loss(self._model(batch.inputs), batch.labels())
            if not value.requires_grad:  # no group's consumers could be hooked
                return
            found = torch.autograd.grad(value, list(scales.values()), allow_unused=True)
        for name, gradient in zip(scales, found, strict=True):
            if gradient is not None:
                size = gradient.square().mean().sqrt().clamp(min=1e-12)
                self._momenta[name] = _MOMENTUM * self._momenta[name] + (1 - _MOMENTUM) * gradient / size
                self._scales[name] = (self._scales[name] - _RATE * self._momenta[name]).clamp(0, 1)

    def results(self) -> Gathered:
        """Return β."""
        return {"knockoffs": {name: self._unowned[name] or scale for name, scale in self._scales.items()}}
