"""Score the single weights of a model's layers, gathering what the criterion needs."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pruning.containers import take
from pruning.errors import CriterionError
from pruning.evaluation import Loss, Samples, check_samples, device_of
from pruning.fine_grained.weight_criteria import (
    LayerWeights,
    Need,
    WeightCriterion,
    find_weight_criterion,
    score_weights,
)
from pruning.gathering.products import SquaredProducts
from pruning.tracing.copying import copy_whole

_BATCH = 64


def score_layers(
    model: nn.Module,
    names: Sequence[str],
    criterion: str | WeightCriterion,
    samples: Samples | None,
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
            LayerWeights(name, tensor.to("cpu", torch.float64), products.get(name), _generator(seed, name)),
        )
        for name, tensor in parameters.items()
    }


def _gather(
    model: nn.Module, parameters: dict[str, Tensor], need: Need, samples: Samples | None, loss: Loss, seed: int
) -> dict[str, Tensor]:
    if samples is None:
        raise CriterionError("the criterion needs gradients: pass samples (and the loss)")
    count, device = check_samples(samples), device_of(model)
    squares = SquaredProducts(copy_whole(model).eval().requires_grad_(False), parameters, loss)
    totals = {name: torch.zeros(tensor.shape, dtype=torch.float64) for name, tensor in parameters.items()}
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    for batch in torch.split(order, _BATCH):
        inputs, targets = take(samples.inputs, batch, device), samples.targets[batch].to(device)
        found = squares.of_batch(inputs, targets) if need == "gradients" else squares.of_samples(inputs, targets)
        for name, values in found.items():
            totals[name] += values.to("cpu", torch.float64)
    return totals if need == "gradients" else {name: values / count for name, values in totals.items()}


def _generator(seed: int, name: str) -> torch.Generator:
    """Return a generator of the layer's own, the same whatever other layers there are."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
