"""How the network is quantised, and what its file has to keep of the float one's answers."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, StrictFloat, StrictInt

from tasks.config.target_schema import MaxDrop
from tasks.config.types import Section


class Quantize(Section):
    """Whether a quantised ONNX file is written too, for which runtime, and what it has to keep (docs/quantise.md)."""

    profile: Literal["cpu", "cpu_vnni", "tensorrt", "dynamic", "fp16", "bf16"] | None = None
    """For what. cpu: int8 for any x86 or ARM, with 7 bits a weight. cpu_vnni: the same with 8, for processors with
    VNNI. tensorrt: symmetric int8. dynamic: matrix products alone, for transformers. fp16, bf16: 16 bits. null: none.
    """
    calibration_samples: StrictInt = Field(default=256, ge=1, le=100_000)
    """Number of training samples from which the ranges of activations are measured."""
    correct_biases: bool = True
    """Whether the mean error of each output channel is taken out of its layer's bias."""
    ignore: tuple[str, ...] = Field(default=(), max_length=10_000)
    """Layers that stay in float, by the names of their modules, such as [fc, "layer1.*"]."""
    max_accuracy_drop: StrictFloat = Field(default=0.003, ge=0, lt=1)
    """Largest loss against the float file on the validation samples, as a fraction; of its figure, if that is no share.
    Layers go back to float until it is kept.
    """
    max_drop: MaxDrop | None = None
    """In place of max_accuracy_drop, in the metric's own direction: {absolute: 0.5} or {relative: 0.02}."""
    min_agreement: StrictFloat = Field(default=0.99, ge=0, le=1)
    """Least share of the validation samples on which both files answer with the same class, where there are classes."""
