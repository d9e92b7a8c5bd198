"""First-order estimates of what the loss would change by."""

from __future__ import annotations

from torch import Tensor

from pruning.criteria.registry import criterion
from pruning.gathering.statistics import Statistics
from pruning.structure.groups import Group


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
        CriterionError: a consumer is no convolution or linear module; the text names it.
    """
    return statistics.of("activation_gradients", group)
