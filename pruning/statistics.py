"""What criteria look at: weights, and what one pass over the data tells of every group at once."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from pruning.errors import CriterionError, ModelError, unknown_name
from pruning.evaluation import Loss, Progress, Samples, check_samples, cross_entropy, device_of
from pruning.groups import Group, Groups, Slice

NEEDS = ("weights", "gradients")
"""What a criterion may ask for: the weights, and products of gradients and weights (these need samples)."""


@dataclass(frozen=True)
class Statistics:
    """What is known of a model's groups.

    Attributes:
        tensors: parameters and buffers by name, detached.
        seed: of the criteria that draw random numbers.
        squared_gradient_products: per group [size]: Σ over minibatches of (Σ g·w)², see `collect`; empty unless
            "gradients" was asked for.
    """

    tensors: Mapping[str, Tensor]
    seed: int = 0
    squared_gradient_products: Mapping[str, Tensor] = field(default_factory=dict)

    def rows(self, piece: Slice, size: int) -> Tensor:
        """Return a slice's values by channel, [size, values per channel], float64 on the CPU."""
        return rows_of(self.tensors[piece.parameter], piece, size).to("cpu", torch.float64)

    def generator(self, group: Group) -> torch.Generator:
        """Return a generator of the group's own, the same whatever order groups are scored in."""
        digest = hashlib.sha256(f"{self.seed}:{group.name}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def rows_of(tensor: Tensor, piece: Slice, size: int) -> Tensor:
    """Arrange a tensor by the channels that a slice puts on one of its axes.

    Args:
        tensor: the slice's parameter, or anything of its shape.
        piece: the slice.
        size: channels of the group.

    Returns:
        [size, values per channel]. Where a channel has several places on the axis, they follow one another.

    Raises:
        ModelError: the channels have unequal numbers of places.
    """
    channels = piece.channels()
    places = torch.argsort(channels, stable=True)[int((channels < 0).sum()) :]
    counts = torch.bincount(channels[channels >= 0], minlength=size)
    if len(counts) != size or bool((counts != counts[0]).any()):
        raise ModelError(
            f"{piece.parameter}, axis {piece.axis}: the channels of a group have unequal numbers of places"
        )
    return tensor.movedim(piece.axis, 0)[places.to(tensor.device)].reshape(size, -1)


def collect(
    groups: Groups,
    needs: Collection[str],
    samples: Samples | None = None,
    loss: Loss = cross_entropy,
    *,
    batch_size: int = 64,
    seed: int = 0,
    progress: Progress | None = None,
) -> Statistics:
    """Gather all that the criteria need in one pass over the samples.

    "weights" needs no samples. "gradients" runs each minibatch forward and backward through a copy of the model in
    evaluation mode; what is kept does not grow with the samples. The model and the global random state are untouched.

    Args:
        groups: found on the model to be scored.
        needs: any of `NEEDS`.
        samples: shuffled into minibatches by the seed; may be None where only weights are needed.
        loss: mean loss of a batch.
        batch_size: samples per minibatch.
        seed: of the minibatches, and of criteria that draw random numbers.
        progress: told after each minibatch.

    Raises:
        CriterionError: a need is unknown, or samples are needed and there are none.
    """
    for need in needs:
        if need not in NEEDS:
            raise CriterionError(unknown_name("statistic", need, NEEDS))
    model = groups.model
    tensors = {
        name: tensor.detach()
        for named in (model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False))
        for name, tensor in named
    }
    if "gradients" not in needs:
        return Statistics(tensors, seed)
    if samples is None:
        raise CriterionError("the criterion needs gradients: pass samples (and the loss) to gather them on")
    products = _squared_gradient_products(groups, samples, loss, batch_size, seed, progress)
    return Statistics(tensors, seed, products)


def _squared_gradient_products(
    groups: Groups, samples: Samples, loss: Loss, batch_size: int, seed: int, progress: Progress | None
) -> dict[str, Tensor]:
    """Return Σ over minibatches of (Σ g·w)² for each channel of each group.

    The inner sum goes over the slices of producers and followers that are parameters: the filter, its bias, and the
    norm's γ and β; for coupled layers over all of them, because they go together.
    """
    model = copy.deepcopy(groups.model).eval()
    parameters = dict(model.named_parameters(remove_duplicate=False))
    pieces = {group.name: own_slices(group, parameters) for group in groups}
    wanted = sorted({piece.parameter for own in pieces.values() for piece in own})
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    totals = {group.name: torch.zeros(group.size, dtype=torch.float64) for group in groups}
    generator, device = torch.Generator().manual_seed(seed), device_of(model)
    batches = torch.randperm(check_samples(samples), generator=generator)
    minibatches = torch.split(batches, batch_size)
    for index, batch in enumerate(minibatches):
        products = _gradient_products(
            model,
            {name: parameters[name] for name in wanted},
            samples.inputs[batch].to(device),
            samples.targets[batch].to(device),
            loss,
        )
        for group in groups:
            sums = torch.zeros(group.size, dtype=torch.float64)
            for piece in pieces[group.name]:
                sums += rows_of(products[piece.parameter], piece, group.size).sum(dim=1).to("cpu", torch.float64)
            totals[group.name] += sums.square()
        if progress is not None:
            progress(index + 1, len(minibatches))
    return totals


def _gradient_products(
    model: nn.Module, parameters: Mapping[str, nn.Parameter], inputs: Tensor, targets: Tensor, loss: Loss
) -> dict[str, Tensor]:
    """Return g·w, value by value, for each parameter (0 where the loss doesn't depend on it)."""
    with torch.enable_grad():
        value = loss(model(inputs), targets)
        gradients = torch.autograd.grad(value, list(parameters.values()), allow_unused=True)
    return {
        name: torch.zeros_like(parameter) if gradient is None else gradient * parameter.detach()
        for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True)
    }


def own_slices(group: Group, parameters: Iterable[str]) -> list[Slice]:
    """Return the slices that make a channel what it is: those of producers and followers that are parameters.

    A group without any (its channels come from nowhere but are consumed) gives all its slices that are parameters.
    """
    known = set(parameters)
    learned = [piece for piece in group.slices if piece.parameter in known]
    return [piece for piece in learned if piece.role != "consumer"] or learned
