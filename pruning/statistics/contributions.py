"""What each channel of a group adds to what its readers give that are no layers.

A channel's cost is the error that its removal adds where it is consumed: where an operator sums over the group's
channels or computes a statistic over them. Of readers there are two kinds:

    layer       a convolution or linear layer that reads by its weights: `pruning.statistics.moments`, so that the
                weights of what stays can make up for what goes; a recurrent layer's products with what goes in and
                with its own state too, unless something that is no layer reads the group as well
    any other   f, an operator of the trace: T_c = f(x) − f(x with channel c at zero), wherever in x the channel lies,
                its own places in the outputs left out

The second needs no definition for each operator. Where scores are products of queries and keys, T_c is q_c k_cᵀ; where
channels are summed, it is the channel; for a convolution whose weights are computed, the channel times those; for a
recurrent layer (where it counts as no layer), what changes in the other states; for a norm, what changes in it. What is
kept of T is

    G[c, d] = Σ over output channels made by weights of the mean over all else of T_c T_d;

where scores go into a softmax, T about its mean along the softmax's axis: a constant makes no difference there. So
removing a set R adds Σ G[c, d] over c, d in R. That is exact where f is a sum over the channels, and of first
order where it is not (a norm, a recurrent layer).

Of several readers the errors are in different units, as of scores and of what a layer gives. They are added up weighed
by how much of them reaches the model's outputs. Where all readers are layers, they are added up as they are.

    gain = Σ (y(f + ε) − y(f))² per sample / Σ over output channels of f of the mean over all else of ε²

f is what an operator gives, y the model's outputs, ε Gaussian noise of a hundredth of f's root mean square. No labels
are needed. The noise points everywhere, an error in one direction; so a gain is right on average alone. It is measured
on one minibatch, of a large model on as few as eight samples of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from math import prod

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from pruning.containers import Inputs, count_samples, take
from pruning.errors import DataError
from pruning.graph.axes import Axis, channels, leaves
from pruning.graph.groups import Group, Groups
from pruning.graph.layers import LayerCall
from pruning.graph.rules.call import tensors_in
from pruning.graph.trace import Operation
from pruning.statistics.collector import Batch, Collected, Collector, Uncounted, numbered, other_readers, readers_of
from pruning.statistics.layer_hooks import Observer, OperatorCall, observe
from pruning.statistics.moments import products

_SOFTMAX = frozenset({"softmax", "_softmax", "log_softmax", "_log_softmax"})
_AHEAD = 16  # operations among which the softmax of scores is looked for
_VALUES = 1 << 24  # values of T that are worked out for an operator and a minibatch
_NOISE = 0.01
_PASS_VALUES = 1 << 26  # values of activations in a pass with noise, of which there is one for each reader
_FEWEST = 8  # samples in such a pass, however many values they have

Reader = int | str
"""An operator by its place among the trace's operations, or a layer by its weights."""


