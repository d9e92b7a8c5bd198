"""Scores and orders of all groups: by a criterion, and where by its definition it has none, by another one."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from pruning.errors import UnscoredGroupError
from pruning.graph.groups import Group, Groups
from pruning.importance.registry import Criterion, find_criterion, order_channels, score_channels
from pruning.statistics.collect import Statistics

FALLBACK = "l2_norm"
"""The criterion of groups for which another one has no scores, unless told otherwise: it scores every group."""

_SHOWN = 6  # groups that a warning names

_log = logging.getLogger(__name__)

Result = TypeVar("Result")


Criteria = str | Criterion | Sequence[str | Criterion]
"""A criterion, or several: each ranks the groups for which those before it have no scores, and `FALLBACK` the rest."""


def criteria_in(criteria: Criteria) -> list[str | Criterion]:
    """Return the criteria that rank groups, each once; the last scores every group."""
    given = [criteria] if isinstance(criteria, str) or callable(criteria) else criteria
    return list(dict.fromkeys([*given, FALLBACK]))


def needs_of(criteria: Criteria) -> frozenset[str]:
    """Return the statistics that criteria need between them."""
    return frozenset().union(*(find_criterion(one).needs for one in criteria_in(criteria)))


class Ranking:
    """Scores and orders of the channels of groups; each is worked out when it is first asked for.

    Where the criterion has no scores for a group, the next one says which of its channels goes first, and a warning
    says so, one for each kind of group. Scores of two criteria can't be compared, so such a group's are those of the
    other groups: its k-th channel of n scores what theirs do at the same share k/n, on average. So a threshold over all
    groups takes from it about the share that it takes from the others.

    Args:
        groups: found on the model to be pruned.
        criteria: which channels go: by the first; of groups that it has no scores for, by the next.
        statistics: what they need (`needs_of`).
    """

    def __init__(self, groups: Groups, criteria: Criteria, statistics: Statistics) -> None:
        self.groups = groups
        self._criteria = criteria_in(criteria)
        self._statistics = statistics
        self._orders: dict[str, Sequence[int]] = {}
        self._scores: dict[str, Tensor | None] = {}
        self._told: set[tuple[str, str]] = set()

    def orders(self, names: Iterable[str]) -> dict[str, Sequence[int]]:
        """Return the channels of groups, the first to go first.

        Raises:
            CriterionError: a criterion breaks its contract, or none has scores for a group.
        """
        names = list(names)
        faults: list[tuple[UnscoredGroupError, str]] = []
        for name in names:
            if name not in self._orders:
                self._orders[name] = self._first(order_channels, self.groups[name], faults)
        self._warn(faults)
        return {name: self._orders[name] for name in names}

    def scores(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Return the scores of groups, [size] each.

        Raises:
            CriterionError: as for `orders`.
        """
        names = list(names)
        for name in names:
            if name not in self._scores:
                self._scores[name] = self._own_scores(self.groups[name])
        own = {name: known for name in names if (known := self._scores[name]) is not None}
        orders = self.orders(name for name in names if name not in own)
        return {name: own[name] if name in own else _scores_of(orders[name], own) for name in names}

    def _own_scores(self, group: Group) -> Tensor | None:
        try:
            return score_channels(self._criteria[0], group, self._statistics)
        except UnscoredGroupError:
            return None

    def _first(
        self,
        ask: Callable[[str | Criterion, Group, Statistics], Result],
        group: Group,
        faults: list[tuple[UnscoredGroupError, str]],
    ) -> Result:
        """Ask the first criterion that has scores for a group."""
        fault: UnscoredGroupError | None = None
        for chosen in self._criteria:
            try:
                found = ask(chosen, group, self._statistics)
            except UnscoredGroupError as error:
                fault = fault or error
            else:
                if fault is not None:
                    faults.append((fault, find_criterion(chosen).name))
                return found
        assert fault is not None, "there is a criterion at least"
        raise fault

    def _warn(self, faults: Sequence[tuple[UnscoredGroupError, str]]) -> None:
        by_kind: dict[tuple[str, str], list[UnscoredGroupError]] = {}
        for fault, used in faults:
            by_kind.setdefault((fault.kind, used), []).append(fault)
        for (kind, used), found in by_kind.items():
            if (kind, used) in self._told:
                continue
            self._told.add((kind, used))
            shown = [f"{one.group} ({one.where})" if one.where else one.group for one in found[:_SHOWN]]
            more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
            _log.warning(
                "criterion %r has no scores for %d of %d groups because %s: %s%s. %r ranks their channels instead; "
                "choose it by prune.fallback (in the library: criterion=[..., ...]), or leave them whole by ignore",
                find_criterion(self._criteria[0]).name,
                len(found),
                len(self.groups),
                kind,
                ", ".join(shown),
                more,
                used,
            )


def _scores_of(order: Sequence[int], others: Mapping[str, Tensor]) -> Tensor:
    """Score the channels of an order as other groups' are scored at the same share of theirs.

    Each of the others is divided by its mean magnitude first, and the result multiplied by the median of these: so
    neither the shape nor the level follows one group that is scored far above all others.
    """
    size = len(order)
    shares = (torch.arange(size, dtype=torch.float64) + 0.5) / size
    curves, levels = [], []
    for values in others.values():
        level = float(values.abs().mean())
        rising = values.sort().values[(shares * len(values)).long()]
        if level > 0:
            curves.append(rising / level)
            levels.append(level)
    scores = torch.empty(size, dtype=torch.float64)
    rising = shares if not curves else torch.stack(curves).mean(dim=0) * torch.tensor(levels).double().median()
    scores[list(order)] = rising
    return scores
