"""Reconstruction: refit what is left of each layer, so that it gives what the whole model's layer gave.

No labels and no gradients: a few hundred inputs and one linear system per layer.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypedDict, Unpack

import torch
from torch import Tensor, nn

from pruning.allocation.dataflow import Unsuitable
from pruning.allocation.tape import Replay, Tape, record
from pruning.batches import Batches
from pruning.containers import Inputs, as_call, count_samples, find_tensors, in_batches, take
from pruning.errors import DataError, PlanError
from pruning.evaluation import Progress, device_of
from pruning.graph.axes import kept
from pruning.graph.dispatch import copied_state, state_copied_once, state_of
from pruning.graph.groups import Groups
from pruning.graph.trace import Trace, trace
from pruning.graph.unwrapping import unwrap
from pruning.plan.plan import Plan
from pruning.recovery.least_squares import Fit, LayerSeen, Refit
from pruning.statistics.collector import readers_of
from pruning.statistics.layer_hooks import Enough, Layer, Watcher, find_layers, observe, parameter_of
from pruning.world import ALONE, Tree, World, joined, shares

RIDGE = 1e-3
MAX_BYTES = 2**31
"""Of what is kept of both models between two layers: 2 GiB. What is more lies in files of the temporary folder."""

_FEWEST = 16  # inputs from which on some are held out
_FEW = 2  # with a single one PyTorch goes ways of its own

_log = logging.getLogger(__name__)


class PassKeywords(TypedDict, total=False):
    """How inputs are passed.

    Attributes:
        batch_size: Inputs per forward pass.
        progress: Told how far it has got.
        world: The processes that share the batches.
    """

    batch_size: int
    progress: Progress | None
    world: World


def reconstruct(
    dense: nn.Module,
    model: nn.Module,
    plan: Plan,
    groups: Groups,
    inputs: Inputs | Batches,
    *,
    ridge: float = RIDGE,
    **keywords: Unpack[PassKeywords],
) -> tuple[Refit, ...]:
    """Refit every layer of a narrowed model, in forward order, in place.

    For each layer with weights W (narrowed), unfolded inputs u in the narrowed model as refitted so far, and residual
    r = (outputs of the original's layer, kept ones) − (its outputs now), over all inputs and positions:

        minimise over Δ and m:  mean ‖r − Δ u − m‖² + λ ‖Δ‖²,      W ← W + Δ,      λ = ridge · mean variance of u

    so the ridge pulls towards the old weights. It is raised where that serves the inputs held out (every fourth), up to
    `MEAN_ALONE`; a layer that no fit serves stays as it is. In the end all inputs are fitted. The mean m goes into the
    layer's bias, or the running mean of the batch norm that reads the layer; where there is neither, no mean is fitted.
    Where the layer's outputs go into a sum (a residual connection), r is the residual of the sum, so that the layer
    makes up for what the other branch lost: all of it where the plan removes blocks, which the original still has.

    Of a layer whose weights something else reads too (an embedding that is tied to the output layer) the mean alone is
    fitted: other weights would change what all layers before it read.

    Layers are all calls of convolutions (grouped, depthwise, transposed) and linear layers, by modules or functions,
    and of recurrent layers the products W_ih x + b_ih and W_hh h + b_hh. There the states h are the original's, of the
    units that are kept: the narrowed layer's own follow from the weights that are sought.
    Each layer runs twice in each model. Memory holds one layer's normal equations (of one that reads more columns than
    `pruning.statistics.moments.WIDE` the rows, a sample of them where there are many), one batch, and at most
    `MAX_BYTES` of what is read behind the layer; the rest lies in files of the temporary folder.

    Source: He et al. 2017, arXiv 1707.06168, for the least squares against the original's outputs; ours
    adds the ridge towards the old weights, the mean, and the other branch's residual.

    Args:
        dense: `narrow(model, plan, ...)`; its weights, biases and batch norms' running means change.
        model: the model that the plan was made for; untouched.
        plan: what was removed.
        groups: found on `model`, without the blocks that the plan removes.
        inputs: [N, ...], unlabelled; a few hundred. A tuple or dict where the model takes several; or batches, all of
            which are read into memory.
        ridge: least strength of the pull, relative to the mean variance of the layer's inputs; `MEAN_ALONE` absorbs
            means and leaves the weights.
        keywords: how the inputs are passed: `batch_size` (64), `progress`, which is told after each layer, and `world`,
            the processes that all call this with the same, and get the same. Each runs the batches of its own shards;
            the first one solves.

    Returns:
        One entry per layer, in forward order; then one for each consumer of a group that is used in some other way.

    Raises:
        DataError: no inputs, or several that hold different numbers of samples.
        PlanError: `dense` isn't the model narrowed by the plan.
    """
    batch_size, world = keywords.get("batch_size", 64), keywords.get("world", ALONE)
    progress = keywords.get("progress")
    given: Inputs = inputs.loaded().inputs if isinstance(inputs, Batches) else inputs
    if count_samples(given) == 0:
        raise DataError("reconstruction needs inputs; a few hundred unlabelled ones do")
    model = unwrap(model)
    device = device_of(dense)
    _check_narrowed(dense, plan, groups)
    parts = [in_batches(part, batch_size) for part in _parts(given)]
    batches = [batch for part in parts for batch in part]
    held_out = [bool(index) for index, part in enumerate(parts) for _ in part]

    def refit(layer: Layer) -> Refit:
        inputs, outputs = _kept_channels(layer, plan, groups)
        if layer.geometry.transposed and layer.geometry.groups > 1:
            return Refit(layer.weight, skipped="it is a transposed convolution with groups")
        if layer.tied and layer.bias is None and layer.running_mean is None:
            return Refit(layer.weight, skipped="something that is no layer reads its weights too, as an embedding does")
        kept, state = (inputs.to(device), outputs.to(device)), _tensors_of(layer, state_of(dense))
        sums: Tree[Any] = Tree(joined)
        for shard in world.here:
            fit = Fit(layer, state, *kept, shard=shard)
            same = all(
                fit.see(*(one.look(batch, layer) for one in (whole, now)), held_out=held_out[batch])
                for batch in shares(len(batches), world.shards)[shard]
            )
            sums.add((int(not same), fit.equations))
        num_unlike, fit.equations = world.join_in_first(sums.result(), joined)

        def write() -> tuple[Refit, dict[str, Tensor]]:
            if num_unlike:
                return Refit(layer.weight, skipped="what it reads one by one has lost channels too"), {}
            made = fit.write(ridge)
            return made, {name: state[name].detach().cpu() for name in layer.parameters if world.ranks > 1}

        made, written = world.from_first(write)
        with torch.no_grad():
            for name, tensor in written.items():
                state[name].copy_(tensor)
        return made

    found = []
    with state_copied_once(), TemporaryDirectory(prefix="secateur-") as folder:
        half = MAX_BYTES // 2
        of_model = trace(model, take(given, slice(1), device)) if plan.blocks else groups.trace
        whole = _Passes(model, of_model, batches, Path(folder, "whole"), half)
        now = _Passes(dense, groups.trace, batches, Path(folder, "now"), half)
        # two, because what parameters alone make, such as positions, has the shape of a batch of one
        few = take(given, slice(2), device)
        layers = find_layers(dense, few, parts=True, recurrent=True)
        if plan.blocks:
            layers = _with_sums_alike(layers, find_layers(model, few, parts=True, recurrent=True))
        for index, layer in enumerate(layers):
            found.append(refit(layer))
            now.refresh()
            if progress is not None:
                progress(index + 1, len(layers))
    seen = {parameter_of(layer.weight)[0] for layer in layers}
    unseen = (weight for weight in readers_of(groups) if weight not in seen)
    return (*found, *(Refit(weight, skipped="no convolution or linear layer uses it as it is") for weight in unseen))


class _Passes:
    """Passes of one model over all batches, which go on from layer to layer.

    Each layer is run twice: it is looked at, and once it has been refitted, passed. What is alive of a batch in between
    is kept, in memory up to a bound and in files beyond it. Where the model's code may look at values (`Unsuitable`),
    the whole model is run for each layer.
    """

    def __init__(
        self, model: nn.Module, traced: Trace, batches: Sequence[Inputs], folder: Path, max_bytes: int
    ) -> None:
        """Begin nothing yet.

        Args:
            model: What is run.
            traced: The engine's trace of it.
            batches: What it is run on.
            folder: For files; made if it is needed.
            max_bytes: What may be kept in memory.
        """
        self._model, self._batches, self._folder, self._max_bytes = model, batches, folder, max_bytes
        self._state = copied_state(model)
        self._tapes: dict[object, Tape] = {}
        self._runs: dict[int, Replay] = {}
        self._held: dict[int, int] = {}
        self._whole = True
        try:
            if any(one.tensors == "real" for one in traced.passes):
                raise Unsuitable("its code looks at values")
            self._prove()
            self._whole = False
        except Unsuitable as reason:
            self._give_up(reason)

    def _give_up(self, reason: Unsuitable) -> None:
        _log.info("the whole model is run for each layer: %s", reason)
        self._whole = True
        self._runs.clear()

    def look(self, batch: int, layer: Layer) -> LayerSeen:
        """Run a batch as far as a layer, and return what was seen of it. Ask for the layers in their order."""
        if not self._whole:
            try:
                return self._look_by_tape(batch, layer)
            except Unsuitable as reason:  # batches of this size take another way than those of the proof
                self._give_up(reason)
        seen = LayerSeen(layer)
        given = take(self._batches[batch], slice(None), device_of(self._model))
        observe(self._model, given, [seen], parts=True, recurrent=True)
        return seen

    def _look_by_tape(self, batch: int, layer: Layer) -> LayerSeen:
        seen = LayerSeen(layer)
        run = self._runs.get(batch) or self._begin(batch)
        reads = run.tape.first_reads
        start = min((reads[name] for name in layer.parameters if name in reads), default=len(run.tape.calls))
        if run.at > start:  # something before has read of what this layer's refit changes
            run = self._begin(batch)
        self._runs[batch] = run
        run.unpark()
        run.advance(start)
        watcher = Watcher([seen], parts=True, recurrent=True)
        watcher.begin(self._state)
        with suppress(Enough):
            run.look_ahead(watcher.on_call)
        self._held[batch] = run.num_bytes
        if sum(self._held.values()) > self._max_bytes:
            self._folder.mkdir(exist_ok=True)
            run.park(self._folder / str(batch))
            self._held[batch] = 0
        return seen

    def refresh(self) -> None:
        """Learn that parameters or buffers of the model have other values now."""
        self._state.update(copied_state(self._model))

    def _begin(self, batch: int) -> Replay:
        tensors, taken = self._tensors(self._batches[batch])
        key = tuple((tensor.shape, tensor.dtype) for tensor in tensors)
        if key not in self._tapes:
            self._tapes[key] = record(self._model, taken)
        return Replay(self._tapes[key], self._state, tensors)

    def _tensors(self, inputs: Inputs) -> tuple[list[Tensor], Inputs]:
        taken = take(inputs, slice(None), device_of(self._model))
        return [tensor.clone() for tensor in find_tensors(as_call(taken))], taken

    def _prove(self) -> None:
        """Run a tape of a few samples on a few others: the outputs are those of the model, to the last bit."""
        few, others = (self._tensors(take(self._batches[at], slice(_FEW))) for at in (0, -1))
        if [tensor.shape for tensor in few[0]] != [tensor.shape for tensor in others[0]]:
            others = few
        expected = observe(self._model, others[1], [])
        found = Replay(record(self._model, few[1]), self._state, others[0]).outputs()
        if len(expected) != len(found) or not all(map(torch.equal, expected, found)):
            raise Unsuitable("its outputs would not be the same")


def _parts(inputs: Inputs) -> tuple[Inputs, ...]:
    """Hold every fourth input out, where there are enough to fit by the others."""
    number = count_samples(inputs)
    if number < _FEWEST:
        return (inputs,)
    held_out = torch.arange(number) % 4 == 3
    return take(inputs, ~held_out), take(inputs, held_out)


def _with_sums_alike(layers: Sequence[Layer], originals: Sequence[Layer]) -> tuple[Layer, ...]:
    """Keep to a layer's own outputs where its sum is another one in the original: that of a block that is gone."""
    sums = {layer.weight: layer.sums for layer in originals}
    return tuple(
        layer if layer.sums == sums.get(layer.weight) else replace(layer, sums=(), summed=False) for layer in layers
    )


