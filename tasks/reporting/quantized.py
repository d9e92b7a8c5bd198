"""The quantised file against the float one: may it be shipped in its place, what does it gain, what stays in float."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from pruning.metrics import Measure
from tasks.quantization import REASONS, Quantization, Tried, read_quantization
from tasks.reporting.tables import Line, Summary, as_bytes, latency_line, measure_in, score_line
from tasks.stages.benchmark import Row, is_slower, read_quantized_latencies
from tasks.workspace import Workspace

_MOST_NAMED = 12


@dataclass(frozen=True)
class QuantizedPart:
    """The content of the report's section.

    Attributes:
        sentence: Whether the file may be shipped in place of the float one, and why not, without its full stop.
        passed: Whether it may.
        lines: Both files.
        left: Why layers stay in float -> which.
        tried: The files that were tried: a head and a row of each.
        about: How it was made.
    """

    sentence: str
    passed: bool
    lines: tuple[Line, ...]
    left: Mapping[str, str]
    tried: Sequence[Sequence[str]]
    about: str


def quantized_part(workspace: Workspace, summary: Summary) -> QuantizedPart | None:
    """Compare both files, as the report has it; None where nothing is quantised.

    Raises:
        WorkspaceError: A stage hasn't run.
    """
    found = read_quantization(workspace)
    if found is None or "quantized" not in summary:
        return None
    measure, latencies = measure_in(summary), read_quantized_latencies(workspace)
    faults = reasons_against(found, latencies, measure)
    subject = f"quantised file ({found.profile})"
    against = f"Not to be shipped: the {subject} {'; '.join(faults)}"
    return QuantizedPart(
        sentence=against if faults else f"The {subject} can take the float one's place",
        passed=not faults,
        lines=(*_lines(found, summary, measure), *(_latency(*pair) for pair in latencies)),
        left=_left(found),
        tried=[("calibration", "biases", "layers in float", measure.name, "same answer", "signal to noise", "gate")]
        + [_cells(one, measure) for one in found.tried],
        about=_about(found),
    )


def reasons_against(found: Quantization, latencies: Sequence[tuple[Row, Row]], measure: Measure) -> list[str]:
    """Say why a quantised file isn't to be shipped in place of the float one; nothing where it is.

    Args:
        found: How it compares on the validation samples.
        latencies: Of the float file and this one, measured in turns; those of the first number of threads count.
        measure: What the score is.
    """
    faults = [f"doesn't pass the gate on validation ({fault})" for fault in found.faults(measure)]
    threads = latencies[0][0]["threads"] if latencies else None
    slower = [
        f"{other['batch_size']} ({other['median_ms'] / reference['median_ms']:.2f} × the time)"
        for reference, other in latencies
        if reference["threads"] == threads and is_slower(reference, other)
    ]
    if slower:
        faults.append(f"is slower on this machine at batch size {', '.join(slower)}")
    return faults


def _lines(found: Quantization, summary: Summary, measure: Measure) -> list[Line]:
    test = summary["quantized"]
    kept = found.limit, found.float_score
    allowed = measure.show_size(measure.gain(*kept)).removesuffix(" points")
    lines = [
        score_line(f"{measure.name} (test)", summary["dense"], test, test["pairs"], measure),
        Line(
            f"{measure.name} (validation)",
            measure.show(found.float_score),
            measure.show(found.score),
            measure.show_change(found.score - found.float_score),
            f"the gate allows {allowed} less; {found.describe_score(measure)}",
            "worse" if measure.gain(found.limit, found.score) < 0 else "same",
        ),
        Line(
            "size of the file",
            as_bytes(found.float_bytes),
            as_bytes(found.size_bytes),
            f"{found.size_ratio - 1:+.1%}",
            trend="better" if found.size_ratio < 1 else "worse" if found.size_ratio > 1 else "same",
        ),
    ]
    if found.agreement is not None:
        share, least = f"{found.agreement:.2%}", f"the gate asks for {found.min_agreement:.1%}"
        enough = found.agreement >= found.min_agreement
        lines.append(Line("same answer (validation)", "", share, share, least, "same" if enough else "worse"))
    for name, one in found.outputs.items():
        error = "without end" if one.relative_error is None else f"{one.relative_error:.1%}"
        lines.append(Line(f"relative error of {name!r}", "", error, error, f"signal to noise {one.snr_db:.1f} dB"))
    return lines


def _latency(reference: Row, other: Row) -> Line:
    line = latency_line(reference, other)
    return replace(line, trend="worse") if is_slower(reference, other) else line


def _left(found: Quantization) -> dict[str, str]:
    """Return why layers stay in float -> which."""
    named = {}
    for reason, text in REASONS.items():
        if layers := found.left_because(reason):
            noise = {one.layer: f" ({one.snr_db:.1f} dB)" for one in found.left if one.snr_db is not None}
            shown = [f"{layer}{noise.get(layer, '')}" for layer in layers[:_MOST_NAMED]]
            more = f" and {len(layers) - _MOST_NAMED} more" if len(layers) > _MOST_NAMED else ""
            named[text] = ", ".join(shown) + more
    return named


def _cells(one: Tried, measure: Measure) -> tuple[str, ...]:
    return (
        one.calibrator or "none",
        "corrected" if one.corrected else "as they were",
        str(one.num_left),
        measure.show(one.score),
        "–" if one.agreement is None else f"{one.agreement:.2%}",
        f"{one.snr_db:.1f} dB",
        "passed" if one.passed else "FAILED",
    )


def _about(found: Quantization) -> str:
    quantized = found.num_layers - len(found.left)
    layers = f"{quantized} of {found.num_layers} layers with weights are quantised: {found.types}. "
    samples = f"{found.num_calibration_samples:,} training samples"
    ranges = f"Ranges of activations were measured by {found.calibrator} on {samples}. " if found.calibrator else ""
    biases = "Mean errors were taken out of the biases. " if found.corrected else ""
    return f"{layers}{ranges}{biases}Decisions were made on the validation samples. Float file → quantised file:"
