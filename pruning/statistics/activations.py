"""What forward passes tell of activations: where they are zero, how they vary, how they relate to each other."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from math import floor, frexp
from typing import Any

import torch
from torch import Tensor

from pruning.graph.axes import channels, leaves
from pruning.graph.groups import Group, Groups, Slice
from pruning.graph.layers import LayerCall, column_channels, places_of, to_matrix
from pruning.statistics.collector import (
    NOT_BY_SAMPLE,
    UNEQUAL,
    Batch,
    Collected,
    Collector,
    ConsumerObserver,
    Summing,
    Uncounted,
)
from pruning.statistics.layer_hooks import RECTIFIERS, Observer, observe

BINS = 128


class ActivationGatherer(Collector):
    """Runs one forward pass per batch for all observers of activations."""

    NEEDS = ("activity", "contribution_variance", "entropy", "mean_magnitude")

    def __init__(self, groups: Groups, needs: Collection[str]) -> None:
        self._model = groups.model
        self._observers: dict[str, Activity | Contributions | Entropies | MeanMagnitudes] = {}
        if "activity" in needs:
            self._observers["activity"] = Activity(groups)
        if "contribution_variance" in needs:
            self._observers["contribution_variance"] = Contributions(groups)
        if "entropy" in needs:
            self._observers["entropy"] = Entropies(groups)
        if "mean_magnitude" in needs:
            self._observers["mean_magnitude"] = MeanMagnitudes(groups)

    def sums(self) -> dict[str, Any]:
        """Return what each observer added up."""
        return {need: observer.sums() for need, observer in self._observers.items()}

    def go_on_from(self, sums: Mapping[str, Any]) -> None:
        """Put what they added up in the place of these sums."""
        for need, observer in self._observers.items():
            observer.go_on_from(sums[need])

    def update(self, batch: Batch) -> None:
        """Run the batch forward."""
        for observer in self._observers.values():
            observer.samples = batch.num_samples
        observe(self._model, batch.inputs, list(self._observers.values()), recurrent=True)

    def compute(self) -> Collected:
        """Return each observer's results."""
        return {need: observer.compute() for need, observer in self._observers.items()}


class Rectified:
    """Which rectifiers of a model's forward pass act on which groups, along which axis."""

    def __init__(self, groups: Groups) -> None:
        calls = [operation for operation in groups.trace.operations if operation.name in RECTIFIERS]
        self.at: dict[int, list[tuple[Group, int, Tensor]]] = {}
        for index, operation in enumerate(calls):
            bounds = [value for value in operation.constants if isinstance(value, int | float)]
            if operation.name != "relu" and (not bounds or bounds[0] != 0):
                continue
            for group in groups:
                atom = groups.atom(group.name)
                for position, axis in enumerate(operation.outputs[0]):
                    if atom in set(leaves(axis)):
                        self.at.setdefault(index, []).append((group, position, channels(axis, atom)))
        self.groups = {group.name for found in self.at.values() for group, _, _ in found}


class Activity(Observer, Summing):
    """The share of values above zero after the rectifiers that act on a group."""

    SUMS = ("_above", "_seen")
    samples = 0

    def __init__(self, groups: Groups) -> None:
        self._groups = groups
        self._rectified = Rectified(groups)
        self._above = {group.name: torch.zeros(group.size, dtype=torch.float64) for group in groups}
        self._seen = dict.fromkeys(self._above, 0)

    def on_rectifier(self, index: int, outputs: Tensor) -> None:
        """Count what is above zero."""
        for group, position, at in self._rectified.at.get(index, ()):
            values = outputs.detach().movedim(position, 0)
            places = places_of(at, group.size)
            if places is not None and len(values) == len(at):
                rows = values[places.to(values.device)].reshape(group.size, -1)
                self._above[group.name] += (rows > 0).sum(dim=1).to("cpu", torch.float64)
                self._seen[group.name] += rows.shape[1]

    def compute(self) -> dict[str, Tensor | Uncounted]:
        """Return the shares, or that no rectifier acts on a group."""
        return {
            group.name: self._above[group.name] / self._seen[group.name]
            if self._seen[group.name]
            else Uncounted("no ReLU acts on its channels", f"made by {group.slices[0].parameter}")
            for group in self._groups
        }


