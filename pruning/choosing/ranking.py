"""What a criterion says of a model's channels, asked once."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from pruning.criteria import Criterion, order_channels, score_channels
from pruning.gathering.statistics import Statistics
from pruning.structure.bundles import Bundle
from pruning.structure.groups import Groups


class Ranking:
    """Scores and orders of the channels of those groups that may lose some; each is worked out when it is asked for.

    Args:
        groups: found on the model to be pruned.
        criterion: which channels go.
        statistics: what it needs.
    """

    def __init__(self, groups: Groups, criterion: str | Criterion, statistics: Statistics) -> None:
        self.groups = groups
        self._criterion = criterion
        self._statistics = statistics
        self._orders: dict[str, Sequence[int]] = {}
        self._scores: dict[str, Tensor] = {}

    def orders(self, bundles: Sequence[Bundle]) -> dict[str, Sequence[int]]:
        """Return the channels of each group that may lose some, the first to go first.

        Raises:
            CriterionError: the criterion doesn't apply to a group.
        """
        for name in _free(bundles):
            if name not in self._orders:
                self._orders[name] = order_channels(self._criterion, self.groups[name], self._statistics)
        return {name: self._orders[name] for name in _free(bundles)}

    def scores(self, bundles: Sequence[Bundle]) -> dict[str, Tensor]:
        """Return the scores, [size] per group, of each group that may lose some.

        Raises:
            CriterionError: the criterion doesn't apply to a group.
        """
        for name in _free(bundles):
            if name not in self._scores:
                self._scores[name] = score_channels(self._criterion, self.groups[name], self._statistics)
        return {name: self._scores[name] for name in _free(bundles)}


def _free(bundles: Sequence[Bundle]) -> list[str]:
    return [name for bundle in bundles if len(bundle.counts) > 1 for name in bundle.names]
