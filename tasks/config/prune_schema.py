"""The section `prune` of the settings: the target, what goes, how it is shared, how the model recovers."""

from __future__ import annotations

from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import BeforeValidator, Field, StrictFloat, StrictInt, WithJsonSchema, model_validator

from pruning.allocation.hardware_widths import PORTABLE
from pruning.allocation.schedule import ScheduleSettings
from pruning.allocation.selection import Normalise
from pruning.errors import unknown_name
from pruning.importance import find_criterion
from pruning.recovery.reconstruct import RIDGE
from pruning.training.recipe import Recipe
from pruning.unstructured.criteria import weight_criterion_names
from tasks.config.types import CriterionName, RoundFor, RoundTo, Section, Share, as_pattern


class Pattern(NamedTuple):
    """N of every M weights stay."""

    num_kept: int
    of: int


PATTERN_SCHEMA: dict[str, Any] = {"type": "string", "pattern": "^[0-9]+:[0-9]+$"}
"""As it is written in `params.yaml`."""

Kind = Literal["structured", "unstructured", "n_m", "dynamic"]

TARGETS: dict[Kind, tuple[str, ...]] = {
    "structured": ("mac_reduction", "parameter_reduction", "size_bytes", "latency_reduction", "latency_ms"),
    "unstructured": ("weight_sparsity",),
    "n_m": ("pattern",),
    "dynamic": ("mac_reduction",),
}


class Target(Section):
    """What the model is to come down to, against the baseline: one of these, or several at once."""

    mac_reduction: Share | None = None
    """1 − MACs after / before."""
    parameter_reduction: Share | None = None
    """1 − parameters after / before."""
    size_bytes: StrictInt | None = Field(default=None, gt=0, le=10**13)
    """Stored size of parameters and buffers, in bytes."""
    latency_reduction: Share | None = None
    """1 − latency after / before, as predicted from the profile."""
    latency_ms: StrictFloat | None = Field(default=None, gt=0, le=10_000_000)
    """Milliseconds per batch, as predicted from the profile."""
    weight_sparsity: Share | None = None
    """Share of the weights that are zero; for kind unstructured."""
    pattern: Annotated[Pattern, BeforeValidator(as_pattern), WithJsonSchema(PATTERN_SCHEMA)] | None = None
    """N of every M weights stay, written "2:4"; for kind n_m."""

    @model_validator(mode="after")
    def _at_least_one(self) -> Self:
        if not self.kinds:
            raise ValueError(f"expected at least one of {', '.join(type(self).model_fields)}; found none")
        if self.latency_ms is not None and self.latency_reduction is not None:
            raise ValueError("latency_ms and latency_reduction say the same thing twice; expected one of them")
        return self

    @property
    def kinds(self) -> tuple[str, ...]:
        """Which of them are given."""
        return tuple(name for name, value in self if value is not None)

    @property
    def names_latency(self) -> bool:
        """Whether milliseconds are asked for."""
        return self.latency_ms is not None or self.latency_reduction is not None

    @property
    def shares(self) -> dict[str, float]:
        """Those that are given as shares of the baseline; bytes and milliseconds only the baseline can tell."""
        found = {} if self.pattern is None else {"pattern": 1 - self.pattern.num_kept / self.pattern.of}
        for name in ("mac_reduction", "parameter_reduction", "latency_reduction", "weight_sparsity"):
            if (share := getattr(self, name)) is not None:
                found[name] = share
        return found


class Allocation(Section):
    """How the reduction is shared among the groups, where `kind` is structured."""

    strategy: Literal["sensitivity", "local", "global", "scoped", "search"] = "global"
    """global: one threshold on all scores. sensitivity: the curves of analyze. local: the same share of each group.
    scoped: one threshold for each of the scopes. search: the best of candidates drawn at random.
    """
    normalise: Normalise = "mean"
    """How scores compare between groups, for global and scoped."""
    scopes: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """For scoped: named sets of modules such as {early: ["layer1.*"]}; what no set names is one more."""
    candidates: StrictInt = Field(default=50, ge=1, le=100_000)
    """For search: how many are drawn and judged."""

    @model_validator(mode="after")
    def _scopes_are_given_where_they_are_used(self) -> Self:
        if bool(self.scopes) != (self.strategy == "scoped"):
            raise ValueError(
                f"scopes are {'given' if self.scopes else 'missing'} and strategy is {self.strategy!r}; "
                "expected scopes, named sets of modules such as {early: [layer1.*], late: [layer2.*]}, "
                "where strategy is 'scoped' and only there"
            )
        return self


class Recover(Section):
    """What is done to a narrowed model before it is trained; it looks at inputs alone."""

    method: Literal["none", "recalibrate", "absorb_means", "fold", "reconstruct"] = "reconstruct"
    """reconstruct: layers are refitted to give what they gave before. recalibrate: batch norms are measured anew.
    absorb_means: the layers' means alone. fold: the criterion's own solution. none: nothing.
    """
    num_samples: StrictInt = Field(default=512, ge=2, le=10_000_000)
    """Training samples that are looked at."""
    ridge: StrictFloat = Field(default=RIDGE, gt=0, le=1_000_000)
    """For reconstruct: least pull towards the old weights."""


class Start(Section):
    """With which weights training begins after a step: the last ones, earlier ones, or fresh ones."""

    weights: Literal["keep", "rewind", "random"] = "keep"
    """keep: the weights as they are. rewind: those of an earlier epoch of the baseline. random: fresh ones."""
    epoch: StrictInt | None = Field(default=None, ge=1, le=100_000)
    """For rewind: an epoch of baseline.keep_epochs."""

    @model_validator(mode="after")
    def _rewinds_to_an_epoch(self) -> Self:
        if (self.epoch is None) == (self.weights == "rewind"):
            raise ValueError("expected an epoch where weights is 'rewind', and only there")
        return self


class Weights(Section):
    """How single weights are chosen, where `kind` is unstructured."""

    scope: Literal["local", "global"] = "global"
    """global: one threshold over all layers. local: the same share of each layer."""
    max_layer_sparsity: Share = 0.99
    """Largest share of its weights that a layer may lose."""


class Gates(Section):
    """How gates learn, where `kind` is dynamic."""

    weight: StrictFloat = Field(default=100.0, gt=0, le=1_000_000)
    """Weight of the penalty on MACs."""
    ramp: StrictFloat = Field(default=0.5, gt=0, le=1)
    """Part of the training over which the MACs fall to the target."""


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
    min_channels: StrictInt = Field(default=8, ge=1, le=1_000_000)
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
        return self.kind == "structured" and self.allocation.strategy == "sensitivity"

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