class Contributions(ConsumerObserver):
    """The variance over samples of ‖X_c * W_{i,c}‖_F, summed over the consumers' outputs i.

    ‖X * w‖² = wᵀ (P Pᵀ) w, P being the unfolded X: so the outputs need not be computed one by one.
    """

    SUMS = (*ConsumerObserver.SUMS, "_sums")
    samples = 0

    def __init__(self, groups: Groups) -> None:
        super().__init__(groups)
        self._weights = {name: p.detach() for name, p in groups.model.named_parameters(remove_duplicate=False)}
        self._sums: dict[tuple[str, str], tuple[int, Tensor, Tensor]] = {}

    def on_consumer(self, group: Group, piece: Slice, call: LayerCall) -> None:
        """Add the norms of the contributions."""
        at = column_channels(piece, call.geometry)
        columns = [places_of(row, group.size) for row in at]
        if call.inputs.shape[0] != self.samples or any(places is None for places in columns):
            kind = UNEQUAL if call.inputs.shape[0] == self.samples else NOT_BY_SAMPLE
            self.refuse(group, kind, call.weight)
            return
        matrix = to_matrix(self._weights[piece.parameter], call.geometry)
        for here, rows in call.rows():
            count = len(range(*here.indices(self.samples)))
            by_sample = rows.reshape(count, -1, *rows.shape[1:])
            for index, places in enumerate(columns):
                assert places is not None, "checked above"
                taps = by_sample[:, :, index][:, :, places.to(rows.device)].double()  # [n, positions, size, taps]
                products = torch.einsum("nlcs,nlct->ncst", taps, taps)
                weights = matrix[index][:, places.to(matrix.device)].double()  # [outputs, size, taps]
                squares = torch.einsum("ncst,ocs,oct->noc", products, weights, weights).clamp(min=0).cpu()
                zeros = torch.zeros(squares.shape[1:], dtype=torch.float64)
                key = (group.name, f"{call.weight}:{index}")
                seen, total, total_squared = self._sums.get(key, (0, zeros, zeros))
                self._sums[key] = (seen + count, total + squares.sqrt().sum(dim=0), total_squared + squares.sum(dim=0))

    def compute(self) -> dict[str, Tensor | Uncounted]:
        """Return the variances, [size] each."""
        out: dict[str, Tensor | Uncounted] = {}
        for group in self.groups:
            found = [sums for (name, _), sums in self._sums.items() if name == group.name]
            variance = sum(
                ((squared / seen - (total / seen).square()).clamp(min=0).sum(dim=0) for seen, total, squared in found),
                torch.zeros(group.size, dtype=torch.float64),
            )
            out[group.name] = self.reason(group) or variance
        return out


class Entropies(ConsumerObserver):
    """The entropy of a channel's average over positions, over the samples, in bins of one width per consumer.

    The width is the smallest power of two by which the range of all of a layer's channels takes at most `BINS` bins.
    As the range grows, bins are joined two by two: so one pass gives what two would, in memory that stays.
    """

    SUMS = (*ConsumerObserver.SUMS, "_histograms")
    samples = 0

    def __init__(self, groups: Groups) -> None:
        super().__init__(groups)
        self._histograms: dict[tuple[str, str], Histogram] = {}

    def on_consumer(self, group: Group, piece: Slice, call: LayerCall) -> None:
        """Count the averages."""
        values = self.values(group, piece, call)
        if values is None:
            return
        if len(values) != self.samples:
            self.refuse(group, NOT_BY_SAMPLE, call.weight)
            return
        key = (group.name, call.weight)
        self._histograms.setdefault(key, Histogram(group.size)).add(values.mean(dim=2).T.to("cpu", torch.float64))

    def compute(self) -> dict[str, Tensor | Uncounted]:
        """Return the mean over the consumers of the entropies, in nats."""
        out: dict[str, Tensor | Uncounted] = {}
        for group in self.groups:
            found = [one.entropy() for (name, _), one in self._histograms.items() if name == group.name]
            out[group.name] = self.reason(group) or torch.stack(found).mean(dim=0)
        return out


