"""The section `prune` of the settings: the target, what goes, how it is shared, how the model recovers.

It is one of four models, told apart by `kind`; each has the keys of its kind alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import (
    Discriminator,
    Field,
    StrictFloat,
    StrictInt,
    Tag,
    model_validator,
)

from pruning.allocation.hardware_widths import PORTABLE
from pruning.allocation.schedule import ScheduleSettings
from pruning.importance import FALLBACK, find_criterion
from pruning.plan.constraints import Freedom, Limits
from pruning.training.recipe import Recipe
from tasks.config.target_schema import (
    RELAXED,
    TARGETS,
    Allocation,
    Gates,
    Kind,
    MaxDrop,
    Recover,
    RelaxedLimits,
    Start,
    Target,
)
from tasks.config.types import (
    KIND,
    CriterionName,
    ImportableRecipe,
    RoundFor,
    RoundTo,
    Section,
    Share,
    WeightCriterionName,
)


class Weights(Section):
    """How single weights are chosen."""

    scope: Literal["local", "global"] = "global"
    """global: one threshold over all layers. local: the same share of each layer."""
    max_layer_sparsity: Share = 0.99
    """Largest share of its weights that a layer may lose."""


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


class _ByScores(Prune):
    """What goes is chosen by scores."""

    criterion: str
    """What goes first."""
    criterion_samples: StrictInt = Field(default=1024, ge=1, le=10_000_000)
    """Training samples that the criterion looks at."""
    start: Start = Start()
    """Weights that training begins with after each step."""

    @model_validator(mode="after")
    def _start_is_trained_from(self) -> Self:
        if self.start.weights != "keep" and not self.recipes:
            raise ValueError(f"start.weights is {self.start.weights!r}; expected recipes to train by")
        return self

    @property
    def begins_with(self) -> Start:
        """Weights that training begins with after each step."""
        return self.start

    @property
    def chosen_by(self) -> str:
        """What chooses what goes, as runs are named."""
        return self.criterion


class Structured(_ByScores):
    """Channels go, and the model gets narrower."""

    kind: Literal["structured"] = "structured"
    """channels go, and the model gets narrower; the other kinds leave its shape as it is."""
    criterion: CriterionName = "structured_obs"
    """What goes first: a built-in name (docs/choices.md), or the import string of a function of your own,
    my_package.scores:mine.
    """
    fallback: CriterionName = FALLBACK
    """What goes first in groups for which the criterion has no scores by its definition, named likewise. A warning says
    which groups they are, and why.
    """
    max_group_rate: Share = 0.75
    """The largest share of its channels that a group may lose in total, so that no layer collapses."""
    min_channels: StrictInt = Field(default=8, ge=1, le=1_000_000)
    """The number of channels that every group keeps."""
    relaxed_limits: tuple[RelaxedLimits, ...] = Field(default=RELAXED, max_length=100)
    """Where a target is out of reach within max_group_rate and min_channels, the same two are taken from here, one
    entry after another; the log and the report say which. []: such a target is refused.
    """
    residual_streams: Literal["never", "when_needed", "always"] = "when_needed"
    """Whether channels of residual streams go, over which a norm computes its statistics: a transformer's hidden size,
    a stage of ConvNeXt. when_needed: where a target is out of reach within the first limits, and looser limits leave a
    higher loss than streams do, or don't reach it. The norms then take their statistics over the channels that stay.
    """
    basis: Literal["auto", "channels", "principal_components"] = "auto"
    """What of a residual stream goes. principal_components: a stream is turned before it loses channels, so that what
    its norms see lies in few of them; the model computes the same. Only layers and norms (modules, in front of layers)
    may read it then, and the output layer must not be tied to the embedding. auto: so wherever that is possible.
    """
    blocks: Literal["never", "allowed"] = "never"
    """Whether residual branches go whole: as many, before channels do, as leave the least loss on validation data."""
    round_to: RoundTo = "auto"
    """Numbers of kept channels are multiples of this; 1: any number. auto: the numbers at which the kernels of
    round_for are fast, for a latency target those at which its profile is fast.
    """
    round_for: RoundFor = PORTABLE
    """The table of widths for auto. portable: multiples of 16, and of 8 in groups narrower than 64.
    onnxruntime_x86_avx2: as measured there (16 and 40 of 64 are slow; 24, 32, 48 and 56 are not).
    """
    sizes: Literal["auto", "uniform", "per_layer"] = "auto"
    """uniform: layers of a kind keep equal sizes, so that the class of model.from_pretrained, GGUF and vLLM load it.
    per_layer: each its own; secateur.from_pretrained loads that. auto: uniform with from_pretrained, else per_layer."""
    measure_latency: bool = False
    """For latency targets. false: only predictions count, so the same profile gives the same bytes. true: accepted
    steps are measured, and the ratio to the prediction corrects the next steps.
    """
    allocation: Allocation = Allocation()
    """How many channels each group loses."""
    recover: Recover = Recover()
    """How the model is recovered before training, from inputs alone."""
    reversible: bool = False
    """Whether each step chooses among all channels of the baseline again, including removed ones."""

    @model_validator(mode="after")
    def _recovery_suits_what_went_before(self) -> Self:
        if self.recover.method == "fold" and (":" in self.criterion or find_criterion(self.criterion).folding is None):
            raise ValueError(
                f"recover.method is 'fold', but criterion {self.criterion!r} has no solution to fold into the layers "
                "that follow; expected one of greedy_forward, lasso, reduce_and_reuse, structured_obs, or 'reconstruct'"
            )
        if self.start.weights != "keep" and self.recover.method not in ("none", "recalibrate"):
            raise ValueError(
                f"start.weights is {self.start.weights!r}, so recover.method {self.recover.method!r} would be "
                "undone; expected 'none' or 'recalibrate'"
            )
        if self.start.weights != "keep" and self.reversible:
            raise ValueError(f"start.weights is {self.start.weights!r}; expected reversible false")
        if self.basis == "principal_components" and not self.turns_streams:
            raise ValueError(
                f"basis is {self.basis!r}, which turns residual streams; expected residual_streams 'when_needed' or "
                "'always', start.weights 'keep', reversible false, and an allocation that reads no curves, which are "
                "those of the channels as they were"
            )
        if self.blocks == "allowed" and self.allocation.strategy == "sensitivity":
            raise ValueError(
                "blocks is 'allowed' and allocation.strategy 'sensitivity', but without a block other channels belong "
                "together than those whose curves analyze has measured; expected another strategy, or blocks 'never'"
            )
        return self

    @property
    def freedoms(self) -> tuple[Freedom, ...]:
        """What a plan may do to meet its target, in the order in which it is tried."""
        streams = {"never": (False,), "when_needed": (False, True), "always": (True,)}[self.residual_streams]
        return tuple(Freedom(limits, streams=taken) for taken in streams for limits in self.limits)

    @property
    def offers_streams(self) -> bool:
        """Whether channels of residual streams may go."""
        return self.residual_streams != "never"

    @property
    def turns_streams(self) -> bool:
        """Whether streams are turned where they can be; not where something goes by the channels as they were."""
        as_they_were = self.reversible or self.start.weights != "keep" or self.allocation.reads_curves
        return self.basis != "channels" and self.offers_streams and not as_they_were

    @property
    def limits(self) -> tuple[Limits, ...]:
        """The limits to try in order; none is tighter than one before it."""
        found = [Limits(self.min_channels, self.max_group_rate)]
        for one in self.relaxed_limits:
            before = found[-1]
            kept, rate = min(one.min_channels, before.min_channels), max(one.max_group_rate, before.max_group_rate)
            found.append(Limits(kept, rate))
        return tuple(dict.fromkeys(found))

    @property
    def reads_curves(self) -> bool:
        """Whether what goes depends on how much accuracy each group costs."""
        return self.allocation.reads_curves

    @property
    def measures_latency(self) -> bool:
        """Whether accepted steps are timed."""
        return self.measure_latency

    @property
    def channels_may_return(self) -> bool:
        """Whether each step chooses among all channels of the baseline again."""
        return self.reversible


class _SingleWeights(_ByScores):
    """Single weights become zero; the model's shape stays."""

    criterion: WeightCriterionName = "l1_norm"
    """What goes first: a name from pruning/unstructured/criteria.py, or the import string of a function of your own,
    my_package.scores:mine.
    """