def _check_narrowed(dense: nn.Module, plan: Plan, groups: Groups) -> None:
    masks = plan.masks(groups)
    for name, parameter in dense.named_parameters():
        axes = groups.trace.parameters.get(name)
        expected = None if axes is None else tuple(int(kept(axis, masks).sum()) for axis in axes)
        if tuple(parameter.shape) != expected:
            raise PlanError(
                f"parameter {name!r} has shape {tuple(parameter.shape)}, which is not of the model narrowed by this "
                f"plan: expected {expected}; pass narrow(model, plan, ...), and the plan from the original to it"
            )


def _kept_channels(layer: Layer, plan: Plan, groups: Groups) -> tuple[Tensor, Tensor]:
    """Return the indices of the original layer's input and output channels that the narrowed one has."""
    name, index, count = parameter_of(layer.weight)
    axes, masks, along = groups.trace.parameters[name], plan.masks(groups), layer.geometry.input_axis
    outputs = kept(axes[1 - along], masks).chunk(count)[index]
    return kept(axes[along], masks).nonzero().flatten(), outputs.nonzero().flatten()


def _tensors_of(layer: Layer, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Add the parts of parameters that a layer uses to a state, as views."""
    for name in (layer.weight, layer.bias or ""):
        whole, index, count = parameter_of(name)
        if count > 1:
            state[name] = state[whole].detach().chunk(count)[index]
    return state
