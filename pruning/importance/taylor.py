"""First- and second-order Taylor estimates of what the loss would change by."""

from __future__ import annotations

from torch import Tensor

from pruning.graph.groups import Group
from pruning.graph.layers import own_slices
from pruning.importance.registry import criterion
from pruning.statistics.collect import Statistics


@criterion("taylor_weight", needs={"gradients"})
def taylor_weight(group: Group, statistics: Statistics) -> Tensor:
    """Score channel i by Σ over minibatches of (Σ g·w)².

    The inner sum goes over everything that makes the channel: the producers' filters and biases and the batch norms' γ
    and β; over all coupled layers at once, because they go together. Consumers are not counted: the product of a
    consumer's weights and gradients measures the same change a second time. Squared first, then summed.

    Source: Molchanov et al. 2019, "Importance Estimation for Neural Network Pruning", arXiv 1906.10771. The paper
    scores either filters or gates after the batch norm; ours takes both into one sum.

    Raises:
        CriterionError: the statistics were gathered without gradients, or on other groups.
    """
    return statistics.of("gradients", group)


@criterion("gradient_magnitude", needs={"gradient_magnitudes"})
def gradient_magnitude(group: Group, statistics: Statistics) -> Tensor:
    """Score channel i by Σ over minibatches of Σ |g|.

    Taken over the same slices as `taylor_weight`; coupled layers and minibatches add up. The magnitude is taken per
    minibatch: over all the samples of a trained model the gradients would cancel.

    Source: the first-order control of the literature on Taylor criteria, arXiv 1906.10771.
    """
    return statistics.of("gradient_magnitudes", group)


@criterion("taylor", needs={"activation_gradients"})
def taylor(group: Group, statistics: Statistics) -> Tensor:
    """Score channel i by the mean over examples of |mean over positions of ∂L/∂z · z|.

    z is what the group's consumers read of the channel, after norm and non-linearity; where several read it, their
    means are added up before the absolute value is taken, since the channel goes from all at once. No slice is read.
    Taken per example, not per minibatch.

    Source: Molchanov et al. 2016, arXiv 1611.06440; the paper divides by the layer's norm, which is
    selection's business here.

    Raises:
        UnscoredGroupError: something else than a convolution or linear module reads the channels; the text names it.
    """
    return statistics.of("activation_gradients", group)


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
