"""Second derivatives of the loss: the empirical Fisher information, and Hutchinson's estimate of the Hessian."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call

from pruning.evaluation import Loss
from pruning.gathering.gatherer import Batch, Gathered, Gatherer
from pruning.gathering.products import SquaredProducts
from pruning.structure.groups import Groups
from pruning.structure.slices import own_slices, rows_of
from pruning.tracing.copying import copy_whole
from pruning.tracing.watch import as_call

NEEDS = ("fisher", "hessian_diagonal", "hessian_trace")
_PROBES = 4  # random directions per minibatch


class CurvatureGatherer(Gatherer):
    """Gathers curvature per channel, over the slices that make it.

    fisher: mean over samples of Σ (g·w)², g being the gradient of one sample's loss;
    hessian_diagonal: Σ h_kk w_k²;
    hessian_trace: Σ h_kk.

    The Hessian is that of the mean loss. Its diagonal is estimated by v ⊙ Hv with random signs v, a few for each
    minibatch; the error falls with the number of minibatches, and is nothing where the Hessian is diagonal.
    """

    def __init__(self, groups: Groups, needs: Collection[str], loss: Loss) -> None:
        self._groups, self._needs, self._loss = groups, set(needs) & set(NEEDS), loss
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

    def see(self, batch: Batch) -> None:
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

    def results(self) -> Gathered:
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
