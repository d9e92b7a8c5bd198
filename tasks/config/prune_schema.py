"""The section `prune` of the settings: the target, what goes, how it is shared, how the model recovers.

It is one of four models, told apart by `kind`; each has the keys of its kind alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import (
    Discriminator,
    Field,
    StrictInt,
    Tag,
    model_validator,
)

from pruning.allocation.depth import Measure
from pruning.allocation.hardware_widths import PORTABLE
from pruning.importance import FALLBACK, find_criterion
from pruning.plan.constraints import Freedom, Limits
from tasks.config.loop_schema import Prune
from tasks.config.target_schema import (
    RELAXED,
    Allocation,
    Gates,
    Recover,
    RelaxedLimits,
    Start,
)
from tasks.config.types import (
    KIND,
    CriterionName,
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
    block_measure: Measure = "loss"
    """What a branch is scored by, for each unit of cost that it saves. loss: by how much the loss on validation samples
    rises without it. output_error: how far the outputs are moved. block_influence: 1 − the mean cosine of the stream
    before and after the branch (ShortGPT).
    """
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
        if self.allocation.strategy == "evolve" and self.start.weights != "keep":
            raise ValueError(
                f"allocation.strategy is 'evolve', which judges models before they are trained, but start.weights is "
                f"{self.start.weights!r}; expected 'keep', or another strategy"
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
