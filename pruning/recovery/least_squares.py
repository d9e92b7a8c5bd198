"""One layer's least-squares problem: what it gives now against what the whole model's layer gave."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from pruning.errors import PlanError
from pruning.graph.layers import LayerCall, from_matrix, output_rows, to_matrix
from pruning.recovery.normal_equations import MEAN_ALONE, no_equations
from pruning.statistics.layer_hooks import Enough, Layer, Observer

_SMALLEST_SCALE = 1e-2  # relative to the largest scale of a batch norm; below it a channel hardly counts


@dataclass(frozen=True)
class Refit:
    """What reconstruction did to one layer.

    Attributes:
        layer: name of its weights.
        error_before: squared error of its outputs relative to the variance of the whole model's; layers before it were
            refitted already.
        error_after: the same with the new weights.
        skipped: why the layer stays as it is; empty if it was refitted.
    """

    layer: str
    error_before: float = 0.0
    error_after: float = 0.0
    skipped: str = ""


class Fit:
    """Gathers normal equations over batches, then writes the solution into the narrowed model's tensors.

    Attributes:
        equations: Of what was seen, which add up with those of other batches (`pruning.world.joined`).
    """

    def __init__(
        self, layer: Layer, state: Mapping[str, Tensor], inputs: Tensor, outputs: Tensor, *, shard: int = 0
    ) -> None:
        """Begin with no rows.

        Args:
            layer: of the narrowed model.
            state: the narrowed model's parameters and buffers; the layer's own are written to.
            inputs: indices of the original layer's input channels that the narrowed one has.
            outputs: likewise of its output channels.
            shard: of the samples, which it will be shown.
        """
        self._layer, self._state, self._inputs, self._outputs = layer, state, inputs, outputs
        self._scale = _scale(layer, state, len(outputs)) if layer.summed else None
        groups, _, columns = to_matrix(state[layer.weight], layer.geometry).shape
        device = state[layer.weight].device
        self.equations = no_equations(groups, columns, len(outputs) // groups, device, shard=shard)

    def see(self, whole: LayerSeen, now: LayerSeen, *, held_out: bool = False) -> bool:
        """Add the rows of a batch, to those that are fitted or to those that judge the fit.

        Args:
            whole: what was seen in the original model.
            now: and in the narrowed one.
            held_out: whether they judge.

        Returns:
            False where the rows of the two models aren't the same, because a group lies along them.

        Raises:
            PlanError: the two models call the layer a different number of times.
        """
        if len(whole.calls) != len(now.calls):
            raise PlanError(
                f"layer {self._layer.weight!r} is called {len(whole.calls)} times in the original and {len(now.calls)} "
                "times in the narrowed model; reconstruct a model with the original that it was narrowed from"
            )
        axis = 1 if self._layer.geometry.kernel else -1
        forced = self._layer.recurrent == "state"
        for index, call in enumerate(map(self._forced, whole.calls) if forced else now.calls):
            wanted = whole.results[index].index_select(axis, self._outputs)
            given = call.outputs if forced else now.results[index]
            if wanted.shape != given.shape:
                return False
            residual = wanted - given
            if self._scale is not None:
                residual = (residual.movedim(axis, -1) * self._scale).movedim(-1, axis)
            target = whole.calls[index].outputs.index_select(axis, self._outputs)
            for here, columns in call.rows():
                wrong, right = (output_rows(tensor[here], call.geometry) for tensor in (residual, target))
                self.equations.add(columns, wrong, right, held_out=held_out)
        return True

    def _forced(self, call: LayerCall) -> LayerCall:
        """Return what the narrowed layer gives on the original's states, of a product of a recurrent layer with these.

        Its own states follow from the weights that are sought, and get nearer to the original's with them.
        """
        states, weight = call.inputs.index_select(-1, self._inputs), self._state[self._layer.weight].detach()
        bias = None if self._layer.bias is None else self._state[self._layer.bias].detach()
        return replace(call, inputs=states, outputs=F.linear(states, weight, bias))

    @torch.no_grad()
    def write(self, ridge: float) -> Refit:
        """Solve, and write weights and mean.

        Where rows were held out, the ridge is raised until the fit is the best on them; where none helps, the weights
        stay and the mean alone moves, or nothing. So do the weights of a layer whose weights something else reads too.
        """
        layer = self._layer
        shifted = layer.bias is not None or layer.running_mean is not None
        (change, missing), before, after = self.equations.solve(MEAN_ALONE if layer.tied else ridge, shifted)
        weight = self._state[layer.weight]
        if not layer.tied:
            weight += from_matrix(change.mT.contiguous(), weight.shape, layer.geometry).to(weight)
        if layer.bias is not None:
            self._state[layer.bias].add_(missing.flatten().to(weight))
        elif layer.running_mean is not None:
            self._state[layer.running_mean].sub_(missing.flatten().to(weight))
        return Refit(layer.weight, before, after)


class LayerSeen(Observer):
    """One layer's calls and their results: its outputs, or the sums they go into."""

    def __init__(self, layer: Layer) -> None:
        self._layer = layer
        self.calls: list[LayerCall] = []
        self.results: list[Tensor] = []

    def on_layer(self, call: LayerCall) -> None:
        """Keep what the layer read and gave."""
        if call.weight == self._layer.weight:
            # cloned, because what follows may change tensors in place
            self.calls.append(replace(call, inputs=call.inputs.clone(), outputs=call.outputs.clone()))
            if not self._layer.summed:
                self._have(self.calls[-1].outputs)

    def on_sum(self, weight: str, _total: Tensor, _place: str) -> None:
        """Keep the sum that its outputs go into."""
        if self._layer.summed and weight == self._layer.weight:
            self._have(_total.clone())

    def _have(self, result: Tensor) -> None:
        self.results.append(result)
        if len(self.results) == self._layer.num_calls:
            raise Enough


def _scale(layer: Layer, state: Mapping[str, Tensor], num_outputs: int) -> Tensor:
    """Return what turns a difference after the batch norm into one before it, [outputs]."""
    if layer.running_mean is None:
        return torch.ones(num_outputs, device=state[layer.weight].device)
    prefix = layer.running_mean.removesuffix("running_mean")
    scale = state[prefix + "running_var"].clamp(min=1e-12).rsqrt()
    if prefix + "weight" in state:
        scale = scale * state[prefix + "weight"].detach()
    least = _SMALLEST_SCALE * float(scale.abs().max())
    return scale / (scale.square() + least**2)
