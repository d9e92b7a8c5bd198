"""What inputs that were exchanged or disturbed tell: knockoffs of each channel (SCOP), and signs that flip."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pruning.containers import with_tensors
from pruning.evaluation import Loss, device_of
from pruning.graph.groups import Group, Groups, Slice
from pruning.graph.layers import LayerCall, places_of
from pruning.graph.module_copy import copy_whole
from pruning.statistics.activations import Rectified
from pruning.statistics.collector import (
    NOT_BY_SAMPLE,
    Batch,
    Collected,
    Collector,
    ConsumerObserver,
    Uncounted,
    readers_of,
    unowned,
)
from pruning.statistics.layer_hooks import observe
from pruning.statistics.module_hooks import changed_inputs, module_channels, owner_of

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

    NEEDS = ("knockoffs",)
    in_order = True

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


DISTURBANCE = 0.1  # standard deviation of the noise, relative to that of the inputs


class InversionGatherer(Collector):
    """Gathers the share of values whose sign differs between the inputs and the same with Gaussian noise added.

    The sign is that of what the rectifiers read (above zero after them); of a group on which none acts, of what its
    consumers read.
    """

    NEEDS = ("inversions",)
    SUMS = ("_changed", "_seen")

    def __init__(self, groups: Groups) -> None:
        self._groups, self._rectified = groups, Rectified(groups)
        self._changed = {group.name: torch.zeros(group.size, dtype=torch.float64) for group in groups}
        self._seen = dict.fromkeys(self._changed, 0)
        self._last = _Signs(groups, self._rectified)

    def sums(self) -> dict[str, Any]:
        """Return what was added up, and what was met on the way."""
        return {**super().sums(), "last": self._last.sums()}

    def go_on_from(self, sums: Mapping[str, Any]) -> None:
        """Put what was added up in the place of these sums."""
        super().go_on_from(sums)
        self._last.go_on_from(sums["last"])

    def update(self, batch: Batch) -> None:
        """Run the batch forward as it is and disturbed."""
        disturbed = with_tensors(batch.inputs, lambda tensor: _disturbed(tensor, batch.generator))
        before, after = self._last, _Signs(self._groups, self._rectified)
        before.signs.clear()
        observe(self._groups.model, batch.inputs, [before])
        observe(self._groups.model, disturbed, [after])
        for (name, was), (_, now) in zip(before.signs, after.signs, strict=True):
            self._changed[name] += (was != now).sum(dim=1).to("cpu", torch.float64)
            self._seen[name] += was.shape[1]

    def compute(self) -> Collected:
        """Return the shares."""
        shares: dict[str, Tensor | Uncounted] = {}
        for group in self._groups:
            reason = None if group.name in self._rectified.groups else self._last.reason(group)
            shares[group.name] = reason or self._changed[group.name] / max(1, self._seen[group.name])
        return {"inversions": shares}


def _disturbed(tensor: Tensor, generator: torch.Generator) -> Tensor:
    """Add noise; numbers that are names, as tokens are, stay."""
    if not tensor.is_floating_point():
        return tensor
    return tensor + DISTURBANCE * tensor.std() * torch.randn(tensor.shape, generator=generator).to(tensor)


class _Signs(ConsumerObserver):
    """The signs of one pass, in the order in which they were met."""

    def __init__(self, groups: Groups, rectified: Rectified) -> None:
        super().__init__(groups)
        self._rectified = rectified
        self.signs: list[tuple[str, Tensor]] = []

    def on_rectifier(self, index: int, outputs: Tensor) -> None:
        for group, position, at in self._rectified.at.get(index, ()):
            places = places_of(at, group.size)
            values = outputs.movedim(position, 0)
            if places is not None and len(values) == len(at):
                self.signs.append((group.name, values[places.to(values.device)].reshape(group.size, -1) > 0))

    def on_consumer(self, group: Group, piece: Slice, call: LayerCall) -> None:
        if group.name not in self._rectified.groups:
            values = self.values(group, piece, call)
            if values is not None:
                self.signs.append((group.name, values.transpose(0, 1).flatten(1) > 0))
