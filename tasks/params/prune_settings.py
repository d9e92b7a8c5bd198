"""The section `prune` of the settings."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, StrictFloat, StrictInt, model_validator

from pruning.choosing.kernel_widths import PORTABLE
from pruning.choosing.schedule import ScheduleSettings
from pruning.criteria import find_criterion
from pruning.errors import unknown_name
from pruning.fine_grained.weight_criteria import weight_criterion_names
from pruning.training.recipe import Recipe
from tasks.params.names import CriterionName, RoundFor, RoundTo, Share
from tasks.params.prune_parts import TARGETS, Allocation, Gates, Kind, Recover, Start, Target, Weights
from tasks.params.section import Section

RECIPES = (Recipe(name="distil", distillation=0.7), Recipe(name="plain"))
"""Fine-tuning with the baseline as teacher, and without."""


class Prune(Section):
    """The loop: target, pace, floor, what is left alone, how a step is recovered."""

    kind: Kind = "structured"
    """structured: channels go and the model gets narrower. unstructured: single weights become zero. n_m: N of every M
    weights stay. dynamic: gates choose channels for each input.
    """
    target: Target
    """What the model is to come down to, against the baseline: one of these, or several at once."""
    criterion: CriterionName = "structured_obs"
    """What goes first: a built-in name (docs/choices.md), or the import string of a function of your own."""
    schedule: Literal["linear", "geometric", "cubic"] = "geometric"
    """How the goals rise to the target."""
    iterations: StrictInt = Field(default=3, ge=1, le=1000)
    """Number of goals on the way to the target."""
    first_step: Share | None = None
    """Reduction that the first attempt goes to; null leaves it to the schedule."""
    backoff: Share = 0.5
    """A rejected step is undone and multiplied by this."""
    smallest_step: Share = 0.005
    """The loop ends when the step that is left is smaller."""
    max_attempts: StrictInt = Field(default=10, ge=1, le=10_000)
    """The loop ends after so many attempts, accepted or not."""
    max_accuracy_drop: StrictFloat = Field(default=0.01, ge=0, lt=1)
    """The floor: what validation accuracy may lose against the baseline, as a fraction."""
    max_group_rate: Share = 0.75
    """structured: largest share of its channels that a group may lose in all."""
    keep_at_least: StrictInt = Field(default=8, ge=1, le=1_000_000)
    """structured: channels that every group keeps."""
    round_to: RoundTo = "auto"
    """structured: kept counts are multiples of this; auto: the counts that kernels reward."""
    round_for: RoundFor = PORTABLE
    """structured: the table of kernel widths that auto goes by."""
    measure_latency: bool = False
    """Latency targets: whether accepted steps are measured and correct the next predictions."""
    ignore: tuple[str, ...] = ()
    """Modules or parameters that stay whole, such as [fc, "layer1.*"]."""
    criterion_samples: StrictInt = Field(default=1024, ge=1, le=10_000_000)
    """Training samples that the criterion looks at."""
    allocation: Allocation = Allocation()
    """structured: how many channels each group gives."""
    start: Start = Start()
    """Weights that training begins with after each step."""
    reversible: bool = False
    """structured: whether each step chooses among all channels of the baseline again."""
    weights: Weights = Weights()
    """unstructured: how single weights are chosen."""
    gates: Gates = Gates()
    """dynamic: how gates learn."""
    recover: Recover = Recover()
    """structured: what is done before training, by looking at inputs alone."""
    recipes: tuple[Recipe, ...] = Field(default=RECIPES, max_length=100)
    """Each is tried after every step, and the best on the validation samples goes on; [] trains nothing."""
    allow_other_data: bool = False
    """Whether fine-tuning may use other data than the baseline's."""

    @model_validator(mode="after")
    def _recipe_names_differ(self) -> Self:
        names = [recipe.name for recipe in self.recipes]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"two recipes are named {', '.join(map(repr, twice))}; give each its own name")
        return self

    @model_validator(mode="after")
    def _target_criterion_and_recipes_suit_the_kind(self) -> Self:
        kinds, suitable = self.target.kinds, TARGETS[self.kind]
        if not set(kinds) <= set(suitable):
            raise ValueError(
                f"the target of kind {self.kind!r} is {' or '.join(suitable)}; found {' and '.join(kinds)}"
            )
        by_weight = self.kind in ("unstructured", "n_m")
        if by_weight and ":" not in self.criterion and self.criterion not in weight_criterion_names():
            raise ValueError(
                f"kind {self.kind!r}: {unknown_name('criterion', self.criterion, weight_criterion_names())} "
                "(these score single weights)"
            )
        penalised = [recipe.name for recipe in self.recipes if recipe.sparsity is not None]
        if penalised and self.kind != "structured":
            raise ValueError(
                f"recipe {penalised[0]!r} names sparsity, which brings channels to zero; expected kind 'structured'"
            )
        return self

    @model_validator(mode="after")
    def _recovery_suits_what_went_before(self) -> Self:
        if self.recover.method == "fold" and (":" in self.criterion or find_criterion(self.criterion).folding is None):
            raise ValueError(
                f"recover.method is 'fold', but criterion {self.criterion!r} has no solution to fold into the layers "
                "that follow; expected one of greedy_forward, lasso, reduce_and_reuse, structured_obs, or 'reconstruct'"
            )
        if self.start.weights != "keep":
            if self.recover.method not in ("none", "recalibrate"):
                raise ValueError(
                    f"start.weights is {self.start.weights!r}, so recover.method {self.recover.method!r} would be "
                    "undone; expected 'none' or 'recalibrate'"
                )
            if self.kind == "dynamic" or self.reversible or not self.recipes:
                raise ValueError(
                    f"start.weights is {self.start.weights!r}; expected a kind other than 'dynamic', reversible false, "
                    "and recipes to train by"
                )
        if self.reversible and self.kind != "structured":
            raise ValueError("reversible lets channels come back; expected kind 'structured'")
        if not self.recipes and self.kind == "dynamic":
            raise ValueError("gates have to learn; expected a recipe at least")
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
        """Whether what goes depends on predicted latencies, and so on a clock."""
        return self.target.names_latency

    @property
    def reads_curves(self) -> bool:
        """Whether what goes depends on how much accuracy each group costs."""
        return self.kind == "structured" and self.allocation.by == "sensitivity"

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
