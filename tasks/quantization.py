"""What the quantised file is and how it compares with the float one: what `quantize` writes and others read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from pruning.metrics import Measure
from tasks.config.quantize_schema import Quantize
from tasks.config.target_schema import worst_score
from tasks.intervals import Paired, describe_pairs
from tasks.workspace import Workspace

FOLDER = "quantized"
FILE = "quantization.json"
ONNX = "quantized.onnx"
_ROUNDING = 1e-9

Reason = Literal["head", "ignored", "no kernel", "no range", "other operator", "accuracy"]

REASONS: Mapping[Reason, str] = {
    "head": "heads: what they give is an output",
    "ignored": "named by quantize.ignore",
    "no kernel": "the runtime has no integer kernel",
    "no range": "values without end go through them",
    "other operator": "not among the operators that the profile quantises",
    "accuracy": "the worst by the noise that each makes alone, until the gate was passed",
}


class Left(BaseModel):
    """A layer that stays in float.

    Attributes:
        layer: Its module, where the file tells; else the node of the file.
        reason: Why.
        snr_db: Of the outputs if it alone is quantised, in decibels; None where that wasn't measured.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    layer: str
    reason: Reason
    snr_db: float | None = None


class Tried(BaseModel):
    """One file that was tried.

    Attributes:
        calibrator: How ranges followed from values; None where none are measured.
        corrected: Whether the mean errors were taken out of the biases.
        num_left: Layers that were left in float for accuracy.
        score: On the validation samples.
        agreement: Share of these on which it answers as the float file; None where outputs are no classes.
        snr_db: Of the worst output.
        passed: Whether it passed the gate.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    calibrator: str | None
    corrected: bool
    num_left: int
    score: float
    agreement: float | None
    snr_db: float
    passed: bool


class OutputFigures(BaseModel):
    """How far an output is from the float file's.

    Attributes:
        relative_error: ‖quantised − float‖ / ‖float‖ over the validation samples; None where it has no end.
        snr_db: The same in decibels.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    relative_error: float | None
    snr_db: float


class Quantization(BaseModel):
    """A quantised file, and how it compares with the float one on the validation samples.

    Attributes:
        profile: For what it was made.
        types: Of its numbers, for people.
        reduce_range: Whether weights use 7 of 8 bits.
        calibrator: How ranges followed from values; None where none are measured.
        corrected: Whether the mean errors were taken out of the biases.
        num_calibration_samples: Training samples that were used.
        num_layers: Layers with weights.
        left: Those that stay in float; none of a half-precision file.
        noise: Layer -> decibels of the outputs if it alone is quantised; empty where nothing had to be left.
        tried: Files that were tried, in order.
        float_bytes: Size of the float file.
        size_bytes: Of this one.
        float_score: The float file's.
        score: This one's.
        limit: The worst score that is accepted.
        pairs: Both compared sample by sample; None where the score is no mean over samples.
        agreement: Share of samples answered alike; None where outputs are no classes.
        min_agreement: The least that is accepted.
        num_samples: How many there are.
        outputs: Name -> how far it is.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    profile: str
    types: str
    reduce_range: bool
    calibrator: str | None
    corrected: bool
    num_calibration_samples: int
    num_layers: int
    left: tuple[Left, ...]
    noise: dict[str, float] = Field(default_factory=dict)
    tried: tuple[Tried, ...]
    float_bytes: int = Field(gt=0)
    size_bytes: int = Field(gt=0)
    float_score: float
    score: float
    limit: float
    pairs: Paired | None
    agreement: float | None
    min_agreement: float
    num_samples: int
    outputs: dict[str, OutputFigures]

    @property
    def size_ratio(self) -> float:
        """Its size as a share of the float file's."""
        return self.size_bytes / self.float_bytes

    def left_because(self, reason: Reason) -> tuple[str, ...]:
        """Return the layers that stay in float for a reason."""
        return tuple(one.layer for one in self.left if one.reason == reason)

    def faults(self, measure: Measure) -> list[str]:
        """Say in which ways the gate isn't passed; nothing where it is."""
        return gate_faults(measure, self.score, self.limit, self.agreement, self.min_agreement)

    def describe_score(self, measure: Measure) -> str:
        """Say how the score changed, and whether that is more than chance."""
        lost = measure.gain(self.score, self.float_score)
        change = f"{measure.show_size(lost)} {'lost' if lost > 0 else 'gained'}" if lost else "nothing lost"
        return f"{change} ({describe_pairs(self.pairs, measure)})" if self.pairs else change


def gate_faults(
    measure: Measure, score: float, limit: float, agreement: float | None, min_agreement: float
) -> list[str]:
    """Say in which ways a quantised file keeps too little of the float one's answers; nothing where it does.

    Args:
        measure: What the score is.
        score: Of the quantised file.
        limit: The worst that is accepted.
        agreement: Share of samples answered alike; None where outputs are no classes.
        min_agreement: The least that is accepted.
    """
    found = []
    if measure.gain(limit, score) < -_ROUNDING:
        side = "least" if measure.higher_is_better else "most"
        found.append(f"{measure.name} {measure.show(score)}, expected at {side} {measure.show(limit)}")
    if agreement is not None and agreement < min_agreement - _ROUNDING:
        found.append(f"agreement {agreement:.2%}, expected at least {min_agreement:.2%}")
    return found


def limit_for(chosen: Quantize, float_score: float, measure: Measure) -> float:
    """Return the worst score that is accepted of a quantised file."""
    return worst_score(float_score, measure, chosen.max_accuracy_drop, chosen.max_drop)


class _Written(BaseModel):
    """What `quantization.json` holds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    quantization: Quantization | None


def as_json(found: Quantization | None) -> object:
    """Return what `quantization.json` holds."""
    return _Written(quantization=found).model_dump(mode="json")


def read_quantization(workspace: Workspace) -> Quantization | None:
    """Read how the quantised file compares with the float one; None where none was asked for.

    Raises:
        WorkspaceError: It isn't there or is damaged.
    """
    return workspace.read_json(FOLDER, FILE, "quantize", _Written).quantization
