"""What is to be saved, how it is shared, what gives way out of reach; what may be lost; how the model recovers."""

from __future__ import annotations

from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import BeforeValidator, Field, StrictFloat, StrictInt, WithJsonSchema, model_validator

from pruning.allocation.selection import Normalise
from pruning.metrics import Measure
from pruning.recovery.reconstruct import RIDGE
from tasks.config.types import Section, Share, as_pattern


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
    """The reduction to reach, against the baseline: one of these, or several at once."""

    mac_reduction: Share | None = None
    """1 − MACs after / before; for kind dynamic, of the mean over the validation samples."""
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
            raise ValueError("latency_ms and latency_reduction are the same target; expected only one of them")
        return self

    @property
    def kinds(self) -> tuple[str, ...]:
        """The names of the targets that are given."""
        return tuple(name for name, value in self if value is not None)

    @property
    def names_latency(self) -> bool:
        """Whether milliseconds are asked for."""
        return self.latency_ms is not None or self.latency_reduction is not None

    @property
    def shares(self) -> dict[str, float]:
        """The targets given as shares; bytes and milliseconds can only be converted with the baseline."""
        found = {} if self.pattern is None else {"pattern": 1 - self.pattern.num_kept / self.pattern.of}
        for name in ("mac_reduction", "parameter_reduction", "latency_reduction", "weight_sparsity"):
            if (share := getattr(self, name)) is not None:
                found[name] = share
        return found


TriedName = Normalise | Literal["local", "sensitivity"]


def _as_strategy(name: TriedName) -> dict[str, str]:
    return {"strategy": name} if name in ("local", "sensitivity") else {"strategy": "global", "normalise": name}


class EvolutionSettings(Section):
    """How long and how wide an evolutionary search is."""

    generations: StrictInt = Field(default=30, ge=0, le=100_000)
    """After how many it ends."""
    offspring: StrictInt = Field(default=16, ge=1, le=10_000)
    """Divisions of the target that each generation tries."""
    survivors: StrictInt = Field(default=2, ge=1, le=10_000)
    """How many of them are narrowed and recovered to be judged; the others are sifted out as models whose layers are
    taken from the database of levels.
    """
    num_samples: StrictInt = Field(default=512, ge=1, le=10_000_000)
    """Validation samples, without their labels, that models are judged on; offspring are sifted on fewer."""
    num_levels: StrictInt = Field(default=24, ge=2, le=10_000)
    """Widths of each group that mutations go to."""
    max_bytes: StrictInt = Field(default=2**31, ge=1, le=10**13)
    """Of the database of levels, in the workspace while the attempt lasts; what was not used for longest is dropped."""


class Allocation(Section):
    """How the reduction is divided among the groups."""

    strategy: Literal["sensitivity", "local", "global", "scoped", "search", "trial", "evolve"] = "global"
    """global: one threshold on all scores. sensitivity: least predicted loss by the curves of analyze. local: the same
    share of each group. scoped: one threshold for each of the scopes. search: the best of random candidates. trial: the
    best of those named in tried. evolve: an evolutionary search for the model whose outputs are nearest to the
    baseline's, from the answers of global and of those named in tried.
    """
    normalise: Normalise = "mean"
    """For global and scoped: what makes scores of different groups comparable."""
    scopes: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """For scoped: named sets of modules such as {early: ["layer1.*"]}; all other modules form one more set."""
    candidates: StrictInt = Field(default=50, ge=1, le=100_000)
    """For search: how many random candidates are judged on validation samples, each after its batch norms were measured
    again.
    """
    tried: tuple[TriedName, ...] = Field(default=("macs", "mean", "none", "lamp", "local"), min_length=1)
    """For trial: allocations that are tried in every step. Each is narrowed and recovered, and judged by its loss on
    validation samples, without training; the first that can't be told from the best is taken. mean, max, none, macs and
    lamp: global with this normalisation.
    """

    evolution: EvolutionSettings = EvolutionSettings()
    """For evolve: how long it searches."""

    @property
    def reads_curves(self) -> bool:
        """Whether sensitivity curves are needed."""
        return self.strategy == "sensitivity" or (self.strategy == "trial" and "sensitivity" in self.tried)

    def candidates_tried(self) -> dict[str, Allocation]:
        """Return the allocations of a trial by their names, in order."""
        return {name: self.model_copy(update=_as_strategy(name)) for name in self.tried}

    @model_validator(mode="after")
    def _each_is_tried_once(self) -> Self:
        twice = sorted({name for name in self.tried if self.tried.count(name) > 1})
        if twice:
            raise ValueError(f"tried names {', '.join(twice)} twice; expected each allocation once")
        return self

    @model_validator(mode="after")
    def _scopes_are_given_where_they_are_used(self) -> Self:
        if bool(self.scopes) != (self.strategy == "scoped"):
            raise ValueError(
                f"scopes are {'given' if self.scopes else 'missing'} and strategy is {self.strategy!r}; "
                "expected scopes, named sets of modules such as {early: [layer1.*], late: [layer2.*]}, "
                "where strategy is 'scoped' and only there"
            )
        return self


