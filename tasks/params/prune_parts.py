"""Parts of the section `prune`: the target, what goes, how it is shared, how the model recovers."""

from __future__ import annotations

from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import BeforeValidator, Field, StrictFloat, StrictInt, WithJsonSchema, model_validator

from pruning.choosing.selection import Normalise
from pruning.recovery.reconstruction import RIDGE
from tasks.params.names import Share, as_pattern
from tasks.params.section import Section


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

    by: Literal["sensitivity", "local", "global", "scoped", "search"] = "global"
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
        if bool(self.scopes) != (self.by == "scoped"):
            raise ValueError(
                f"scopes are {'given' if self.scopes else 'missing'} and by is {self.by!r}; expected scopes, named "
                "sets of modules such as {early: [layer1.*], late: [layer2.*]}, where by is 'scoped' and only there"
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
