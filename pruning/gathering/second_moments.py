"""The second moments of what consumers read: the normal equations of every least-squares criterion."""

from __future__ import annotations

from pruning.containers import take
from pruning.gathering.consumers import readers_of
from pruning.gathering.gatherer import Batch, Gathered, Gatherer
from pruning.gathering.moments import Moments
from pruning.gathering.observation import Layer, Observer, find_layers, observe
from pruning.structure.groups import Groups
from pruning.structure.layers import LayerCall

NEEDS = ("moments",)


class MomentGatherer(Gatherer, Observer):
    """Gathers the moments of the unfolded inputs of every layer that consumes a group.

    They take 8 · columns² bytes per layer, however many samples there are.

    Attributes:
        layers: the consumers, by their weights.
        moments: of their unfolded inputs.
    """

    def __init__(self, groups: Groups) -> None:
        self._model = groups.model
        self._consumers = set(readers_of(groups))
        self.layers: dict[str, Layer] = {}
        self.moments: dict[str, Moments] = {}

    def see(self, batch: Batch) -> None:
        """Run the batch forward."""
        if not self.layers:
            found = find_layers(self._model, take(batch.inputs, slice(1)))
            self.layers = {layer.weight: layer for layer in found if layer.weight in self._consumers}
        observe(self._model, batch.inputs, [self])

    def on_layer(self, call: LayerCall) -> None:
        """Add the rows of a call."""
        if call.weight in self.layers:
            for _, columns in call.rows():
                known = self.moments.get(call.weight) or Moments.none(*columns.shape[1:])
                self.moments[call.weight] = known.plus(columns)

    def results(self) -> Gathered:
        """Return nothing per channel: criteria read `layers` and `moments`."""
        return {}
