"""What each stage costs, in seconds, and what lies on disk: put together from parts that were timed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import nn

from pruning.allocation.schedule import Outcome, ScheduleSettings, expected_goals
from pruning.errors import TargetError
from pruning.training.recipe import Recipe
from tasks.config.prune_schema import Dynamic, NOfM, Structured, Unstructured
from tasks.estimate.counts import NOTHING, Bounds, Work, epochs_of, judged, work_of
from tasks.estimate.onnx_timings import time_exports, time_profile
from tasks.estimate.timings import Bench, Training
from tasks.loop.channels import JUDGED_ON
from tasks.models import size_bytes
from tasks.stage_table import NAMES

_RANKS = (
    "training is divided by machine.ranks, each on its own cores; starting them and exchanging gradients isn't in it"
)


@dataclass
class Costs:
    """Times what the stages that would run need, and puts it together.

    Attributes:
        bench: Times parts.
        schedule: Of the loop.
        history: Attempts that the loop goes on from.
        runs: The stages that would run.
        opened: Seconds that opening the samples took.
        notes: What isn't in the figures; added to.
        work: What each stage does; there once `measure` has run.
        seconds: Of each stage, likewise; None where it isn't known.
    """

    bench: Bench
    schedule: ScheduleSettings
    history: Sequence[Outcome]
    runs: frozenset[str]
    opened: float
    notes: list[str]

    def __post_init__(self) -> None:
        self.settings, self.subject, self.parts = self.bench.settings, self.bench.subject, self.bench.parts
        self.work: dict[str, Work] = {}
        self.seconds: dict[str, Bounds | None] = dict.fromkeys(NAMES, NOTHING)

    def measure(self) -> None:
        """Time what is needed, each part once."""
        bench, settings, subject, seconds = self.bench, self.settings, self.subject, self.seconds
        self.groups = bench.groups()
        self.trace = self.parts["channel groups"]
        narrowed = self._step() if self.runs & {"prune", "transform", "export", "benchmark", "report"} else None
        self.dense: nn.Module = subject.model if narrowed is None else narrowed
        self.eval_whole = bench.evaluation("evaluation", subject.model)
        self.eval_dense = self.eval_whole if narrowed is None else bench.evaluation("evaluation, narrowed", narrowed)
        curves = self._curves()
        seconds["prepare"] = self._prepare()
        work = self.work = work_of(
            settings, subject.data.num_samples, self.schedule, self.history, curves and curves[1]
        )
        if "baseline" in self.runs:
            seconds["baseline"] = self._baseline(work["baseline"])
        if curves is not None and "analyze" in self.runs:
            each = self._side_by_side(curves[0], len(curves[1]))
            seconds["analyze"] = work["analyze"].evaluations.times(Bounds.exactly(each)) + self._fixed(2)
        if "profile" in self.runs:
            seconds["profile"] = Bounds.exactly(time_profile(bench, self.groups)) + self._fixed(1)
        if "prune" in self.runs:
            seconds["prune"] = self._prune()
        seconds["transform"] = Bounds.exactly(self.eval_whole + self.eval_dense) + self._fixed(5, loads=2)
        if self.runs & {"export", "benchmark"}:
            exported, timed = time_exports(bench, self.eval_dense / max(self.eval_whole, 1e-9))
            seconds["export"] = Bounds.exactly(exported) + self._fixed(2, loads=1)
            seconds["benchmark"] = Bounds.exactly(timed) + self._fixed(4, loads=1)
        if "quantize" in self.runs and self.settings.quantize.profile is not None:
            self.notes.append("not timed: quantize, which runs the validation samples through each file that it tries")
        tested = (self.eval_whole + self.eval_dense) * self._tested()
        seconds["report"] = Bounds.exactly(tested) + self._fixed(4, loads=1)

    def _fixed(self, traces: int, loads: int = 0) -> Bounds:
        """Return what tracing models takes, and loading narrowed ones, which each stage does again."""
        return Bounds.exactly(traces * self.trace + loads * self.parts.get("narrowing", 0.0))

    def _side_by_side(self, seconds: float, parts: int) -> float:
        """Return what so many parts take that are computed by `machine.processes` at once, each in its share of that.

        Args:
            seconds: Of all of them, one after the other.
            parts: How many there are.
        """
        return seconds / max(1, min(self.settings.machine.processes, parts))

    def _tested(self) -> float:
        """Return the report's samples, in passes over the validation samples: those shown are of validation too."""
        count = self.subject.data.num_samples
        return 1 + count["test"] / max(1, count["validation"])

    def _prepare(self) -> Bounds:
        """Return what opening the data took, and reading all of them where their content is hashed or copied."""
        if "prepare" not in self.runs:
            return NOTHING
        data, chosen = self.subject.data, self.settings.data.identity
        taken = self.opened
        if any(not self._in_memory(name) for name in data.num_samples):
            count = sum(data.num_samples.values())
            each = self.bench.by_size("reading samples", count, lambda n: self._read(n), first=16)[0]
            if data.copied or chosen in ("auto", "content"):
                taken += each
                if not data.copied and chosen == "auto":
                    self.notes.append("prepare is taken to read all samples; with sources or a fingerprint it doesn't")
        return Bounds.exactly(taken)

    def _in_memory(self, name: str) -> bool:
        return hasattr(self.subject.inputs[name], "inputs")  # type: ignore[index]

    def _read(self, count: int) -> None:
        for batch in self.subject.inputs["train"].spread(count).ordered(64):
            del batch

    def _trained(self, recipe: Recipe, training: Training | None) -> Bounds | None:
        """Return the seconds of the steps of one training."""
        if training is None:
            return None
        count = self.subject.data.num_samples["train"]
        ranks = self.settings.machine.ranks
        passes = epochs_of(recipe, count).times(Bounds.exactly(count * training.sample / ranks))
        if ranks > 1 and _RANKS not in self.notes:
            self.notes.append(_RANKS)
        return passes + Bounds.exactly(training.begin)

    def _unknown(self, recipe: Recipe) -> None:
        self.notes.append(f"recipe {recipe.name!r} is left to its own trainer, {recipe.trainer}: how long isn't known")

    def _baseline(self, work: Work) -> Bounds | None:
        recipe, bench = self.settings.baseline.recipe, self.bench
        judged = work.evaluations.times(Bounds.exactly(self.eval_whole))
        rest = judged + Bounds.exactly(self.parts["check before training"]) + self._fixed(3)
        if recipe is None:
            return rest
        found = self._trained(recipe, bench.training(f"training, {recipe.name}", self.subject.model, recipe, None))
        if found is None:
            self._unknown(recipe)
            return None
        return found + rest

    def _curves(self) -> tuple[float, list[int]] | None:
        """Return the seconds of a point of a curve, and the points of all; None where no curves are measured."""
        if not self.settings.measures_curves:
            return None
        share = self.settings.analyze.sample_fraction
        return self.bench.curve(self.groups, max(1, round(share * self.subject.data.num_samples["validation"])))

    def _step(self) -> nn.Module | None:
        """Time what an attempt does before it trains; return a model that reaches the target, if it is another one."""
        chosen, bench = self.settings.prune, self.bench
        self.before = 0.0  # what depends on the model's size, as the following does
        self.fixed = 6 * self.trace
        if isinstance(chosen, Unstructured | NOfM):
            try:
                self.before = bench.masks(chosen, self.groups)
            except TargetError as fault:
                self.notes.append(f"no attempt finds a plan: {fault}")
            return None
        if isinstance(chosen, Dynamic):
            return bench.gated(self.groups)
        assert isinstance(chosen, Structured), "these are all kinds"
        criteria = [chosen.criterion, chosen.fallback]
        gathered, statistics = bench.statistics(self.groups, criteria, chosen.criterion_samples)
        ordered, complete = bench.ranking(self.groups, criteria, statistics)
        share = self.schedule.target
        plan = bench.plan(self.groups, chosen, share, statistics if complete else None)
        groups = self.groups
        if plan is None and chosen.offers_streams:
            groups = bench.groups(streams=True)
            plan = bench.plan(groups, chosen, share, None)
        self.before = gathered + ordered
        if plan is None:
            self.notes.append(
                "no plan for the target was found at once: models are taken to stay as slow as the baseline"
            )
            return None
        narrowed = bench.narrowed(groups, plan)
        recovered = bench.recovery(chosen, narrowed, plan, groups)
        self.before += recovered
        self.fixed += self.parts["plan"] + 2 * self.parts["narrowing"]  # once as the last attempt is loaded
        self._extras(chosen, recovered)
        return narrowed

    def _extras(self, chosen: Structured, recovered: float) -> None:
        """Add what allocations that are tried take, and name what isn't timed."""
        strategy = chosen.allocation.strategy
        judged = self.bench.evaluation("evaluation", self.subject.model) * min(
            1.0, JUDGED_ON / self.subject.data.num_samples["validation"]
        )
        each = self.parts["narrowing"] / 2 + judged
        if strategy == "trial":
            tried = len(chosen.allocation.tried)
            self.before += self._side_by_side(tried * (each + recovered / 4), tried)
        elif strategy == "evolve":
            search = chosen.allocation.evolution
            survivors = search.generations * min(search.survivors, search.offspring) + len(chosen.allocation.tried)
            self.before += survivors * (each + recovered / 4) + 2 * (each + recovered)
            self.before += search.generations * search.offspring * (self.parts["narrowing"] / 2 + judged / 4)
        elif strategy == "search":
            self.before += chosen.allocation.candidates * (each + judged)
        if chosen.blocks == "allowed":
            self.notes.append(
                "not timed: how many blocks go is tried in each attempt, each number as narrowing and recovery"
            )
        if chosen.target.names_latency:
            self.notes.append("for a latency, models are taken to be as fast as those of the same reduction of MACs")

    def _prune(self) -> Bounds | None:
        chosen, bench = self.settings.prune, self.bench
        whole, dense, one_attempt = self.subject.model, self.dense, list[tuple[Recipe, Training, Training]]()
        for recipe in chosen.recipes:
            teacher = whole if recipe.distillation > 0 else None
            first = bench.training(f"training, {recipe.name}", whole, recipe, teacher)
            if first is None:
                self._unknown(recipe)
                return None
            last = (
                first
                if dense is whole
                else bench.training(f"training, {recipe.name}, narrowed", dense, recipe, teacher)
            )
            assert last is not None, "it is the same recipe"
            one_attempt.append((recipe, first, last))

        def cost(begun: float, reached: float) -> Bounds:
            """Return an attempt's seconds, from one share of the way to the target to another."""
            evaluated = self._between(self.eval_whole, self.eval_dense, reached)
            slower = self._between(self.eval_whole, self.eval_dense, begun) / max(self.eval_whole, 1e-9)
            found = Bounds.exactly(self.fixed + self.before * slower)
            share = Bounds.exactly(self._side_by_side(1.0, len(one_attempt)))
            for recipe, first, last in one_attempt:
                sample = self._between(first.sample, last.sample, reached)
                trained = self._trained(recipe, Training(first.begin, sample))
                assert trained is not None, "no trainer of the user's is among these"
                count = judged(recipe, self.subject.data.num_samples["train"], chosen.undo_training)
                spent = trained + count.times(Bounds.exactly(evaluated)) + Bounds.exactly(self.trace)
                found += spent.times(share)
            return found if one_attempt else found + Bounds.exactly(evaluated)

        return self._attempts(cost) + Bounds.exactly(self.parts["check before training"])

    def _attempts(self, cost: Callable[[float, float], Bounds]) -> Bounds:
        """Sum up the attempts: at least one that goes all the way, at most all that are allowed."""
        goals = expected_goals(self.schedule, self.history)
        if not goals:
            return NOTHING
        shares = [goal / self.schedule.target for goal in goals]
        done = [one.reached / self.schedule.target for one in self.history if one.accepted]
        begun = [min(1.0, done[-1]) if done else 0.0, *shares[:-1]]
        if self.settings.prune.channels_may_return:
            begun = [0.0] * len(shares)
        expected = sum(cost(*pair).expected for pair in zip(begun, shares, strict=True))
        most = (self.schedule.max_attempts - len(self.history)) * cost(0.0, 0.0).most
        return Bounds(min(expected, cost(begun[0], 1.0).least), expected, max(expected, most))

    @staticmethod
    def _between(whole: float, dense: float, share: float) -> float:
        return whole + (dense - whole) * share

    def disk(self) -> dict[str, Bounds]:
        """Return what lies on disk in the end, and for a while."""
        whole, dense = size_bytes(self.subject.model), size_bytes(self.dense)
        attempts = self.work["prune"].attempts or NOTHING
        goals = expected_goals(self.schedule, self.history)
        chosen = self.settings
        factor = 2 if chosen.prune.channels_may_return else 1
        kept = sum(self._between(whole, dense, goal / self.schedule.target) for goal in goals) * factor
        found = {
            "data": Bounds.exactly(self.subject.num_bytes),
            "baseline": Bounds.exactly(whole * (1 + len(chosen.baseline.keep_epochs))),
            "accepted attempts": Bounds(0, kept, attempts.most * whole * factor),
            "dense model": Bounds(min(dense, whole), dense, whole),
            "ONNX files": Bounds(whole + min(dense, whole), whole + dense, 2 * whole),
        }
        trained = [recipe for recipe in (chosen.baseline.recipe, *chosen.prune.recipes) if recipe is not None]
        if trained:
            of_attempt = sum(_state_bytes(one, whole) for one in chosen.prune.recipes)
            most = max(_state_bytes(chosen.baseline.recipe, whole), of_attempt)
            found["states of trainings under way"] = Bounds(0, most, most)
        return found


def _state_bytes(recipe: Recipe | None, model: int) -> float:
    """Return what the state of a training under way takes: the weights, what the optimizer and an average remember."""
    if recipe is None or recipe.trainer is not None:
        return 0
    moments = 1 if recipe.optimizer == "sgd" else 2
    return model * (1 + moments + (recipe.ema is not None))
