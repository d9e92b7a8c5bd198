"""Folding: a criterion's own solution for what removed channels gave, multiplied into their consumers' weights."""

from __future__ import annotations

from functools import partial
from math import prod

import torch
from torch import Tensor, nn

from pruning.errors import CriterionError
from pruning.graph.axes import kept as kept_indices
from pruning.graph.dispatch import state_of
from pruning.graph.groups import Groups
from pruning.graph.layers import column_channels, from_matrix, to_matrix
from pruning.importance.least_squares import Columns
from pruning.importance.registry import Criterion, Folding, find_criterion
from pruning.importance.regression import multiplicities
from pruning.plan.plan import Plan
from pruning.statistics.collect import Statistics
from pruning.statistics.layer_hooks import Layer


@torch.no_grad()
def fold(dense: nn.Module, plan: Plan, groups: Groups, statistics: Statistics, criterion: str | Criterion) -> int:
    """Give a narrowed model's consumers the weights that the criterion's solution has for them, in place.

    All statistics are of the whole model, so errors don't build up, but neither does one layer make up for another's:
    `reconstruct` does. The mean of what is lost goes into the layer's bias, or the running mean of the batch norm that
    reads it; a layer with neither keeps the mean in its weights. A layer whose weights something else reads too, as an
    embedding does, keeps them.

    Args:
        dense: `narrow(model, plan, ...)`.
        plan: what was removed.
        groups: found on the whole model.
        statistics: gathered on `groups` with what the criterion needs.
        criterion: one that folds: lasso, structured_obs, reduce_and_reuse, greedy_forward.

    Returns:
        The number of layers whose weights were changed.

    Raises:
        CriterionError: the criterion has no solution to fold, or the statistics lack the moments.
    """
    found = find_criterion(criterion)
    if found.folding is None:
        raise CriterionError(
            f"criterion {found.name!r} has no solution to fold into the consumers; use reconstruct, which serves any"
        )
    if not statistics.moments:
        raise CriterionError("folding needs the moments; gather the statistics with needs={'moments'}")
    masks = plan.masks(groups)
    changed = 0
    for weight, layer in statistics.layers.items():
        axes = groups.trace.parameters[weight]
        inputs = kept_indices(axes[layer.geometry.input_axis], masks)
        outputs = kept_indices(axes[1 - layer.geometry.input_axis], masks)
        if not inputs.all() and not layer.tied and not (layer.geometry.transposed and layer.geometry.groups > 1):
            _fold_layer(dense, layer, inputs, outputs, plan, groups, statistics, found.folding)
            changed += 1
    return changed


def _fold_layer(
    dense: nn.Module,
    layer: Layer,
    inputs: Tensor,
    outputs: Tensor,
    plan: Plan,
    groups: Groups,
    statistics: Statistics,
    folding: Folding,
) -> None:
    geometry, moments, state = layer.geometry, statistics.moments[layer.weight], state_of(dense)
    matrices = to_matrix(statistics.tensors[layer.weight], geometry).to("cpu", torch.float64)
    shifted = layer.bias is not None or layer.running_mean is not None
    covariances, means = moments.covariance(centred=shifted), moments.mean()
    taps = prod(geometry.kernel)
    kept = inputs.repeat_interleave(taps)
    rows = outputs.reshape(geometry.groups, -1)
    new, lost = [], []
    for index in range(geometry.groups):
        if not rows[index].any():
            continue  # the whole group of a grouped convolution is gone
        matrix = matrices[index][rows[index]]
        ask = partial(_multiplicities, layer, index, plan, groups, statistics)
        folded = folding(Columns(matrix, covariances[index], kept, taps, ask))
        new.append(folded)
        lost.append(matrix @ means[index] - folded @ means[index][kept])
    weight = state[layer.weight]
    weight.copy_(from_matrix(torch.stack(new), weight.shape, geometry))
    if layer.bias is not None:
        state[layer.bias].add_(torch.cat(lost).to(weight))
    elif layer.running_mean is not None:
        state[layer.running_mean].sub_(torch.cat(lost).to(weight))


def _multiplicities(layer: Layer, index: int, plan: Plan, groups: Groups, statistics: Statistics) -> Tensor:
    """Return the multiplicity of each column of a layer: of the groups that lose channels, else 1."""
    columns = torch.ones(statistics.moments[layer.weight].mean().shape[1], dtype=torch.float64)
    for name in plan.removed:
        for piece in groups[name].slices:
            if piece.parameter == layer.weight and piece.role == "consumer":
                channels = column_channels(piece, layer.geometry)[index]
                weights = multiplicities(groups[name], statistics, plan.kept(name))
                columns = torch.where(channels < 0, columns, columns * weights[channels.clamp(min=0)])
    return columns
