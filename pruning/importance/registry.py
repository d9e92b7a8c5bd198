"""The registry of criteria and their contract.

A criterion is a function of a channel group and of the statistics it declares to need. It returns one finite score per
channel, higher = more important, on the scale its formula defines. Normalising across groups and choosing what goes is
not its business.

Where scores change as channels go (of two duplicates only one may go), a criterion brings an *ordering* as well: all
channels, the first to go first. Selection follows the ordering; the scores still compare groups with each other.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from pruning.errors import CriterionError, UnscoredGroupError, unknown_name
from pruning.graph.groups import Group, Groups
from pruning.importance.least_squares import Columns
from pruning.statistics.collect import NEEDS, Statistics

Criterion = Callable[[Group, Statistics], Tensor]
"""(group, statistics) -> [size] scores, higher = more important."""

Ordering = Callable[[Group, Statistics], list[int]]
"""(group, statistics) -> all channels, the first to go first."""

Folding = Callable[[Columns], Tensor]
"""The columns of a consumer's matrix -> its new matrix [outputs, columns kept]."""


@dataclass(frozen=True)
class RegisteredCriterion:
    """A criterion and what it declares.

    Attributes:
        name: what settings call it.
        score: the function.
        needs: the statistics it reads, of `pruning.statistics.collect.NEEDS`.
        ordering: how channels go one after the other; None where the order of the scores says it.
        folding: how the consumers' weights take over what the removed channels gave; None where they don't.
    """

    name: str
    score: Criterion
    needs: frozenset[str]
    ordering: Ordering | None = None
    folding: Folding | None = None


_CRITERIA: dict[str, RegisteredCriterion] = {}


def criterion(
    name: str, *, needs: Collection[str], ordering: Ordering | None = None, folding: Folding | None = None
) -> Callable[[Criterion], Criterion]:
    """Register the decorated function under a name.

    Raises:
        CriterionError: the name is taken or a need is unknown.
    """
    if name in _CRITERIA:
        raise CriterionError(f"criterion {name!r} is registered already, by {_CRITERIA[name].score.__module__}")
    for need in needs:
        if need not in NEEDS:
            raise CriterionError(f"criterion {name!r}: {unknown_name('statistic', need, NEEDS)}")

    def register(function: Criterion) -> Criterion:
        _CRITERIA[name] = RegisteredCriterion(name, function, frozenset(needs), ordering, folding)
        return function

    return register


@criterion("random", needs=())
def random(group: Group, statistics: Statistics) -> Tensor:
    """Score every channel by a uniform random number in [0, 1): the control that every claim is made against.

    Drawn from a generator of the group's own, seeded by the statistics' seed and the group's name; no slice is read.

    Source: control; at moderate rates and after fine-tuning it is within half a point of the best criteria.
    """
    return torch.rand(group.size, generator=statistics.generator(group), dtype=torch.float64)


def find_criterion(chosen: str | Criterion) -> RegisteredCriterion:
    """Return a criterion by its name, or the caller's own function as one.

    A function that is registered brings its declaration along; another is given the weights and, where statistics were
    gathered with more, that too.

    Raises:
        CriterionError: the name is unknown.
    """
    if not isinstance(chosen, str):
        for known in _CRITERIA.values():
            if known.score is chosen:
                return known
        return RegisteredCriterion(getattr(chosen, "__name__", "own"), chosen, frozenset({"weights"}))
    if chosen not in _CRITERIA:
        raise CriterionError(unknown_name("criterion", chosen, _CRITERIA))
    return _CRITERIA[chosen]


def criterion_names() -> tuple[str, ...]:
    """Return the names of all criteria, sorted."""
    return tuple(sorted(_CRITERIA))


def score_channels(chosen: str | Criterion, group: Group, statistics: Statistics) -> Tensor:
    """Score a group's channels, and hold the criterion to its contract.

    Returns:
        [size] float64 on the CPU.

    Raises:
        CriterionError: the criterion doesn't apply to this group, or gave not one finite score per channel.
    """
    found = find_criterion(chosen)
    given: Any = found.score(group, statistics)
    if not isinstance(given, Tensor):
        raise CriterionError(
            f"criterion {found.name!r} gave a {type(given).__name__} for group {group.name!r}; expected a tensor "
            f"[{group.size}]: one score per channel"
        )
    scores = given.detach().to("cpu", torch.float64)
    if scores.shape != (group.size,):
        raise CriterionError(
            f"criterion {found.name!r} gave shape {tuple(scores.shape)} for group {group.name!r}; "
            f"expected ({group.size},): one score per channel"
        )
    if not bool(scores.isfinite().all()):
        channels = torch.nonzero(~scores.isfinite()).flatten().tolist()
        raise CriterionError(
            f"criterion {found.name!r}: scores of group {group.name!r} are not finite at channels {channels[:8]}; "
            "look for inf or nan in the weights and the samples"
        )
    return scores


def order_channels(chosen: str | Criterion, group: Group, statistics: Statistics) -> list[int]:
    """Return all channels of a group, the first to go first; equal scores go by channel index.

    Raises:
        CriterionError: as `score_channels`; or the criterion's ordering is not one of all channels.
    """
    found = find_criterion(chosen)
    if found.ordering is None:
        order: list[int] = torch.argsort(score_channels(chosen, group, statistics), stable=True).tolist()
        return order
    order = found.ordering(group, statistics)
    if sorted(order) != list(range(group.size)):
        raise CriterionError(
            f"criterion {found.name!r}: its ordering of group {group.name!r} holds {len(order)} entries; "
            f"expected each of the {group.size} channels once"
        )
    return order


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