class Unstructured(_SingleWeights):
    """Single weights become zero; the model's shape stays."""

    kind: Literal["unstructured"]
    """single weights become zero."""
    weights: Weights = Weights()
    """How single weights are chosen."""


class NOfM(_SingleWeights):
    """N of every M weights along the axis that a layer sums over stay; the model's shape stays."""

    kind: Literal["n_m"]
    """N of every M weights stay, along the axis that a layer sums over."""


class Dynamic(Prune):
    """Gates choose channels for each input; the model's shape stays."""

    kind: Literal["dynamic"]
    """gates, which are trained, choose channels for each input."""
    gates: Gates = Gates()
    """How gates learn."""

    @model_validator(mode="after")
    def _gates_learn(self) -> Self:
        if not self.recipes:
            raise ValueError("gates have to be trained; expected at least one recipe")
        return self


MODELS: dict[str, type[Prune]] = {
    "structured": Structured,
    "unstructured": Unstructured,
    "n_m": NOfM,
    "dynamic": Dynamic,
}
"""The section of each kind."""


def _kind_of(value: Any) -> str:
    """Say of which kind a section is; left out, it is structured."""
    if isinstance(value, Mapping):
        return str(value.get(KIND, "structured"))
    return value.kind if isinstance(value, Prune) else "structured"


PruneOfAKind = Annotated[
    Annotated[Structured, Tag("structured")]
    | Annotated[Unstructured, Tag("unstructured")]
    | Annotated[NOfM, Tag("n_m")]
    | Annotated[Dynamic, Tag("dynamic")],
    Discriminator(_kind_of),
]
"""The section `prune`: what is given has to belong to its kind."""
