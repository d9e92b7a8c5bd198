"""The figures of a model that are always reported together."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class Measured(BaseModel):
    """What a model scored and what it costs.

    Attributes:
        accuracy: Mean of the metric, a fraction in [0, 1].
        loss: Mean of the loss over the same samples.
        macs: Of one sample; where gates choose by the sample, the mean over the samples of what is open.
        parameters: How many, zeros among them.
        size_bytes: Of all parameters and buffers as they are stored, zeros as bits where that is shorter.
        weight_sparsity: Share of zeros in weights of two axes or more, where they are stored as bits.
        effective_macs: Where they are: the MACs left to a runtime that skips zero weights.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    accuracy: float
    loss: float
    macs: int = Field(gt=0)
    parameters: int = Field(gt=0)
    size_bytes: int = Field(gt=0)
    weight_sparsity: float | None = None
    effective_macs: int | None = None

    def reduction_from(self, original: Measured) -> dict[str, float]:
        """Return 1 − this/original for MACs, parameters and bytes, by the names of the settings' targets."""
        return {
            "mac_reduction": 1 - self.macs / original.macs,
            "parameter_reduction": 1 - self.parameters / original.parameters,
            "size_bytes": 1 - self.size_bytes / original.size_bytes,
        }
