"""What one backward pass per minibatch tells."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from pruning.evaluation import Loss
from pruning.graph.groups import Groups
from pruning.graph.layers import own_slices, rows_of
from pruning.graph.module_copy import copy_whole
from pruning.statistics.collector import Batch, Collected, Collector, Uncounted
from pruning.statistics.layer_hooks import changed_inputs, module_channels, owner_of
from pruning.statistics.readers import NOT_BY_SAMPLE, UNEQUAL, by_channel, readers_of, unowned

NEEDS = ("gradients", "gradient_magnitudes", "activation_gradients")


class GradientGatherer(Collector):
    """Gathers what gradients tell per channel.

    gradients: Σ over minibatches of (Σ g·w)², over the slices that make the channel;
    gradient_magnitudes: Σ over minibatches of Σ |g|, over the same slices;
    activation_gradients: Σ over samples of |Σ over consumers of the mean over positions of ∂L/∂z · z|.
    """

    def __init__(self, groups: Groups, needs: Collection[str], loss: Loss) -> None:
        self._groups, self._needs, self._loss = groups, set(needs) & set(NEEDS), loss
        self._model = copy_whole(groups.model).eval()
        parameters = dict(self._model.named_parameters(remove_duplicate=False))
        for parameter in parameters.values():
            parameter.requires_grad_(True)
        by_weights = self._needs & {"gradients", "gradient_magnitudes"}
        self._pieces = {group.name: own_slices(group, parameters) for group in groups} if by_weights else {}
        wanted = sorted({piece.parameter for own in self._pieces.values() for piece in own})
        self._parameters = {name: parameters[name] for name in wanted}
        self._readers = readers_of(groups) if "activation_gradients" in self._needs else {}
        self._unowned = {group.name: unowned(groups, group) for group in groups} if self._readers else {}
        self._totals = {
            need: {group.name: torch.zeros(group.size, dtype=torch.float64) for group in groups} for need in self._needs
        }
        self._samples = 0

    def update(self, batch: Batch) -> None:
        """Run forward and backward."""
        read: list[tuple[str, Tensor, int]] = []

        def note(weight: str, inputs: Tensor, axis: int) -> Tensor:
            own = inputs.view_as(inputs) if inputs.requires_grad else inputs.detach().requires_grad_(True)
            read.append((weight, own, axis))
            return own

        with torch.enable_grad(), changed_inputs(self._model, self._readers, note):
            value = self._loss(batch.run(self._model), batch.labels())
            sources = [*self._parameters.values(), *(own for _, own, _ in read)]
            found = torch.autograd.grad(value, sources, allow_unused=True) if sources else ()
        gradients = [torch.zeros_like(s) if g is None else g for s, g in zip(sources, found, strict=True)]
        self._samples += batch.num_samples
        by_name = dict(zip(self._parameters, gradients, strict=False))
        if "gradients" in self._needs:
            self._add_products(by_name)
        if "gradient_magnitudes" in self._needs:
            self._add_magnitudes(by_name)
        if "activation_gradients" in self._needs:
            self._add_activations(read, gradients[len(by_name) :], batch.num_samples)

    def _add_products(self, gradients: dict[str, Tensor]) -> None:
        products = {name: gradient * self._parameters[name].detach() for name, gradient in gradients.items()}
        for group in self._groups:
            sums = torch.zeros(group.size, dtype=torch.float64)
            for piece in self._pieces[group.name]:
                sums += rows_of(products[piece.parameter], piece, group.size).sum(dim=1).to("cpu", torch.float64)
            self._totals["gradients"][group.name] += sums.square()

    def _add_magnitudes(self, gradients: dict[str, Tensor]) -> None:
        for group in self._groups:
            for piece in self._pieces[group.name]:
                rows = rows_of(gradients[piece.parameter].abs(), piece, group.size)
                self._totals["gradient_magnitudes"][group.name] += rows.sum(dim=1).to("cpu", torch.float64)

    def _add_activations(self, read: list[tuple[str, Tensor, int]], gradients: list[Tensor], count: int) -> None:
        sums = {group.name: torch.zeros(count, group.size, dtype=torch.float64) for group in self._groups}
        for (weight, own, axis), gradient in zip(read, gradients, strict=True):
            for group, piece in self._readers[weight]:
                if own.shape[0] != count or axis == 0:
                    self._unowned[group.name] = Uncounted(NOT_BY_SAMPLE, weight)
                    continue
                product = (own.detach() * gradient).movedim(axis, 1)
                module = owner_of(self._model, weight)
                assert module is not None, "only owned weights are hooked"
                values = by_channel(product.reshape(*product.shape[:2], -1), module_channels(module, piece), group.size)
                if values is None:
                    self._unowned[group.name] = Uncounted(UNEQUAL, weight)
                else:  # the loss is the mean over the samples, so each one's own gradient is `count` times as large
                    sums[group.name] += count * values.mean(dim=2).to("cpu", torch.float64)
        for name, values in sums.items():
            self._totals["activation_gradients"][name] += values.abs().sum(dim=0)

    def compute(self) -> Collected:
        """Return the sums, of the activation gradients the mean over the samples."""
        out: dict[str, dict[str, Tensor | Uncounted]] = {need: {**by_group} for need, by_group in self._totals.items()}
        if "activation_gradients" in out:
            for name, values in self._totals["activation_gradients"].items():
                out["activation_gradients"][name] = self._unowned.get(name) or values / max(1, self._samples)
        return out
