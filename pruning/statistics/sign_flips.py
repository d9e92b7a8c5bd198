"""How often a unit's sign changes when the inputs are disturbed."""

from __future__ import annotations

import torch
from torch import Tensor

from pruning.containers import with_tensors
from pruning.graph.groups import Group, Groups, Slice
from pruning.graph.layers import LayerCall, places_of
from pruning.statistics.activations import Rectified
from pruning.statistics.collector import Batch, Collected, Collector, Uncounted
from pruning.statistics.layer_hooks import observe
from pruning.statistics.readers import ConsumerObserver

NEEDS = ("inversions",)
DISTURBANCE = 0.1  # standard deviation of the noise, relative to that of the inputs


class InversionGatherer(Collector):
    """Gathers the share of values whose sign differs between the inputs and the same with Gaussian noise added.

    The sign is that of what the rectifiers read (above zero after them); of a group on which none acts, of what its
    consumers read.
    """

    def __init__(self, groups: Groups) -> None:
        self._groups, self._rectified = groups, Rectified(groups)
        self._changed = {group.name: torch.zeros(group.size, dtype=torch.float64) for group in groups}
        self._seen = dict.fromkeys(self._changed, 0)
        self._last = _Signs(groups, self._rectified)

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
