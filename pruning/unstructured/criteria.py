"""The importance of single weights: the criteria whose formula makes sense for one weight, under their names.

A criterion is a function of what is known of one layer's weights; it returns one finite score per weight, higher =
more important.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from pruning.batches import Batches, Samples, checked_batches
from pruning.errors import CriterionError, unknown_name
from pruning.evaluation import Loss, device_of
from pruning.graph.module_copy import copy_whole
from pruning.statistics.collect import generator_of
from pruning.statistics.gradients import SquaredProducts

Need = Literal["weights", "gradients", "fisher"]


@dataclass(frozen=True)
class LayerWeights:
    """What a criterion sees of a layer.

    Attributes:
        name: of the parameter.
        weight: its values, float64 on the CPU.
        products: of the same shape, where the criterion needs it: Σ over minibatches of (g·w)² for "gradients", its
            mean over single samples for "fisher"; g is the gradient of the mean loss of the minibatch or sample.
        generator: of the layer's own.
    """

    name: str
    weight: Tensor
    products: Tensor | None
    generator: torch.Generator


WeightCriterion = Callable[[LayerWeights], Tensor]
"""What is known of a layer -> scores of its weights' shape, higher = more important."""


def magnitude(layer: LayerWeights) -> Tensor:
    """Score a weight by |w|: the ℓ1 norm of a single weight, and its ℓ2 norm too.

    Source: Han et al. 2015, arXiv 1506.02626.
    """
    return layer.weight.abs()


def lamp(layer: LayerWeights) -> Tensor:
    """Score a weight by w² over the sum of w² of all weights of its layer that are at least as large.

    Equal weights are ranked by their place, each counting those after it, as in the paper. Layers compare as they are.

    Source: Lee et al. 2020, arXiv 2010.07611.
    """
    squares = layer.weight.flatten().square()
    order = torch.argsort(squares, stable=True)
    rising = squares[order]
    remaining = rising.flip(0).cumsum(0).flip(0)
    scores = torch.empty_like(squares)
    scores[order] = rising / remaining.clamp(min=torch.finfo(torch.float64).tiny)
    return scores.reshape(layer.weight.shape)


def taylor_weight(layer: LayerWeights) -> Tensor:
    """Score a weight by Σ over minibatches of (g·w)².

    Source: Molchanov et al. 2019, arXiv 1906.10771, whose groups are here of one weight each.
    """
    return _products(layer)


def obd(layer: LayerWeights) -> Tensor:
    """Score a weight by ½ h w², h being the diagonal of the empirical Fisher information: the mean of g² over samples.

    Source: LeCun et al. 1990 (Optimal Brain Damage).
    """
    return _products(layer) / 2


def random(layer: LayerWeights) -> Tensor:
    """Score weights uniformly at random: the control."""
    return torch.rand(layer.weight.shape, generator=layer.generator, dtype=torch.float64)


_CRITERIA: dict[str, tuple[WeightCriterion, Need]] = {
    "l1_norm": (magnitude, "weights"),
    "l2_norm": (magnitude, "weights"),
    "lamp": (lamp, "weights"),
    "obd": (obd, "fisher"),
    "random": (random, "weights"),
    "taylor_weight": (taylor_weight, "gradients"),
}


def weight_criterion_names() -> tuple[str, ...]:
    """Return the names of the criteria that score single weights, sorted."""
    return tuple(sorted(_CRITERIA))


def find_weight_criterion(chosen: str | WeightCriterion) -> tuple[WeightCriterion, Need]:
    """Return a criterion and what it needs; the caller's own function is given the weights.

    Raises:
        CriterionError: the name is unknown, or is that of a criterion for whole channels.
    """
    if not isinstance(chosen, str):
        return chosen, "weights"
    if chosen not in _CRITERIA:
        raise CriterionError(f"{unknown_name('criterion', chosen, _CRITERIA)} (these score single weights)")
    return _CRITERIA[chosen]


def score_weights(chosen: str | WeightCriterion, layer: LayerWeights) -> Tensor:
    """Score a layer's weights; one that is zero already scores −∞, so that what is gone stays gone.

    Returns:
        float64 of the weights' shape.

    Raises:
        CriterionError: the criterion is unknown, or gave not one finite score per weight.
    """
    scores = find_weight_criterion(chosen)[0](layer).to("cpu", torch.float64)
    if scores.shape != layer.weight.shape or not bool(scores.isfinite().all()):
        raise CriterionError(
            f"criterion {chosen!r} gave {tuple(scores.shape)} scores for {layer.name} of shape "
            f"{tuple(layer.weight.shape)}; expected one finite score per weight"
        )
    return scores.masked_fill(layer.weight == 0, -torch.inf)


def _products(layer: LayerWeights) -> Tensor:
    if layer.products is None:
        raise CriterionError(f"the criterion needs gradients of {layer.name}: pass samples (and the loss)")
    return layer.products


_BATCH = 64


def score_layers(
    model: nn.Module,
    names: Sequence[str],
    criterion: str | WeightCriterion,
    samples: Samples | Batches | None,
    loss: Loss,
    *,
    seed: int,
) -> dict[str, Tensor]:
    """Return the scores of the named parameters, each of its parameter's shape, float64 on the CPU.

    The model and the global random state are untouched.

    Raises:
        CriterionError: the criterion is unknown, needs samples and there are none, or breaks its contract.
    """
    _, need = find_weight_criterion(criterion)
    parameters = {name: model.get_parameter(name).detach() for name in names}
    products = {} if need == "weights" else _gather(model, parameters, need, samples, loss, seed)
    return {
        name: score_weights(
            criterion,
            LayerWeights(name, tensor.to("cpu", torch.float64), products.get(name), generator_of(seed, name)),
        )
        for name, tensor in parameters.items()
    }


def _gather(
    model: nn.Module,
    parameters: dict[str, Tensor],
    need: Need,
    samples: Samples | Batches | None,
    loss: Loss,
    seed: int,
) -> dict[str, Tensor]:
    if samples is None:
        raise CriterionError("the criterion needs gradients: pass samples (and the loss)")
    read, device = checked_batches(samples), device_of(model)
    count = len(read)
    squares = SquaredProducts(copy_whole(model).eval().requires_grad_(False), parameters, loss)
    totals = {name: torch.zeros(tensor.shape, dtype=torch.float64) for name, tensor in parameters.items()}
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    for batch in read.read(torch.split(order, _BATCH)):
        inputs, targets, _ = batch.to(device)
        found = squares.of_batch(inputs, targets) if need == "gradients" else squares.of_samples(inputs, targets)
        for name, values in found.items():
            totals[name] += values.to("cpu", torch.float64)
    return totals if need == "gradients" else {name: values / count for name, values in totals.items()}
