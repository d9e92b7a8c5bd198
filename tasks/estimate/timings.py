"""Time the parts of a run on the user's model and samples: each really done, on few samples where all would take long.

What a part takes for all samples is worked out from two sizes, so that what doesn't depend on the number of samples
counts once; the larger one is as large as the time allows. Where that is all of them, nothing is worked out.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from math import exp, log
from statistics import median
from time import perf_counter
from typing import Any, TypeVar

import numpy as np
from torch import nn

import pruning
from pruning.allocation.selection import Scope
from pruning.allocation.sensitivity import Sensitivity
from pruning.dynamic.gates import add_gates
from pruning.errors import TargetError
from pruning.evaluation import Progress
from pruning.graph.groups import Groups
from pruning.importance import Ranking, needs_of
from pruning.plan.plan import Plan
from pruning.recovery.calibrate import recalibrate
from pruning.recovery.normal_equations import MEAN_ALONE
from pruning.recovery.reconstruct import reconstruct
from pruning.statistics.collect import Statistics, collect
from pruning.training.callbacks import Callbacks
from pruning.training.recipe import Recipe
from pruning.training.trainer import finetune
from pruning.unstructured.masks import choose_n_of_m, choose_weights
from tasks.config.prune_schema import NOfM, Structured, Unstructured
from tasks.config.schema import Settings
from tasks.determinism import begin
from tasks.estimate.subject import Subject
from tasks.models import augmentation, chosen_criterion, loss_and_metric, score

Clock = Callable[[], float]
Made = TypeVar("Made")

_FEW = 64
_WARMUP, _FEWEST_STEPS, _MOST_STEPS = 1, 3, 12


class _EnoughError(Exception):
    """The time of a part is used up; raised through what it is watched by."""


@dataclass(frozen=True)
class Training:
    """How long a training takes.

    Attributes:
        begin: Once, before the second step; where the model is compiled, that is in it.
        sample: For each sample of each epoch.
    """

    begin: float
    sample: float


@dataclass
class Bench:
    """Times parts of a run.

    Attributes:
        subject: Model and samples.
        budget: Seconds that one part may take, about; what can't be cut short takes longer.
        clock: Gives seconds.
        cut: Parts that were worked out from less than the whole, by name.
        parts: Seconds of each part that was timed, by name, for whoever wants to see them.
    """

    subject: Subject
    budget: float
    clock: Clock = perf_counter
    cut: list[str] = field(default_factory=list)
    parts: dict[str, float] = field(default_factory=dict)

    @property
    def settings(self) -> Settings:
        """Of the run."""
        return self.subject.settings

    def once(self, name: str, work: Callable[[], Made]) -> Made:
        """Do and time something that can't be cut short."""
        began = self.clock()
        made = work()
        self.parts[name] = self.clock() - began
        return made

    def by_size(
        self,
        name: str,
        whole: int,
        work: Callable[[int], Made],
        first: int = _FEW,
        left: Callable[[Made], float] = lambda _made: 0.0,
    ) -> tuple[float, Made]:
        """Return how long something takes for all of so many samples, and what it made of as many as the time allows.

        Args:
            name: Of the part.
            whole: How many samples it is done for.
            work: Does it for so many.
            first: Samples of the second try; the first has a quarter of them, and the third as many as the time allows.
            left: Seconds that are to be added to those of a try, where it was cut short.
        """
        size = min(max(1, first // 4), whole)
        taken, made = self._timed(work, size)
        taken += left(made)
        for number in (1, 2):
            affordable = int(size * 2 * self.budget / max(taken, 1e-9))
            wanted = min(whole, first if number == 1 else affordable)
            if wanted <= size:
                break
            few, before = size, taken
            size = wanted
            taken, made = self._timed(work, size)
            taken += left(made)
        if size < whole:
            slope = (taken - before) / (size - few) if taken > before else taken / size
            taken += slope * (whole - size)
            self.cut.append(name)
        self.parts[name] = taken
        return taken, made

    def _timed(self, work: Callable[[int], Made], size: int) -> tuple[float, Made]:
        began = self.clock()
        made = work(size)
        return self.clock() - began, made

    @contextmanager
    def watch(self, fewest: int = 1, share: float = 1.0) -> Iterator[tuple[list[float], list[int], Progress]]:
        """Note when each part of something ended, and end the block once its share of the time is used up."""
        stamps, total = [self.clock()], list[int]()

        def progress(_done: int, of: int) -> None:
            stamps.append(self.clock())
            total[:] = [of]
            if stamps[-1] - stamps[0] > share * self.budget and len(stamps) > fewest:
                raise _EnoughError

        with suppress(_EnoughError):
            yield stamps, total, progress

    def training(self, name: str, model: nn.Module, recipe: Recipe, teacher: nn.Module | None) -> Training | None:
        """Time steps of a training by a recipe, on a copy; None where the user's own function trains.

        Args:
            name: Of the part.
            model: Is left as it is.
            recipe: With everything that costs time, but for stopping early and the penalty of sparsity.
            teacher: Of a recipe that distils.
        """
        if recipe.trainer is not None:
            return None
        update = {"steps": _MOST_STEPS, "early_stopping": None, "sparsity": None, "warmup_epochs": "auto"}
        samples = self.subject.some("train", _MOST_STEPS * recipe.batch_size)
        begin(self.settings)
        with self.watch(_FEWEST_STEPS) as (stamps, _, progress):
            finetune(
                copy.deepcopy(model),
                samples,
                recipe.model_copy(update=update),
                loss=loss_and_metric(self.settings)[0],
                seed=self.settings.run.seed,
                teacher=teacher,
                augment=augmentation(self.settings),
                callbacks=Callbacks(progress=progress),
            )
        each = median(after - before for before, after in zip(stamps[_WARMUP:], stamps[_WARMUP + 1 :], strict=False))
        sample = each / min(recipe.batch_size, len(samples))
        self.parts[f"{name}, a step"] = each
        return Training(max(0.0, stamps[1] - stamps[0] - each), sample)

    def evaluation(self, name: str, model: nn.Module) -> float:
        """Return the seconds of an evaluation of a model on all validation samples."""
        whole = len(self.subject.inputs["validation"])

        def work(count: int) -> object:
            return score(model, self.subject.some("validation", count), self.settings)

        return self.by_size(name, whole, work, first=min(self.settings.training.batch_size, whole))[0]

    def groups(self, *, streams: bool = False) -> Groups:
        """Find the model's channel groups."""
        name = "channel groups, residual streams among them" if streams else "channel groups"
        return self.once(
            name, lambda: pruning.find_groups(self.subject.model, self.subject.example, allow_mixed=streams)
        )

    def statistics(self, groups: Groups, criteria: Sequence[Any], num_samples: int) -> tuple[float, Statistics]:
        """Gather what criteria look at; return how long it takes for so many samples, too."""
        task, needs = loss_and_metric(self.settings)[0], needs_of(criteria)

        def work(count: int) -> Statistics:
            return collect(groups, needs, self.subject.some("train", count), task, seed=self.settings.run.seed)

        return self.by_size("statistics of the criteria", min(num_samples, self.count("train")), work)

    def count(self, split: str) -> int:
        """Return how many samples a split has."""
        return self.subject.data.num_samples[split]

    def ranking(self, groups: Groups, criteria: Sequence[Any], statistics: Statistics) -> tuple[float, bool]:
        """Order the channels of the groups, the least first, until the time is used up.

        What is left is worked out by the power of (channels × weights of the group) that fits what was timed.

        Returns:
            Seconds of all, and whether all were done.
        """
        ranking, sizes = Ranking(groups, criteria, statistics), dict(groups.model.named_parameters())
        work = {
            group.name: group.size * sum(sizes[p.parameter].numel() for p in group.slices if p.parameter in sizes)
            for group in groups
        }
        waiting, began = sorted(work, key=lambda one: work[one]), self.clock()
        logs: list[tuple[float, float]] = []
        while waiting and (not logs or self.clock() - began < 4 * self.budget):
            name, before = waiting.pop(0), self.clock()
            ranking.orders([name])
            logs.append((log(max(1, work[name])), log(max(self.clock() - before, 1e-6))))
        taken = self.clock() - began
        if waiting:
            known = np.array(logs)
            power, level = 1.0, known[-1, 1] - known[-1, 0]
            if len(set(known[:, 0])) > 1:
                power, level = np.polyfit(known[:, 0], known[:, 1], 1)
            taken += sum(exp(level + power * log(max(1, work[name]))) for name in waiting)
            self.cut.append("order of the channels")
        self.parts["order of the channels"] = taken
        return taken, not waiting

    def plan(self, groups: Groups, chosen: Structured, share: float, statistics: Statistics | None) -> Plan | None:
        """Plan a reduction as the settings do, or by the norms of the weights without statistics; None out of reach."""
        by_size = chosen.target.kinds[0] in ("parameter_reduction", "size_bytes")
        criteria = [chosen_criterion(name) for name in (chosen.criterion, chosen.fallback)]
        wanted: Any = {"parameter_reduction" if by_size else "mac_reduction": share}
        with suppress(TargetError):
            return self.once(
                "plan",
                lambda: pruning.make_plan(
                    groups,
                    criteria if statistics is not None else "l2_norm",
                    scope=Scope("global", chosen.allocation.normalise) if statistics is not None else "local",
                    ignore=chosen.ignore,
                    round_to=chosen.round_to if isinstance(chosen.round_to, int) else chosen.round_for,
                    limits=chosen.limits,
                    samples=statistics,
                    **wanted,
                ),
            )
        return None

    def narrowed(self, groups: Groups, plan: Plan) -> nn.Module:
        """Narrow the model, and prove it, as each attempt does."""
        return self.once(
            "narrowing",
            lambda: pruning.narrow(self.subject.model, plan, self.subject.example, groups=groups),
        )

    def recovery(self, chosen: Structured, narrowed: nn.Module, plan: Plan, groups: Groups) -> float:
        """Return the seconds of recovering a narrowed model without training."""
        method, count = chosen.recover.method, min(chosen.recover.num_samples, self.count("train"))
        if method in ("none", "fold"):
            return 0.0
        ridge = MEAN_ALONE if method == "absorb_means" else chosen.recover.ridge

        def work(size: int) -> float:
            inputs, model = self.subject.some("train", size), copy.deepcopy(narrowed)
            if method == "recalibrate":
                recalibrate(model, inputs, num_samples=size, batch_size=self.settings.training.batch_size)
                return 0.0
            with self.watch(2, share=3.0) as (stamps, total, progress):
                reconstruct(model, self.subject.model, plan, groups, inputs, ridge=ridge, progress=progress)
            done = len(stamps) - 1
            if not total or done == total[0]:
                return 0.0
            return (total[0] - done) * (stamps[-1] - stamps[1]) / (done - 1)  # the first comes with what is done once

        return self.by_size("recovery", count, work, left=lambda seconds: seconds)[0]

    def masks(self, chosen: Unstructured | NOfM, groups: Groups) -> float:
        """Return the seconds of choosing single weights.

        Raises:
            TargetError: The pattern doesn't fit a layer.
        """
        criterion: Any = chosen_criterion(chosen.criterion)
        rest: dict[str, Any] = {"ignore": chosen.ignore, "loss": loss_and_metric(self.settings)[0]}

        def work(count: int) -> object:
            samples = self.subject.some("train", count)
            if isinstance(chosen, Unstructured):
                scope = chosen.weights.scope
                return choose_weights(groups, 0.5, criterion, scope=scope, samples=samples, **rest)
            assert chosen.target.pattern is not None, "the settings see to it"
            kept, of = chosen.target.pattern
            return choose_n_of_m(groups, kept, of, criterion, samples=samples, **rest)

        return self.by_size("choice of the weights", min(chosen.criterion_samples, self.count("train")), work)[0]

    def gated(self, groups: Groups) -> nn.Module:
        """Put gates on the groups."""
        return self.once("gates", lambda: add_gates(groups, ignore=self.settings.prune.ignore)[0])

    def curve(self, groups: Groups, num_samples: int) -> tuple[float, list[int]]:
        """Return the seconds of one point of a sensitivity curve, and how many points each curve may have.

        One curve is measured: that of the group in the middle of the order, which shares half of the layers before it.
        """
        chosen, (task, metric) = self.settings.analyze, loss_and_metric(self.settings)
        orders = {group.name: list(range(group.size)) for group in groups}

        def bench(count: int) -> Sensitivity:
            return Sensitivity(
                self.subject.model,
                groups,
                orders,
                chosen.rates,
                self.subject.some("validation", count),
                sweep=chosen.sweep,
                loss=task,
                metric=metric,
                batch_size=self.settings.training.batch_size,
            )

        first = bench(1)
        names = first.in_order()
        counts = [first.most_points(name) for name in names]

        def work(count: int) -> int:
            made = bench(count)
            made.curve(names[len(names) // 2])
            return made.num_evaluations + 1

        taken, points = self.by_size("a sensitivity curve", num_samples, work)
        return taken / points, counts
