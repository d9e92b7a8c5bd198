"""How much of an error at one place of a network reaches its outputs: what errors at different places are weighed by.

    gain = Σ (y(f + ε) − y(f))² per sample / Σ over output channels of f of the mean over all else of ε²

f is what an operator gives, y the model's outputs, ε Gaussian noise of a hundredth of f's root mean square. No labels
are needed. The noise points everywhere, an error in one direction; so a gain is right on average alone.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from math import prod

import torch

from pruning.containers import Inputs, count_samples
from pruning.graph.groups import Groups
from pruning.graph.layers import LayerCall
from pruning.graph.rules.call import tensors_in
from pruning.statistics.layer_hooks import Observer, OperatorCall, observe
from pruning.statistics.readers import numbered, readers_of

_NOISE = 0.01

Reader = int | str
"""An operator by its place among the trace's operations, or a layer by its weights."""


def readers_in_several_ways(groups: Groups, others: Mapping[int, Collection[str]]) -> dict[str, list[Reader]]:
    """Return the readers of each group that has several, not all of them layers.

    Args:
        groups: of the model.
        others: place of each operator that is no layer -> names of the groups that it reads.
    """
    found: dict[str, list[Reader]] = {}
    for index, names in others.items():
        for name in names:
            found.setdefault(name, []).append(index)
    for weight, read in readers_of(groups).items():
        for group, _ in read:
            if group.name in found and weight not in found[group.name]:
                found[group.name].append(weight)
    return {name: readers for name, readers in found.items() if len(readers) > 1}


def measure_gains(groups: Groups, inputs: Inputs, readers: Collection[Reader]) -> dict[Reader, float]:
    """Run the model once as it is and once for each reader with noise in what that gives.

    Readers that these inputs don't call are left out.
    """
    whole = observe(groups.model, inputs, [])
    gains: dict[Reader, float] = {}
    for reader in dict.fromkeys(readers):
        noise = _Noise(groups, reader)
        changed = observe(groups.model, inputs, [noise])
        if noise.error > 0:
            pairs = zip(whole, changed, strict=True)
            moved = sum(float((after - before).double().square().sum()) for before, after in pairs)
            gains[reader] = moved / count_samples(inputs) / noise.error
    return gains


class _Noise(Observer):
    """Disturbs what one reader gives."""

    def __init__(self, groups: Groups, reader: Reader) -> None:
        self._groups, self._reader = groups, reader
        self._place = numbered(groups.trace.operations)[reader] if isinstance(reader, int) else None
        self._generator = torch.Generator().manual_seed(0)
        self.error = 0.0

    def on_operation(self, call: OperatorCall, layer: LayerCall | None) -> None:
        found = (call.name, call.number) == self._place or (layer is not None and layer.weight == self._reader)
        if not found:
            return
        if isinstance(self._reader, int):
            made = prod(axis.size for axis in self._groups.trace.operations[self._reader].made)
        else:
            assert layer is not None, "it is called by its weights"
            made = layer.outputs.shape[1 if layer.geometry.kernel else -1]
        given = [t for t in tensors_in(call.result) if t.is_floating_point()]
        squares = sum(float(t.double().square().sum()) for t in given)
        scale = _NOISE * (squares / max(1, sum(t.numel() for t in given))) ** 0.5
        for tensor in given:
            tensor.add_(scale * torch.randn(tensor.shape, generator=self._generator).to(tensor))
        self.error = made * scale**2
