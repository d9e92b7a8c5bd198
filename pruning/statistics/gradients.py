"""What backward passes tell: gradients, the empirical Fisher information, Hutchinson's estimate of the Hessian."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.utils._pytree import tree_map

from pruning.containers import Inputs, as_call, count_samples, find_tensors, take, with_tensors
from pruning.evaluation import Loss
from pruning.graph.groups import Groups
from pruning.graph.layers import own_slices, rows_of
from pruning.graph.module_copy import copy_whole
from pruning.statistics.collector import (
    NOT_BY_SAMPLE,
    UNEQUAL,
    Batch,
    Collected,
    Collector,
    Uncounted,
    by_channel,
    readers_of,
    unowned,
)
from pruning.statistics.module_hooks import changed_inputs, module_channels, owner_of


class GradientGatherer(Collector):
    """Gathers what gradients tell per channel.

    gradients: Σ over minibatches of (Σ g·w)², over the slices that make the channel;
    gradient_magnitudes: Σ over minibatches of Σ |g|, over the same slices;
    activation_gradients: Σ over samples of |Σ over consumers of the mean over positions of ∂L/∂z · z|.
    """

    NEEDS = ("gradients", "gradient_magnitudes", "activation_gradients")
    SUMS = ("_totals", "_samples", "_unowned")

    def __init__(self, groups: Groups, needs: Collection[str], loss: Loss) -> None:
        self._groups, self._needs, self._loss = groups, set(needs) & set(self.NEEDS), loss
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


_GRADIENTS = 1 << 25  # values of per-sample gradients at a time

_log = logging.getLogger(__name__)


class SquaredProducts:
    """(g·w)² of some parameters of a model in evaluation mode."""

    def __init__(self, model: nn.Module, parameters: Mapping[str, Tensor], loss: Loss) -> None:
        self._model, self._parameters, self._loss = model, dict(parameters), loss
        self._vectorised = True

    def of_batch(self, inputs: Inputs, targets: Any) -> dict[str, Tensor]:
        """Return (g·w)² with g the gradient of the minibatch's mean loss."""
        own = {name: tensor.clone().requires_grad_(True) for name, tensor in self._parameters.items()}
        with torch.enable_grad():
            value = self._loss(functional_call(self._model, own, *as_call(inputs)), targets)
            found = torch.autograd.grad(value, list(own.values()), allow_unused=True)
        gradients = zip(self._parameters.items(), found, strict=True)
        return {name: (torch.zeros_like(w) if g is None else g * w).square() for (name, w), g in gradients}

    def of_samples(self, inputs: Inputs, targets: Any) -> dict[str, Tensor]:
        """Return the sum over samples of (g·w)², with g the gradient of one sample's loss."""
        size = sum(parameter.numel() for parameter in self._parameters.values())
        step = max(1, _GRADIENTS // max(1, size))
        totals = {name: torch.zeros_like(parameter) for name, parameter in self._parameters.items()}
        for start in range(0, count_samples(targets), step):
            here = slice(start, start + step)
            gradients = self._per_sample(take(inputs, here), take(targets, here))
            for name, gradient in gradients.items():
                totals[name] += (gradient * self._parameters[name]).square().sum(dim=0)
        return totals

    def _per_sample(self, inputs: Inputs, targets: Any) -> dict[str, Tensor]:
        """Return each sample's gradients, [samples, ...] per parameter."""
        tensors = find_tensors(inputs)

        def loss_of(parameters: Mapping[str, Tensor], sample: list[Tensor], target: Any) -> Tensor:
            alone = {id(tensor): one[None] for tensor, one in zip(tensors, sample, strict=True)}
            call = as_call(with_tensors(inputs, lambda tensor: alone[id(tensor)]))
            value: Tensor = self._loss(
                functional_call(self._model, dict(parameters), *call), tree_map(lambda one: one[None], target)
            )
            return value

        of_one = grad(loss_of)
        if self._vectorised:
            try:
                return _as_tensors(vmap(of_one, in_dims=(None, 0, 0))(self._parameters, tensors, targets))
            except RuntimeError as fault:  # operators that change tensors in place, control flow that reads values
                self._vectorised = False
                _log.info("per-sample gradients one by one, since vmap can't take this model: %s", fault)
        rows = [
            of_one(self._parameters, [tensor[at] for tensor in tensors], tree_map(lambda one: one[at], targets))  # noqa: B023
            for at in range(count_samples(targets))
        ]
        return {name: torch.stack([row[name] for row in rows]) for name in self._parameters}


def _as_tensors(found: Any) -> dict[str, Tensor]:
    return dict(found)


_PROBES = 4  # random directions per minibatch


class CurvatureGatherer(Collector):
    """Gathers curvature per channel, over the slices that make it.

    fisher: mean over samples of Σ (g·w)², g being the gradient of one sample's loss;
    hessian_diagonal: Σ h_kk w_k²;
    hessian_trace: Σ h_kk.

    The Hessian is that of the mean loss. Its diagonal is estimated by v ⊙ Hv with random signs v, a few for each
    minibatch; the error falls with the number of minibatches, and is nothing where the Hessian is diagonal.
    """

    NEEDS = ("fisher", "hessian_diagonal", "hessian_trace")
    SUMS = ("_totals", "_samples")

    def __init__(self, groups: Groups, needs: Collection[str], loss: Loss) -> None:
        self._groups, self._needs, self._loss = groups, set(needs) & set(self.NEEDS), loss
        self._model = copy_whole(groups.model).eval().requires_grad_(False)
        parameters = dict(self._model.named_parameters(remove_duplicate=False))
        self._pieces = {group.name: own_slices(group, parameters) for group in groups}
        wanted = sorted({piece.parameter for own in self._pieces.values() for piece in own})
        self._parameters: dict[str, Tensor] = {name: parameters[name].detach() for name in wanted}
        self._totals = {
            need: {group.name: torch.zeros(group.size, dtype=torch.float64) for group in groups} for need in self._needs
        }
        self._squares = SquaredProducts(self._model, self._parameters, loss)
        self._samples = 0

    def update(self, batch: Batch) -> None:
        """Add the per-sample gradients, and the products of the Hessian with random signs."""
        self._samples += batch.num_samples
        if "fisher" in self._needs:
            self._add("fisher", self._squares.of_samples(batch.inputs, batch.labels()))
        if self._needs & {"hessian_diagonal", "hessian_trace"}:
            diagonal = self._hessian_diagonal(batch)
            self._add("hessian_trace", diagonal)
            self._add(
                "hessian_diagonal",
                {name: values * self._parameters[name].square() for name, values in diagonal.items()},
            )

    def compute(self) -> Collected:
        """Return the means over the samples."""
        count = max(1, self._samples)
        return {need: {name: sums / count for name, sums in found.items()} for need, found in self._totals.items()}

    def _add(self, need: str, values: Mapping[str, Tensor]) -> None:
        if need not in self._needs:
            return
        for group in self._groups:
            for piece in self._pieces[group.name]:
                rows = rows_of(values[piece.parameter], piece, group.size)
                self._totals[need][group.name] += rows.sum(dim=1).to("cpu", torch.float64)

    def _hessian_diagonal(self, batch: Batch) -> dict[str, Tensor]:
        """Return the estimate of the batch's share of the Hessian's diagonal, times its number of samples."""
        own = {name: parameter.clone().requires_grad_(True) for name, parameter in self._parameters.items()}
        totals = {name: torch.zeros_like(parameter) for name, parameter in self._parameters.items()}
        with torch.enable_grad():
            value = self._loss(functional_call(self._model, own, *as_call(batch.inputs)), batch.labels())
            gradients = torch.autograd.grad(value, list(own.values()), create_graph=True, allow_unused=True)
            used = [(name, g) for name, g in zip(own, gradients, strict=True) if g is not None and g.requires_grad]
            for probe in range(_PROBES if used else 0):
                signs = [_signs(own[name], batch.generator) for name, _ in used]
                products = torch.autograd.grad(
                    [gradient for _, gradient in used],
                    [own[name] for name, _ in used],
                    signs,
                    retain_graph=probe + 1 < _PROBES,
                    allow_unused=True,
                )
                for (name, _), sign, product in zip(used, signs, products, strict=True):
                    if product is not None:
                        totals[name] += sign * product / _PROBES
        return {name: total * batch.num_samples for name, total in totals.items()}


def _signs(like: nn.Parameter | Tensor, generator: torch.Generator) -> Tensor:
    drawn = torch.randint(2, like.shape, generator=generator)
    return (2 * drawn - 1).to(like)
