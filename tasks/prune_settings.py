"""The section `prune` of the settings."""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple, Self

from pydantic import BeforeValidator, Field, model_validator

from pruning.errors import unknown_name
from pruning.recipe import Recipe
from pruning.schedule import ScheduleSettings
from pruning.weight_criteria import weight_criterion_names
from tasks.names import CriterionName, Share, as_pattern
from tasks.section import Section


class Pattern(NamedTuple):
    """N of every M weights stay."""

    num_kept: int
    of: int


Kind = Literal["structured", "unstructured", "n_m", "dynamic"]

TARGETS: dict[Kind, tuple[str, ...]] = {
    "structured": ("mac_reduction", "parameter_reduction", "size_bytes"),
    "unstructured": ("weight_sparsity",),
    "n_m": ("pattern",),
    "dynamic": ("mac_reduction",),
}


class Target(Section):
    """How small the model is to become, against the baseline: exactly one of these."""

    mac_reduction: Share | None = None
    parameter_reduction: Share | None = None
    size_bytes: int | None = Field(default=None, gt=0)
    weight_sparsity: Share | None = None
    pattern: Annotated[Pattern, BeforeValidator(as_pattern)] | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        given = [name for name, value in self if value is not None]
        if len(given) != 1:
            found = " and ".join(given) or "none"
            raise ValueError(f"expected exactly one of {', '.join(type(self).model_fields)}; found {found}")
        return self

    @property
    def kind(self) -> str:
        """Which of them is given."""
        return next(name for name, value in self if value is not None)

    @property
    def share(self) -> float | None:
        """The target as a share of the baseline; None for `size_bytes`, which only the baseline can tell."""
        if self.pattern is not None:
            return 1 - self.pattern.num_kept / self.pattern.of
        return self.mac_reduction or self.parameter_reduction or self.weight_sparsity


class Recalibrate(Section):
    """Batch norms are measured anew on this many training samples after each step."""

    num_samples: int = Field(default=1024, ge=2)


class Weights(Section):
    """How single weights are chosen, where `kind` is unstructured."""

    scope: Literal["local", "global"] = "global"
    max_layer_sparsity: Share = 0.99


class Gates(Section):
    """How gates learn, where `kind` is dynamic."""

    weight: float = Field(default=100.0, gt=0)
    ramp: float = Field(default=0.5, gt=0, le=1)


class Prune(Section):
    """The loop: target, pace, floor, what is left alone, how a step is recovered."""

    kind: Kind = "structured"
    target: Target
    criterion: CriterionName = "l2_norm"
    schedule: Literal["linear", "geometric", "cubic"] = "linear"
    iterations: int = Field(default=4, ge=1)
    first_step: Share | None = None
    backoff: Share = 0.5
    smallest_step: Share = 0.02
    max_attempts: int = Field(default=12, ge=1)
    max_accuracy_drop: float = Field(default=0.01, ge=0, lt=1)
    max_group_rate: Share = 0.9
    keep_at_least: int = Field(default=1, ge=1)
    round_to: int = Field(default=1, ge=1)
    ignore: tuple[str, ...] = ()
    weights: Weights = Weights()
    gates: Gates = Gates()
    recalibrate: Recalibrate = Recalibrate()
    recipes: tuple[Recipe, ...] = Field(min_length=1)
    allow_other_data: bool = False

    @model_validator(mode="after")
    def _recipe_names_differ(self) -> Self:
        names = [recipe.name for recipe in self.recipes]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"two recipes are named {', '.join(map(repr, twice))}; give each its own name")
        return self

    @model_validator(mode="after")
    def _target_criterion_and_recipes_suit_the_kind(self) -> Self:
        if self.target.kind not in TARGETS[self.kind]:
            raise ValueError(
                f"the target of kind {self.kind!r} is {' or '.join(TARGETS[self.kind])}; found {self.target.kind}"
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
    def _schedule_holds(self) -> Self:
        share = self.target.share
        if share is not None and self.first_step is not None and self.first_step > share:
            raise ValueError(f"first_step ({self.first_step:g}) must not be above the target ({share:g})")
        return self

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