class ContributionGatherer(Collector):
    """Gathers G of all groups that are read by something that is no layer, summed over these readers.

    An operator is run once for each channel, on as many samples of a minibatch as `_VALUES` allow.

    Attributes:
        gains: group name -> its readers' gains, where it has several that are not all layers, divided by their mean.
    """

    NEEDS = ("moments",)
    SUMS = ("_sums", "_uncounted")

    def __init__(self, groups: Groups) -> None:
        self._groups = groups
        self._readers = other_readers(groups)
        self._places = numbered(groups.trace.operations)
        self._calls = Counter(name for name, _ in self._places)
        self._softmax_axes = {index: _softmax_axis(groups.trace.operations, index) for index in self._readers}
        self._sums: dict[tuple[int, str], tuple[Tensor, int]] = {}
        self._uncounted: dict[str, Uncounted] = {}
        others = {index: [group.name for group in read] for index, read in self._readers.items()}
        self._several = readers_in_several_ways(groups, others)
        self.gains: dict[str, dict[Reader, float]] = {}
        self._by_samples: dict[int, set[int]] = {}
        for index, read in self._readers.items():
            operation = groups.trace.operations[index]
            values = max(group.size for group in read) * sum(prod(a.size for a in axes) for axes in operation.outputs)
            samples = max(1, _VALUES * _num_examples(groups) // max(1, values))
            self._by_samples.setdefault(1 << (samples.bit_length() - 1), set()).add(index)

    def update(self, batch: Batch) -> None:
        """Run the batch forward, or the part of it that each operator is run on."""
        if self._several and batch.number == 0:
            self._weigh(batch)
        passes: dict[int, set[int]] = {}
        for samples, indices in self._by_samples.items():
            passes.setdefault(min(samples, batch.num_samples), set()).update(indices)
        for samples, indices in passes.items():
            followed = _Pass(self, indices)
            observe(self._groups.model, take(batch.inputs, slice(samples)), [followed])
            for index in indices:
                if followed.calls[self._places[index][0]] != self._calls[self._places[index][0]]:
                    self._refuse(index)

    def _weigh(self, batch: Batch) -> None:
        """Measure the gains of the readers that are to be compared with each other, on one minibatch."""
        outputs = [axes for operation in self._groups.trace.operations for axes in operation.outputs]
        values = sum(prod(axis.size for axis in axes) for axes in outputs) // _num_examples(self._groups)
        some = take(batch.inputs, slice(max(_FEWEST, _PASS_VALUES // max(1, values))))
        found = measure_gains(self._groups, some, [one for several in self._several.values() for one in several])
        for name, several in self._several.items():
            known = {reader: found[reader] for reader in several if reader in found}
            mean = sum(known.values()) / max(1, len(known))
            self.gains[name] = {reader: gain / mean if mean > 0 else 1.0 for reader, gain in known.items()}

    def add(self, call: OperatorCall, index: int) -> None:
        """Add what a reader's call tells of each group that it reads."""
        for group in self._readers[index]:
            if group.name not in self._uncounted:
                found = self._differences(call, index, group)
                if isinstance(found, Uncounted):
                    self._uncounted[group.name] = found
                    continue
                gram = products(found.T[:, None], found.T[:, None])[0].cpu()
                known, count = self._sums.get((index, group.name), (torch.zeros_like(gram), 0))
                self._sums[index, group.name] = known + gram, count + found.shape[1]

    def _refuse(self, index: int) -> None:
        """Note that an operator isn't called as in the trace."""
        operation = self._groups.trace.operations[index]
        for group in self._readers[index]:
            self._uncounted.setdefault(group.name, Uncounted(_OTHER_CALLS, f"{operation.name} {operation.place}"))

    def _differences(self, call: OperatorCall, index: int, group: Group) -> Tensor | Uncounted:
        """Return T, [size, values], of a part of the outputs where there are many."""
        operation = self._groups.trace.operations[index]
        where = f"{operation.name} {operation.place}"
        if call.func._schema.is_mutable:
            return Uncounted("an operator that writes into its arguments reads its channels", where)
        before, given = _floating(call.result), tensors_in(call.args, call.kwargs)
        if len(given) != len(operation.inputs) or len(tensors_in(call.result)) != len(operation.outputs):
            return Uncounted(_OTHER_CALLS, where)
        own = [
            self._axes_of(axes, t, group) for axes, t in zip(operation.outputs, tensors_in(call.result), strict=True)
        ]
        own = [places for places, t in zip(own, tensors_in(call.result), strict=True) if t.is_floating_point()]
        read = [self._axes_of(axes, t, group) for axes, t in zip(operation.inputs, given, strict=True)]
        if any(places is None for places in (*own, *read)):
            return Uncounted("its channels lie on one axis with others whose number changes with the inputs", where)
        along = self._softmax_axes[index]
        step = -(-group.size * sum(t.numel() for t in before) // _VALUES) | 1
        rows = []
        for channel in range(group.size):
            without = {id(t): _zeroed(t, places, channel) for t, places in zip(given, read, strict=True) if places}
            args, kwargs = tree_map(lambda v: without.get(id(v), v), (tuple(call.args), dict(call.kwargs)))  # noqa: B023
            after = _floating(call.func(*args, **kwargs))
            changes = [(b - a).to(torch.float32) for b, a in zip(before, after, strict=True)]
            if along is not None:
                changes = [t - t.mean(dim=along, keepdim=True) for t in changes]
            kept = [_zeroed(t, places or [], channel) for t, places in zip(changes, own, strict=True)]
            rows.append(torch.cat([t.flatten()[::step] for t in kept]))
        found = torch.stack(rows)
        if not bool(found.isfinite().all()):
            return Uncounted("an operator gives values that are not finite without one of its channels", where)
        return found

    def _axes_of(self, axes: Sequence[Axis], tensor: Tensor, group: Group) -> list[tuple[int, Tensor]] | None:
        """Return the axes on which the group lies with the channel at each index; None where their sizes differ."""
        atom = self._groups.atom(group.name)
        found = []
        if tensor.ndim != len(axes):
            return None
        for position, axis in enumerate(axes):
            if any(leaf is atom for leaf in leaves(axis)):
                if tensor.shape[position] != axis.size:
                    return None
                found.append((position, channels(axis, atom).to(tensor.device)))
        return found

    def compute(self) -> Collected:
        """Return nothing per channel: criteria read `contributions`."""
        return {}

    @property
    def contributions(self) -> dict[str, Tensor | Uncounted]:
        """Group name -> G, [size, size] float64, each reader's weighed by its gain; or why it can't be told."""
        found: dict[str, Tensor | Uncounted] = {}
        for (index, name), (total, count) in self._sums.items():
            made = prod(axis.size for axis in self._groups.trace.operations[index].made)
            weight = self.gains.get(name, {}).get(index, 1.0)
            gram, known = weight * made * total / count, found.get(name)
            found[name] = known + gram if isinstance(known, Tensor) else gram
        return {**found, **self._uncounted}


_OTHER_CALLS = (
    "on these samples the model calls an operator that reads its channels more or less often than on its example"
)


class _Pass(Observer):
    """One forward pass, followed along the operations of the trace."""

    def __init__(self, gatherer: ContributionGatherer, indices: Collection[int]) -> None:
        self._gatherer = gatherer
        self._indices = {gatherer._places[index]: index for index in indices}
        self.calls: Counter[str] = Counter()

    def on_operation(self, call: OperatorCall, layers: Sequence[LayerCall]) -> None:  # noqa: ARG002
        self.calls[call.name] += 1
        index = self._indices.get((call.name, call.number))
        if index is not None:
            self._gatherer.add(call, index)


def _softmax_axis(operations: Sequence[Operation], index: int) -> int | None:
    """Return the axis of the softmax that takes what an operator gives, scaled or masked first; None if none does."""
    shape = [list(leaves(axis)) for axis in operations[index].outputs[0]]
    for operation in operations[index + 1 : index + _AHEAD]:
        if not any([list(leaves(axis)) for axis in axes] == shape for axes in operation.inputs):
            continue  # it works on something else, such as a mask
        if [list(leaves(axis)) for axis in operation.outputs[0]] != shape:
            return None
        if operation.name in _SOFTMAX:
            return int(operation.constants[0]) % len(shape)
    return None


def _num_examples(groups: Groups) -> int:
    try:
        return count_samples(groups.example_inputs)
    except DataError:
        return 1


def _floating(values: object) -> list[Tensor]:
    return [t for t in tensors_in(values) if t.is_floating_point()]


def _zeroed(tensor: Tensor, places: Sequence[tuple[int, Tensor]], channel: int) -> Tensor:
    """Return a copy in which a channel is zero."""
    copy = tensor.clone()
    for axis, at in places:
        copy.index_fill_(axis, (at == channel).nonzero().flatten(), 0)
    return copy


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

    def on_operation(self, call: OperatorCall, layers: Sequence[LayerCall]) -> None:
        layer = next((one for one in layers if one.weight == self._reader), None)
        if (call.name, call.number) != self._place and layer is None:
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
