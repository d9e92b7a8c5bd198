"""An evolutionary search for how many channels each group gives, for structured pruning; a kill loses one generation.

Below the folder of what the attempt has under way, each search has one of its own: `generation.json`, the best so far,
and `levels/`, refitted weights of layers.
"""

from __future__ import annotations

import logging
from functools import cached_property, partial
from math import isfinite
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from pruning.allocation.budget import BudgetSolver
from pruning.allocation.evolution import Evolution, Generation
from pruning.allocation.selection import Scope, Tried, choose
from pruning.batches import Batches
from pruning.plan.plan import Plan
from pruning.recovery.levels import Divergence, LevelDatabase, StitchedModels, evolve_plan, relative_error
from pruning.task import Task
from tasks.config.target_schema import Allocation
from tasks.data import read_split
from tasks.loop.channels import Offered, narrow_by, recover, structured
from tasks.models import loss_and_metric
from tasks.terminal import shown
from tasks.workspace import digest

log = logging.getLogger("secateur")

_SHARE = 4  # of the recovery's samples, one part is what survivors are recovered with


class EvolvedAllocation:
    """Divides a target among the groups by evolution, from where the other allocations end."""

    def __init__(self, offered: Offered) -> None:
        """Begin nothing yet.

        Args:
            offered: What may go, and where the step starts.
        """
        self._offered, self._context = offered, offered.context
        self.tried: tuple[Tried, ...] = ()
        """What the last search began and ended with."""

    def __call__(self, solver: BudgetSolver) -> Plan:
        """Return the plan that meets a target and leaves the recovered model nearest to the baseline.

        Survivors are recovered with a quarter of the samples. In the end the answer of `global` and the result are
        recovered with all of them, and the nearer is taken.

        Raises:
            TargetError: The target can't be met, or no start leaves a model with finite outputs.
        """
        settings, samples = structured(self._context), structured(self._context).recover.num_samples
        starts, place = self._starts(solver), self._place(solver)
        stitched, recovered = self._stitched(place), self._recovered
        with shown("evolution: generations") as progress:
            plan, end = evolve_plan(
                solver,
                self._offered.ranking,
                list(starts.values()),
                stitched,
                partial(recovered, num_samples=max(2, samples // _SHARE)),
                Evolution(
                    **settings.allocation.evolution.model_dump(exclude={"max_bytes"}),
                    seed=self._context.settings.run.seed,
                ),
                state=None if place is None else place / "generation.json",
                progress=progress,
            )
        log.info("prune: %s", _described(end))
        plans = {"global": starts["global"], "evolve": plan}
        found = {name: stitched.judged(partial(recovered, num_samples=samples), one) for name, one in plans.items()}
        taken = min(found, key=lambda name: found[name])
        self.tried = tuple(
            Tried(
                name=name,
                loss=found[name] if isfinite(found[name]) else None,
                measure="divergence",
                num_samples=len(self._samples),
                rounds=1,
                same_as="global" if name != "global" and one == plans["global"] else None,
                fault=None if isfinite(found[name]) else "its outputs are not finite",
                chosen=name == taken,
            )
            for name, one in plans.items()
        )
        return plans[taken]

    def _starts(self, solver: BudgetSolver) -> dict[str, Plan]:
        allocation = structured(self._context).allocation
        ways = {"global": allocation.model_copy(update={"strategy": "global"}), **allocation.candidates_tried()}
        return {name: self._start(solver, one) for name, one in ways.items() if one.strategy != "sensitivity"}

    def _start(self, solver: BudgetSolver, allocation: Allocation) -> Plan:
        scope = Scope("local") if allocation.strategy == "local" else Scope("global", allocation.normalise)
        return choose(self._offered.ranking, solver, scope)

    @cached_property
    def _samples(self) -> Batches:
        context, number = self._context, structured(self._context).allocation.evolution.num_samples
        return read_split(context.settings, context.workspace, "validation").spread(number)

    @cached_property
    def _divergence(self) -> Divergence:
        task = loss_and_metric(self._context.settings)[0]
        return relative_error if type(task).distillation is Task.distillation else partial(_softened, task)

    def _stitched(self, place: Path | None) -> StitchedModels:
        settings = self._context.settings
        max_bytes = structured(self._context).allocation.evolution.max_bytes
        return StitchedModels(
            self._offered.groups,
            self._offered.statistics,
            self._samples,
            LevelDatabase(None if place is None else place / "levels", max_bytes),
            self._divergence,
            original=self._context.baseline,
            seed=settings.run.seed,
            batch_size=settings.training.batch_size,
        )

    def _place(self, solver: BudgetSolver) -> Path | None:
        """The folder of this search; None where the attempt has none."""
        if self._context.place is None:
            return None
        shaped_by = {
            "streams": self._offered.streams,
            "blocks": list(self._context.blocks),
            "counts": {one.names[0]: list(one.counts) for one in solver.bundles},
            "budget": [solver.budget.name, solver.budget.at_most],
        }
        return self._context.place / f"evolution-{digest(shaped_by)[:16]}"

    def _recovered(self, plan: Plan, num_samples: int) -> nn.Module:
        model = narrow_by(plan, self._offered, self._context, verify=False)
        recover(model, plan, self._offered, self._context, num_samples)
        return model


def _softened(task: Task, outputs: Any, answers: Any) -> Tensor:
    return task.distillation(outputs, answers, 1.0)


def _described(end: Generation) -> str:
    start = "a model without finite outputs" if end.start is None else f"{end.start:.6g}"
    return f"divergence from the baseline, after {end.number} generations: {end.fitness:.6g}; global: {start}"
