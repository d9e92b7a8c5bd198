"""Evolutionary search over levels: how many channels each group gives, judged on the whole model.

Errors of layers don't add up to the error of the model, so no curve and no score of a single group tells the best
division. Here whole divisions are tried, each a small change of the best so far:

    parent ──► offspring: a group gets channels back, others give some, so that the cost stays
                 │  sifted: all of them on few samples, the best half on more
                 └─► the best one or two judged as the parent was ──► parent, if better
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from math import isfinite

import torch
from pydantic import BaseModel, ConfigDict, Field

from pruning.allocation.budget import BudgetSolver
from pruning.errors import TargetError
from pruning.evaluation import Progress
from pruning.plan.constraints import TiedGroups
from pruning.plan.plan import Plan

Levels = tuple[int, ...]
"""One index into the counts of each bundle."""

Sift = Callable[[Levels, int], float]
"""(levels, number of samples) -> about how far the model is from the original; so many always means the same ones."""

Judge = Callable[[Levels], float]
"""levels -> how far the model is from the original; the least wins, infinity is out."""

_FEW, _SOME = 8, 2  # offspring are sifted on an eighth of the samples, half of them on half
_FEWEST = 32  # samples
_PRIME = 1_000_003
_MOST_SWITCHES = 3
_ATTEMPTS = 8  # at an offspring that is not there yet
_SLACK = 0.005  # of the whole cost, that is not worth filling


class Evolution(BaseModel):
    """How long and how wide the search is.

    Attributes:
        generations: After how many it ends.
        offspring: Of each generation.
        survivors: How many of them are judged as the parent was, the others being sifted out.
        num_samples: That models are judged on; offspring are sifted on fewer.
        num_levels: Widths of each group that mutations go to; what is left of the cost is met by others.
        seed: Of the mutations.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    generations: int = Field(default=30, ge=0)
    offspring: int = Field(default=16, ge=1)
    survivors: int = Field(default=2, ge=1)
    num_samples: int = Field(default=512, ge=1)
    num_levels: int = Field(default=24, ge=2)
    seed: int = 0

    @property
    def rounds(self) -> tuple[tuple[int, int], ...]:
        """How offspring are sifted: (samples, how many of them go on), one round after another."""
        few, some = (max(min(_FEWEST, self.num_samples), self.num_samples // share) for share in (_FEW, _SOME))
        return (few, max(self.survivors, self.offspring // 2)), (some, self.survivors)


class Generation(BaseModel):
    """What a search has come to: all that is needed to go on. JSON by `model_dump`.

    Attributes:
        number: Generations that are done.
        levels: The best so far.
        fitness: How far they leave the model from the original.
        start: The same of what the search began with, the first of its starts; None where that isn't finite.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    number: int
    levels: Levels
    fitness: float
    start: float | None


def evolve(
    solver: BudgetSolver,
    starts: Sequence[Levels],
    sift: Sift | None,
    judge: Judge,
    settings: Evolution = Evolution(),  # noqa: B008 - it is frozen
    *,
    last: Generation | None = None,
    keep: Callable[[Generation], object] = lambda _generation: None,
    progress: Progress | None = None,
) -> Generation:
    """Search for the levels that meet a target and leave the model nearest to the original.

    The first parent is the start that is judged best, and a survivor takes the parent's place only if it is judged
    better: the result is never worse than any start. What a generation draws follows from the seed and its number
    alone, so that a search that goes on from any generation ends with the same levels.

    Source: the (1 + λ) search with level switches and selection on more and more samples is that of Sieberling et al.
    2024 (EvoPress), arXiv 2410.14649; there levels are of equal size, here the cost of a model is any function of the
    counts and is met anew after each switch.

    Args:
        solver: Bundles and target.
        starts: Levels that meet the target, such as those of a threshold over scores.
        sift: Tells offspring from each other, cheaply; without, no more of them are made than are judged.
        judge: Decides, such as by the model after recovery; asked once for each start and survivor.
        settings: How long, how wide, and by which seed.
        last: A generation that was kept: the search goes on after it.
        keep: Told of each generation, the first one before any mutation.
        progress: Told after each generation.

    Raises:
        TargetError: No start leaves a model whose distance from the original is finite.
    """
    judged = cache(judge)
    if last is None:
        levels = min(dict.fromkeys(starts), key=judged)
        if not isfinite(judged(levels)):
            raise TargetError(
                "no allocation that the search could start from leaves a model with finite outputs; ask for less"
            )
        first = judged(starts[0])
        last = Generation(number=0, levels=levels, fitness=judged(levels), start=first if isfinite(first) else None)
        keep(last)
    grids = [_grid(bundle, settings.num_levels) for bundle in solver.bundles]
    for number in range(last.number + 1, settings.generations + 1):
        generator = torch.Generator().manual_seed(settings.seed * _PRIME + number)
        number_made = settings.survivors if sift is None else settings.offspring
        left = _offspring(solver, grids, last.levels, number_made, generator)
        for num_samples, most in settings.rounds:
            if sift is not None and len(left) > most:
                left = sorted(left, key=partial(_asked, sift, num_samples))[:most]
        best = min(left, key=judged, default=last.levels)
        better = bool(left) and judged(best) < last.fitness
        last = last.model_copy(
            update={"number": number} | ({"levels": best, "fitness": judged(best)} if better else {})
        )
        keep(last)
        if progress is not None:
            progress(number, settings.generations)
    return last


def _asked(sift: Sift, num_samples: int, levels: Levels) -> float:
    return sift(levels, num_samples)


def levels_of(plan: Plan, bundles: Sequence[TiedGroups]) -> Levels:
    """Return the levels of a plan that was made from these bundles."""
    lost = (len(plan.removed.get(one.names[0], ())) // one.units[0] for one in bundles)
    return tuple(one.counts.index(count) for one, count in zip(bundles, lost, strict=True))


def _grid(bundle: TiedGroups, num_levels: int) -> list[int]:
    """Return about so many of a bundle's levels, spread evenly, the first and the last among them."""
    highest = len(bundle.counts) - 1
    return sorted({round(highest * step / (num_levels - 1)) for step in range(num_levels)})


def _offspring(
    solver: BudgetSolver, grids: Sequence[Sequence[int]], parent: Levels, number: int, generator: torch.Generator
) -> list[Levels]:
    """Return up to so many different levels beside their parent."""
    made: dict[Levels, None] = {}
    for _ in range(number * _ATTEMPTS):
        if len(made) == number:
            break
        switches = min(_draw(_MOST_SWITCHES, generator), _draw(_MOST_SWITCHES, generator)) + 1
        levels: Levels | None = parent
        for _ in range(switches):
            levels = levels and _switched(solver, grids, levels, generator)
        if levels and levels != parent:
            made[levels] = None
    return list(made)


def _draw(below: int, generator: torch.Generator) -> int:
    return int(torch.randint(below, (1,), generator=generator))


def _switched(
    solver: BudgetSolver, grids: Sequence[Sequence[int]], parent: Levels, generator: torch.Generator
) -> Levels | None:
    """Let one bundle have channels back, and others give some until the target is met again."""
    levels = list(parent)
    given = [index for index, level in enumerate(levels) if level]
    if not given:
        return None
    back = given[_draw(len(given), generator)]
    lower = [level for level in grids[back] if level < levels[back]]
    steps = 1
    while steps < len(lower) and _draw(2, generator):
        steps += 1
    levels[back] = lower[-steps]
    order = torch.randperm(len(levels), generator=generator).tolist()
    for index in (one for one in order if one != back):
        if solver.met(levels):
            break
        levels[index] = _enough(solver, levels, index)
    if not solver.met(levels):
        return None
    if solver.cost(levels) < solver.budget.at_most - _SLACK * solver.cost([0] * len(levels)):
        levels = solver.give_back(levels, among=[index for index in order if levels[index] != parent[index]])
    return tuple(levels)


def _enough(solver: BudgetSolver, levels: Sequence[int], index: int) -> int:
    """Return the least level of one bundle at which the target is met, or its highest."""

    def met(level: int) -> bool:
        return solver.met([*levels[:index], level, *levels[index + 1 :]])

    low, high = levels[index], len(solver.bundles[index].counts) - 1
    if not met(high):
        return high
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if met(middle) else (middle + 1, high)
    return high
