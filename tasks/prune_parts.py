"""Parts of the section `prune`: the target, what goes, how it is shared, how the model recovers."""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple, Self

from pydantic import BeforeValidator, Field, model_validator

from pruning.choosing.selection import Normalise
from pruning.recovery.reconstruction import RIDGE
from tasks.names import Share, as_pattern
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


class Allocation(Section):
    """How the reduction is shared among the groups, where `kind` is structured."""

    by: Literal["sensitivity", "local", "global", "scoped", "search"] = "sensitivity"
    normalise: Normalise = "mean"
    scopes: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    candidates: int = Field(default=50, ge=1)

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

    method: Literal["none", "recalibrate", "absorb_means", "fold", "reconstruct"] = "recalibrate"
    num_samples: int = Field(default=1024, ge=2)
    ridge: float = Field(default=RIDGE, gt=0)


class Start(Section):
    """With which weights training begins after a step: the last ones, earlier ones, or fresh ones."""

    weights: Literal["keep", "rewind", "random"] = "keep"
    epoch: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _rewinds_to_an_epoch(self) -> Self:
        if (self.epoch is None) == (self.weights == "rewind"):
            raise ValueError("expected an epoch where weights is 'rewind', and only there")
        return self


class Weights(Section):
    """How single weights are chosen, where `kind` is unstructured."""

    scope: Literal["local", "global"] = "global"
    max_layer_sparsity: Share = 0.99


class Gates(Section):
    """How gates learn, where `kind` is dynamic."""

    weight: float = Field(default=100.0, gt=0)
    ramp: float = Field(default=0.5, gt=0, le=1)