class RelaxedLimits(Section):
    """Limits for a target that is out of reach within those before them."""

    max_group_rate: StrictFloat = Field(gt=0, le=1)
    """The largest share of its channels that a group may lose in total."""
    min_channels: StrictInt = Field(ge=1, le=1_000_000)
    """The number of channels that every group keeps."""


RELAXED = tuple(
    RelaxedLimits(max_group_rate=rate, min_channels=kept) for rate, kept in ((0.85, 8), (0.95, 4), (1.0, 1))
)


class MaxDrop(Section):
    """How much worse a score may get, in the metric's own direction: a larger RMSE, a smaller accuracy."""

    absolute: StrictFloat | None = Field(default=None, ge=0, le=1e12)
    """In the metric's own unit."""
    relative: StrictFloat | None = Field(default=None, ge=0, le=1000)
    """As a share of the reference's score."""

    @model_validator(mode="after")
    def _is_one_of_both(self) -> Self:
        if (self.absolute is None) == (self.relative is None):
            raise ValueError("expected either absolute or relative, such as {relative: 0.02}")
        return self


def worst_score(reference: float, measure: Measure, fraction: float, limit: MaxDrop | None) -> float:
    """Return the worst score that is accepted.

    Args:
        reference: The score that it is compared with.
        measure: Which way is up.
        fraction: By how much it may be worse: of 1 where scores are shares, else of the reference.
        limit: In place of the fraction.
    """
    if limit is None:
        limit = MaxDrop(absolute=fraction) if measure.is_share else MaxDrop(relative=fraction)
    drop = limit.absolute if limit.absolute is not None else (limit.relative or 0.0) * abs(reference)
    return measure.worse_by(reference, drop)


class Recover(Section):
    """How a narrowed model is recovered before it is trained; this needs inputs but no labels."""

    method: Literal["none", "recalibrate", "absorb_means", "fold", "reconstruct"] = "reconstruct"
    """reconstruct: layers are refitted so that their outputs stay the same. recalibrate: batch norms are measured
    again. absorb_means: only the means of the layers' outputs are corrected. fold: the criterion's own solution.
    none: nothing.
    """
    num_samples: StrictInt = Field(default=512, ge=2, le=10_000_000)
    """Number of training samples used."""
    ridge: StrictFloat = Field(default=RIDGE, gt=0, le=1_000_000)
    """For reconstruct: the least weight of the pull towards the old weights."""


class Start(Section):
    """The weights that training begins with after a step: the present ones, earlier ones, or fresh ones."""

    weights: Literal["keep", "rewind", "random"] = "keep"
    """keep: the present weights. rewind: those of an earlier epoch of the baseline. random: fresh ones."""
    epoch: StrictInt | None = Field(default=None, ge=1, le=100_000)
    """For rewind: an epoch of baseline.keep_epochs."""

    @model_validator(mode="after")
    def _rewinds_to_an_epoch(self) -> Self:
        if (self.epoch is None) == (self.weights == "rewind"):
            raise ValueError("expected an epoch where weights is 'rewind', and only there")
        return self


class Gates(Section):
    """How gates learn."""

    weight: StrictFloat = Field(default=100.0, gt=0, le=1_000_000)
    """Weight of the penalty on MACs."""
    ramp: StrictFloat = Field(default=0.5, gt=0, le=1)
    """Part of the training over which the MACs fall to the target."""
