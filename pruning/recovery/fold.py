"""Folding: a criterion's own solution for what removed channels gave, multiplied into their consumers' weights."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import prod
from typing import NamedTuple

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
    folding = found.folding

    def solve(layer: Layer, kept: Tensor, rows: Tensor) -> Folded:
        def ask(index: int) -> Tensor:
            return _multiplicities(layer, index, plan, groups, statistics)

        return solution(layer, kept, rows, statistics, folding, ask)

    return fold_layers(dense, plan, groups, statistics, solve)


class Folded(NamedTuple):
    """New weights of a layer of which some columns are gone.

    Attributes:
        matrices: [groups, outputs, columns kept], in the layer's groups.
        lost: [groups, outputs] what the means of its outputs lose by them.
    """

    matrices: Tensor
    lost: Tensor


Solve = Callable[[Layer, Tensor, Tensor], Folded]
"""(layer, columns kept, outputs kept) -> its new weights for these outputs; bool [columns] and [groups, outputs]. A
group none of whose outputs is kept is left out."""


@torch.no_grad()
def fold_layers(dense: nn.Module, plan: Plan, groups: Groups, statistics: Statistics, solve: Solve) -> int:
    """Give the layers of a narrowed model that read less than before new weights, in place; see `fold`.

    Args:
        dense: `narrow(model, plan, ...)`.
        plan: What was removed.
        groups: Found on the whole model.
        statistics: Gathered on it, moments among them.
        solve: Gives the weights.

    Returns:
        The number of layers whose weights were changed.
    """
    masks, state = plan.masks(groups), state_of(dense)
    changed = 0
    for name, layer in statistics.layers.items():
        axes, geometry = groups.trace.parameters[name], layer.geometry
        inputs = kept_indices(axes[geometry.input_axis], masks)
        outputs = kept_indices(axes[1 - geometry.input_axis], masks)
        if inputs.all() or layer.tied or (geometry.transposed and geometry.groups > 1):
            continue
        kept = inputs.repeat_interleave(prod(geometry.kernel))
        new, weight = solve(layer, kept, outputs.reshape(geometry.groups, -1)), state[name]
        weight.copy_(from_matrix(new.matrices, weight.shape, geometry))
        if layer.bias is not None:
            state[layer.bias].add_(new.lost.flatten().to(weight))
        elif layer.running_mean is not None:
            state[layer.running_mean].sub_(new.lost.flatten().to(weight))
        changed += 1
    return changed


def solution(
    layer: Layer,
    kept: Tensor,
    rows: Tensor,
    statistics: Statistics,
    folding: Folding,
    multiplicities_of: Callable[[int], Tensor],
) -> Folded:
    """Return a criterion's own weights for a layer.

    Args:
        layer: Whose moments are among the statistics.
        kept: Columns, bool [columns].
        rows: Outputs that are asked for, bool [groups, outputs].
        statistics: Of the whole model.
        folding: The criterion's.
        multiplicities_of: The weight of each column of a group of the layer, for criteria that choose with weights.
    """
    geometry, moments = layer.geometry, statistics.moments[layer.weight]
    matrices = to_matrix(statistics.tensors[layer.weight], geometry).to("cpu", torch.float64)
    shifted = layer.bias is not None or layer.running_mean is not None
    covariances, means = moments.covariance(centred=shifted), moments.mean()
    taps = prod(geometry.kernel)
    new, lost = [], []
    for index in range(geometry.groups):
        if not rows[index].any():
            continue  # the whole group of a grouped convolution is gone
        matrix = matrices[index][rows[index]]
        ask = partial(multiplicities_of, index)
        folded = folding(Columns(matrix, covariances[index], kept, taps, ask))
        new.append(folded)
        lost.append(matrix @ means[index] - folded @ means[index][kept])
    return Folded(torch.stack(new), torch.stack(lost))


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
