"""Scales that weigh each channel against a knockoff of itself."""

from __future__ import annotations

import torch
from torch import Tensor

from pruning.evaluation import Loss, device_of
from pruning.graph.groups import Groups
from pruning.graph.module_copy import copy_whole
from pruning.statistics.collector import Batch, Collected, Collector, Uncounted
from pruning.statistics.layer_hooks import changed_inputs, module_channels, owner_of
from pruning.statistics.readers import NOT_BY_SAMPLE, readers_of, unowned

NEEDS = ("knockoffs",)
_RATE = 0.02
_STEPS = 16  # of a minibatch, each with another shuffle
_MOMENTUM = 0.9
_ENOUGH = 0.1  # of the loss that mixing costs at first; later every share comes to 1, and they tell nothing any more


class KnockoffGatherer(Collector):
    """Learns β, one per channel, from ½, by some steps per minibatch, the weights being frozen.

    What a consumer reads becomes β A + (1 − β) Ã; the knockoff Ã is what the whole model's consumer reads of other
    samples of the minibatch, in a shuffled order: it has the channel's distribution, and tells nothing of the sample. A
    step goes against the gradient of the loss divided by its root mean square over the group, with momentum; β stays in
    [0, 1]. Learning ends when a tenth of the loss that the knockoffs brought is left.
    """

    def __init__(self, groups: Groups, loss: Loss) -> None:
        self._groups, self._loss = groups, loss
        self._model = copy_whole(groups.model).eval().requires_grad_(False)
        self._readers = readers_of(groups)
        self._unowned = {group.name: unowned(groups, group) for group in groups}
        self._scales = {group.name: torch.full((group.size,), 0.5, dtype=torch.float64) for group in groups}
        self._momenta = {name: torch.zeros_like(scale) for name, scale in self._scales.items()}
        self._cost: float | None = None  # of mixing at first: the loss that it adds
        self._learned = False

    def update(self, batch: Batch) -> None:
        """Take some steps."""
        if batch.num_samples < 2:  # there is no other sample to shuffle in
            return
        whole, read = self._whole(batch)
        for _ in range(_STEPS):
            if self._learned:
                return
            order = torch.randperm(batch.num_samples, generator=batch.generator).to(device_of(self._model))
            self._step(batch, {weight: [one[order] for one in calls] for weight, calls in read.items()}, whole)

    def _whole(self, batch: Batch) -> tuple[float, dict[str, list[Tensor]]]:
        """Return the whole model's loss, and what each of its consumers reads, call by call."""
        read: dict[str, list[Tensor]] = {}

        def keep(weight: str, inputs: Tensor, axis: int) -> Tensor:
            if len(inputs) != batch.num_samples or axis == 0:
                for group, _ in self._readers[weight]:
                    self._unowned[group.name] = Uncounted(NOT_BY_SAMPLE, weight)
            else:
                read.setdefault(weight, []).append(inputs.clone())
            return inputs

        with torch.no_grad(), changed_inputs(self._model, self._readers, keep):
            return float(self._loss(batch.run(self._model), batch.labels())), read

    def _step(self, batch: Batch, knockoffs: dict[str, list[Tensor]], whole: float) -> None:
        """Take one step, unless what is left of the knockoffs' cost says that all is learned."""
        scales = {name: scale.clone().requires_grad_(True) for name, scale in self._scales.items()}

        def mix(weight: str, inputs: Tensor, axis: int) -> Tensor:
            if weight not in knockoffs:
                return inputs
            share = inputs.new_ones(inputs.shape[axis])
            module = owner_of(self._model, weight)
            assert module is not None, "only owned weights are hooked"
            for group, piece in self._readers[weight]:
                at = module_channels(module, piece).to(inputs.device)
                share = torch.where(at < 0, share, scales[group.name].to(inputs)[at.clamp(min=0)])
            share = share.reshape([-1 if position == axis else 1 for position in range(inputs.ndim)])
            return share * inputs + (1 - share) * knockoffs[weight].pop(0)

        with torch.enable_grad(), changed_inputs(self._model, self._readers, mix):
            value = self._loss(batch.run(self._model), batch.labels())
        cost = float(value.detach()) - whole
        self._cost = cost if self._cost is None else self._cost
        self._learned = not value.requires_grad or cost < _ENOUGH * self._cost  # no gradient: nothing could be hooked
        if self._learned:
            return
        found = torch.autograd.grad(value, list(scales.values()), allow_unused=True)
        for name, gradient in zip(scales, found, strict=True):
            if gradient is not None:
                size = gradient.square().mean().sqrt().clamp(min=1e-12)
                self._momenta[name] = _MOMENTUM * self._momenta[name] + (1 - _MOMENTUM) * gradient / size
                self._scales[name] = (self._scales[name] - _RATE * self._momenta[name]).clamp(0, 1)

    def compute(self) -> Collected:
        """Return β."""
        return {"knockoffs": {name: self._unowned[name] or scale for name, scale in self._scales.items()}}
