"""One threshold over the channels of many groups, or one for each set of groups."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from pruning.allocation.budget import BudgetSolver
from pruning.errors import SettingsError, unknown_name
from pruning.graph.groups import Groups
from pruning.importance.filters import over_larger
from pruning.plan.constraints import TiedGroups, groups_in
from pruning.plan.plan import Cost

NORMALISATIONS = ("mean", "max", "none", "macs", "lamp", "standard")

Step = tuple[float, int, int]
"""(score, bundle, level): the step of a bundle to that level."""


def normalised(scores: Mapping[str, Tensor], groups: Groups, rule: str) -> dict[str, Tensor]:
    """Make the scores of different groups comparable.

        mean    divided by the mean magnitude of the group's scores
        max     divided by the largest magnitude of the group's scores
        none    as they are
        macs    divided by the share of the model's MACs that one channel of the group saves
        standard    (score − mean of the group's) / their standard deviation (An et al. 2023, FLAP, arXiv 2312.11983)
        lamp    divided by the sum of those of the group that are at least as large (Lee et al. 2020, arXiv 2010.07611);
                for scores that are squares or squared errors, and not negative

    Args:
        scores: [size] per group.
        groups: that they belong to.
        rule: one of `NORMALISATIONS`.

    Raises:
        SettingsError: the rule is unknown.
    """
    if rule not in NORMALISATIONS:
        raise SettingsError(unknown_name("normalisation", rule, NORMALISATIONS))
    if rule == "none":
        return dict(scores)
    tiny = torch.finfo(torch.float64).tiny
    if rule == "standard":
        return {name: (one - one.mean()) / (one.std(correction=0) + tiny) for name, one in scores.items()}
    if rule == "lamp":
        return {name: over_larger(values) for name, values in scores.items()}
    if rule == "macs":
        cost = Cost(groups)
        whole = cost.macs({})
        saved = {name: whole - cost.macs({name: groups[name].size - 1}) for name in scores}
        return {name: values / (max(saved[name], 1) / whole) for name, values in scores.items()}
    sizes = {name: values.abs().mean() if rule == "mean" else values.abs().max() for name, values in scores.items()}
    return {name: values / (sizes[name] + tiny) for name, values in scores.items()}


def steps_of(
    bundles: Sequence[TiedGroups], orders: Mapping[str, Sequence[int]], scores: Mapping[str, Tensor]
) -> list[Step]:
    """Return every step of every bundle, the first to go first; equal ones by bundle, then by level.

    A step's score is the mean of the scores of the channels it removes, and never below that of the step before it in
    its bundle: where an ordering departs from the scores, the ordering counts.
    """
    steps = []
    for index, bundle in enumerate(bundles):
        reached = -torch.inf
        for level in range(1, len(bundle.counts)):
            before, after = (bundle.removed(bundle.counts[one]) for one in (level - 1, level))
            gone = {name: orders[name][before[name] : after[name]] for name in bundle.names}
            values = torch.cat([scores[name][list(channels)] for name, channels in gone.items()])
            reached = max(reached, float(values.mean()))
            steps.append((reached, index, level))
    return sorted(steps)


def one_threshold(solver: BudgetSolver, steps: Sequence[Step]) -> list[int]:
    """Return the levels after the fewest steps that meet the target, then give single steps back, the best first."""
    solver.lowest()
    too_few, enough = -1, len(steps)
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        if solver.met(_after(solver, steps[:middle])):
            enough = middle
        else:
            too_few = middle
    score = _score_of(steps)
    return solver.settle(_after(solver, steps[:enough]), score, worth=score)


def thresholds_by_set(
    solver: BudgetSolver, steps: Sequence[Step], sets: Sequence[Sequence[int]], share: float | None
) -> list[int]:
    """Return the levels at which each set of bundles gives the same share of its channels, by a threshold of its own.

    Args:
        solver: holds bundles and target.
        steps: of all bundles.
        sets: indices of bundles; together they hold each once.
        share: the share to give; None: the smallest that meets the target, and then single steps so that it is met
            closely.

    Raises:
        TargetError: the target can't be met.
    """
    own = [[step for step in steps if step[1] in set(members)] for members in sets]
    totals = [sum(sum(solver.bundles[index].sizes) for index in members) for members in sets]

    def levels_at(asked: float) -> list[int]:
        taken: list[Step] = []
        for mine, total in zip(own, totals, strict=True):
            wanted, removed = round(asked * total), 0
            for step in mine:
                bundle = solver.bundles[step[1]]
                added = sum(bundle.removed(bundle.counts[step[2]] - bundle.counts[step[2] - 1]).values())
                if removed + added > wanted:
                    break
                taken.append(step)
                removed += added
        return _after(solver, taken)

    if share is not None:
        return levels_at(share)
    solver.lowest()
    _, enough = solver.scale(levels_at)
    score = _score_of(steps)
    return solver.settle(enough, score, worth=score)


def sets_of(groups: Groups, bundles: Sequence[TiedGroups], scopes: Mapping[str, Sequence[str]]) -> list[list[int]]:
    """Divide the bundles by named sets of modules; those that no set names form one more.

    Args:
        groups: of the model.
        bundles: of these groups.
        scopes: name of a set -> names, prefixes or patterns of its modules or parameters.

    Raises:
        SettingsError: there are no sets, an entry matches nothing, or a group is in two sets.
    """
    if not scopes:
        raise SettingsError(
            "scope 'scoped' needs scopes: named sets of modules, such as {'early': ['layer1.*'], 'late': ['layer2.*']}"
        )
    owner: dict[str, str] = {}
    for name, entries in scopes.items():
        for found in groups_in(groups, entries, f"scopes[{name!r}]"):
            if owner.setdefault(found, name) != name:
                raise SettingsError(f"group {found!r} is in the scopes {owner[found]!r} and {name!r}; expected one")
    members: dict[str, list[int]] = {}
    for index, bundle in enumerate(bundles):
        named = {owner[name] for name in bundle.names if name in owner}
        if len(named) > 1:
            raise SettingsError(f"groups {', '.join(bundle.names)} lose equal counts, but are in {sorted(named)}")
        members.setdefault(next(iter(named), ""), []).append(index)
    return list(members.values())


def _after(solver: BudgetSolver, steps: Sequence[Step]) -> list[int]:
    levels = [0] * len(solver.bundles)
    for _, index, level in steps:
        levels[index] = max(levels[index], level)
    return levels


def _score_of(steps: Sequence[Step]) -> Callable[[int, int], float]:
    scores = {(index, level): score for score, index, level in steps}
    return lambda index, level: scores[index, level]