class MeanMagnitudes(ConsumerObserver):
    """The root of the sum over samples of a channel's squared mean magnitude over positions, over all consumers."""

    samples = 0

    def __init__(self, groups: Groups) -> None:
        super().__init__(groups)
        self._squares: dict[str, Tensor] = {}

    def on_consumer(self, group: Group, piece: Slice, call: LayerCall) -> None:
        """Add the squares."""
        if len(call.inputs) != self.samples:
            self.refuse(group, NOT_BY_SAMPLE, call.weight)
            return
        if call.geometry.kernel:
            values = self.values(group, piece, call)
            if values is not None:
                self._add(group, values.abs().mean(dim=2, dtype=torch.float64)[:, :, None])
            return
        (row,) = column_channels(piece, call.geometry)
        places = places_of(row, group.size)
        if places is None:
            self.refuse(group, UNEQUAL, call.weight)
            return
        for here, rows in call.rows():
            by_sample = rows[:, 0].reshape(len(range(*here.indices(self.samples))), -1, rows.shape[-1])
            means = by_sample.abs().mean(dim=1, dtype=torch.float64)
            self._add(group, means[:, places.to(means.device)])

    def _add(self, group: Group, means: Tensor) -> None:
        """Add the squares of means [samples, size, columns of a channel]."""
        squares = means.square().sum(dim=(0, 2)).cpu()
        self._squares[group.name] = self._squares.get(group.name, torch.zeros_like(squares)) + squares

    def compute(self) -> dict[str, Tensor | Uncounted]:
        """Return the roots, [size] each."""
        return {group.name: self.reason(group) or self._squares[group.name].sqrt() for group in self.groups}


class Histogram:
    """Counts of several channels' values in common bins [k·2^e, (k+1)·2^e), at most `BINS` of them."""

    def __init__(self, channels: int) -> None:
        self.counts = torch.zeros(channels, BINS, dtype=torch.float64)
        self.low, self.high, self.exponent = float("inf"), float("-inf"), -1000

    def add(self, values: Tensor) -> None:
        """Count values [channels, samples], float64 and finite."""
        self._widen(float(values.min()), float(values.max()))
        bins = (values / 2.0**self.exponent).floor().to(torch.int64) - floor(self.low / 2.0**self.exponent)
        self.counts.scatter_add_(1, bins, torch.ones_like(values))

    def joined(self, other: Histogram) -> Histogram:
        """The counts of both: those of one that was given all values. Both are changed."""
        self._widen(other.low, other.high, other.exponent)
        other._widen(self.low, self.high, self.exponent)
        self.counts += other.counts
        return self

    def _widen(self, low: float, high: float, exponent: int = -1000) -> None:
        """Choose the bins for values of another range too, and move the counts there."""
        low, high = min(self.low, low), max(self.high, high)
        finest = frexp(max(abs(low), abs(high), 1e-30))[1] - 40  # below that rounding decides
        exponent = max(self.exponent, exponent, finest)
        while floor(high / 2.0**exponent) - floor(low / 2.0**exponent) >= BINS:
            exponent += 1
        counts = torch.zeros_like(self.counts)
        if self.low <= self.high:
            old = floor(self.low / 2.0**self.exponent) + torch.arange(BINS)
            moved = (old >> (exponent - self.exponent)) - floor(low / 2.0**exponent)
            counts.index_add_(1, moved.clamp(max=BINS - 1), self.counts)  # beyond the last all is empty
        self.counts, self.low, self.high, self.exponent = counts, low, high, exponent

    def entropy(self) -> Tensor:
        """Return −Σ p log p of each channel, [channels]."""
        shares = self.counts / self.counts.sum(dim=1, keepdim=True)
        entropies: Tensor = torch.special.entr(shares).sum(dim=1)
        return entropies
