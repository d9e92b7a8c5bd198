"""What the loop needs for every kind of pruning: target, pace, floor, exceptions, training."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, StrictFloat, StrictInt, model_validator

from pruning.allocation.schedule import ScheduleSettings
from pruning.training.recipe import Recipe
from tasks.config.target_schema import TARGETS, Kind, MaxDrop, Start, Target
from tasks.config.types import ImportableRecipe, Section, Share

RECIPES = (Recipe(name="distil", distillation=0.7), Recipe(name="plain"))
"""Fine-tuning with the baseline as teacher, and without."""


class Prune(Section):
    """The loop, for every kind: target, pace, floor, exceptions, training."""

    kind: Kind
    """What is removed."""
    target: Target
    """The reduction to reach, against the baseline. structured: one or several of mac_reduction,
    parameter_reduction, size_bytes, latency_reduction, latency_ms. unstructured: weight_sparsity. n_m: pattern.
    dynamic: mac_reduction.
    """
    schedule: Literal["linear", "geometric", "cubic"] = "geometric"
    """How the goals rise to the target."""
    iterations: StrictInt = Field(default=3, ge=1, le=1000)
    """Number of steps to the target."""
    first_step: Share | None = None
    """Reduction of the first attempt; null leaves it to the schedule."""
    backoff: Share = 0.5
    """A rejected step is undone, and its size is multiplied by this."""
    smallest_step: Share = 0.005
    """The loop ends when the next step would be smaller than this."""
    max_attempts: StrictInt = Field(default=10, ge=1, le=10_000)
    """The loop ends after this many attempts, accepted or not."""
    max_accuracy_drop: StrictFloat = Field(default=0.01, ge=0, lt=1)
    """The floor: what validation accuracy may lose against the baseline, as a fraction; for a metric that is no share,
    such as RMSE or perplexity, by what share of the baseline's it may get worse.
    """
    max_drop: MaxDrop | None = None
    """The floor in the metric's own direction, in place of max_accuracy_drop: {absolute: 0.5} in the metric's unit, or
    {relative: 0.02}, a share of the baseline's score.
    """
    ignore: tuple[str, ...] = ()
    """Modules or parameters that stay whole, such as [fc, "layer1.*"]."""
    recipes: tuple[ImportableRecipe, ...] = Field(default=RECIPES, max_length=100)
    """Fine-tuning recipes. Each is tried after every step, and the best on the validation samples is kept; [] trains
    nothing. By default two: distil, with the baseline as teacher (distillation 0.7), and plain, without.
    """
    undo_training: bool = False
    """Whether training that does harm is undone: an epoch that ends worse on the validation samples than the best state
    before it, by more than chance explains, and a training that ends below where it began. Log and report say so.
    Gates and sparsity are trained to their end all the same.
    """
    allow_other_data: bool = False
    """Whether fine-tuning may use data other than the baseline's; otherwise that is an error."""

    @model_validator(mode="after")
    def _recipe_names_differ(self) -> Self:
        names = [recipe.name for recipe in self.recipes]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"two recipes are named {', '.join(map(repr, twice))}; give each its own name")
        return self

    @model_validator(mode="after")
    def _target_and_recipes_suit_the_kind(self) -> Self:
        kinds, suitable = self.target.kinds, TARGETS[self.kind]
        if not set(kinds) <= set(suitable):
            raise ValueError(
                f"the target of kind {self.kind!r} is {' or '.join(suitable)}; found {' and '.join(kinds)}"
            )
        penalised = [recipe.name for recipe in self.recipes if recipe.sparsity is not None]
        if penalised and self.kind != "structured":
            raise ValueError(
                f"recipe {penalised[0]!r} names sparsity, which brings channels to zero; expected kind 'structured'"
            )
        return self

    @model_validator(mode="after")
    def _schedule_holds(self) -> Self:
        shares = self.target.shares
        known = len(shares) == len(self.target.kinds)
        if known and self.first_step is not None and self.first_step > max(shares.values()):
            share = max(shares.values())
            raise ValueError(f"first_step ({self.first_step:g}) must not be above the target ({share:g})")
        return self

    @property
    def reads_profile(self) -> bool:
        """Whether the result depends on predicted latencies, and so on a clock."""
        return self.target.names_latency

    @property
    def reads_curves(self) -> bool:
        """Whether what goes depends on how much accuracy each group costs."""
        return False

    @property
    def offers_streams(self) -> bool:
        """Whether channels of residual streams may go."""
        return False

    @property
    def measures_latency(self) -> bool:
        """Whether accepted steps are timed."""
        return False

    @property
    def channels_may_return(self) -> bool:
        """Whether each step chooses among all channels of the baseline again."""
        return False

    @property
    def begins_with(self) -> Start:
        """Weights that training begins with after each step."""
        return Start()

    @property
    def chosen_by(self) -> str:
        """What chooses what goes, as runs are named."""
        return "gates"

    def schedule_for(self, target: float) -> ScheduleSettings:
        """Return the schedule that rises to a total reduction."""
        return ScheduleSettings(
            target=target,
            iterations=self.iterations,
            shape=self.schedule,
            first_step=self.first_step,
            backoff=self.backoff,
            smallest_step=self.smallest_step,
            max_attempts=self.max_attempts,
        )
