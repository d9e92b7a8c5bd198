"""What `allocation.strategy: evolve` comes to, by the library alone, for benchmarks that run no pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import nn

import pruning
from pruning.allocation.budget import BudgetSolver
from pruning.allocation.evolution import Evolution
from pruning.batches import TensorBatches
from pruning.containers import Inputs, take
from pruning.importance import Ranking
from pruning.plan.plan import Plan
from pruning.recovery.levels import Divergence, LevelDatabase, StitchedModels, evolve_plan
from pruning.recovery.reconstruct import reconstruct
from pruning.statistics.collect import Statistics


def evolved_plan(
    solver: BudgetSolver,
    ranking: Ranking,
    statistics: Statistics,
    starts: Sequence[Plan],
    *,
    original: nn.Module,
    calibration: Inputs,
    num_samples: int,
    judged_on: Inputs,
    divergence: Divergence,
    generations: int,
    seed: int,
) -> Plan:
    """Return the nearer of the first start and of what the search comes to, recovered with all calibration samples.

    Args:
        solver: Bundles and target.
        ranking: Which channels of a group go first.
        statistics: What it was made from, moments among them.
        starts: Plans that meet the target.
        original: Whose outputs are to be kept.
        calibration: What models are recovered with.
        num_samples: How many there are; survivors are recovered with a quarter.
        judged_on: Other inputs, on which models are compared with the original.
        divergence: How.
        generations: After how many the search ends.
        seed: Of the mutations.
    """
    groups, judged = ranking.groups, TensorBatches(judged_on)
    stitched = StitchedModels(groups, statistics, judged, LevelDatabase(), divergence, original=original, seed=seed)

    def recovered(plan: Plan, number: int) -> nn.Module:
        dense = pruning.narrow(groups.model, plan, take(calibration, slice(1)), groups=groups, verify=False)
        reconstruct(dense, groups.model, plan, groups, take(calibration, slice(number)))
        return dense

    quick, whole = (partial(recovered, number=number) for number in (num_samples // 4, num_samples))
    plan, _ = evolve_plan(solver, ranking, starts, stitched, quick, Evolution(generations=generations, seed=seed))
    return min(starts[0], plan, key=partial(stitched.judged, whole))
