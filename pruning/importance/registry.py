"""The registry of criteria and their contract.

A criterion is a function of a channel group and of the statistics it declares to need. It returns one finite score per
channel, higher = more important, on the scale its formula defines. Normalising across groups and choosing what goes is
not its business.

Where scores change as channels go (of two duplicates only one may go), a criterion brings an *ordering* as well: all
channels, the first to go first. Selection follows the ordering; the scores still compare groups with each other.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pruning.errors import CriterionError, unknown_name
from pruning.graph.groups import Group
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
