"""Second-order estimates of what the loss would change by."""

from __future__ import annotations

from torch import Tensor

from pruning.criteria.registry import criterion
from pruning.gathering.statistics import Statistics
from pruning.structure.groups import Group
from pruning.structure.slices import own_slices


@criterion("obd", needs={"fisher"})
def obd(group: Group, statistics: Statistics) -> Tensor:
    """Score channel i by ½ Σ h_kk w_k², h_kk being the empirical Fisher information: the mean over samples of g_k².

    Taken over everything that makes the channel: filters, biases, γ and β, of all coupled layers. Gradients are of
    single samples; the square of a minibatch's gradient is not it.

    Source: LeCun et al. 1990, "Optimal Brain Damage", which has the Hessian's diagonal; at a minimum of a likelihood
    the Fisher information is its expectation. `obd_hutchinson` estimates the Hessian itself.
    """
    return 0.5 * statistics.of("fisher", group)


@criterion("obd_hutchinson", needs={"hessian_diagonal"})
def obd_hutchinson(group: Group, statistics: Statistics) -> Tensor:
    """Score channel i by ½ Σ h_kk w_k², the Hessian's diagonal being estimated with random signs.

    Taken over the same slices as `obd`. Exact where the Hessian is diagonal; else an estimate, which can be negative.

    Source: LeCun et al. 1990, "Optimal Brain Damage"; Hutchinson 1990 for the estimate, where the paper back-propagates
    second derivatives.
    """
    return 0.5 * statistics.of("hessian_diagonal", group)


@criterion("hessian_trace", needs={"weights", "hessian_trace"})
def hessian_trace(group: Group, statistics: Statistics) -> Tensor:
    """Score channel i by Trace(H_ii) / (2p) · ‖w_i‖², p being the number of its weights.

    Taken over the same slices as `obd`. A trace can come out negative, where the loss curves downwards or the estimate
    is poor; the sign is kept, as the formula has it.

    Source: Yu et al. 2022 (HAP), arXiv 2101.08940; the trace by Hutchinson's estimate.
    """
    trace = statistics.of("hessian_trace", group)
    learned = [name for name, tensor in statistics.tensors.items() if tensor.is_floating_point()]
    pieces = [piece for piece in own_slices(group, learned) if "running" not in piece.use]
    rows = [statistics.rows(piece, group.size) for piece in pieces]
    count = sum(row.shape[1] for row in rows)
    squares = sum((row.square().sum(dim=1) for row in rows), trace.new_zeros(group.size))
    return trace / (2 * count) * squares
