"""First-order estimates of what the loss would change by."""

from __future__ import annotations

from torch import Tensor

from pruning.criteria.registry import criterion
from pruning.errors import CriterionError
from pruning.groups import Group
from pruning.statistics import Statistics


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
    scores = statistics.squared_gradient_products.get(group.name)
    if scores is None:
        raise CriterionError(
            f"taylor_weight: no gradients of group {group.name!r}; "
            "gather the statistics with needs={'gradients'} on the same groups"
        )
    return scores
