"""May the pruned model be shipped? The answer in words, and what it rests on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import wrap

from pruning.files.export import TOLERANCE
from tasks.benchmark import Row
from tasks.params.settings import Promote
from tasks.showing.comparison import WIDTH, Summary, nothing_accepted, quartiles_of
from tasks.showing.gates import Figures, Gate, judge, summarise

_ROUNDING = 1e-9


@dataclass(frozen=True)
class Check:
    """One of the things that have to hold.

    Attributes:
        name: What is asked.
        passed: Whether it holds.
        short: That in a few words, part of a sentence.
        detail: What was found.
    """

    name: str
    passed: bool
    short: str
    detail: str


@dataclass(frozen=True)
class Verdict:
    """The answer.

    Attributes:
        sentence: In words, without its full stop.
        checks: What it rests on; none where nothing was pruned.
    """

    sentence: str
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether the model may be shipped."""
        return bool(self.checks) and all(check.passed for check in self.checks)


def decide(summary: Summary, latencies: Sequence[tuple[Row, Row]], limits: Promote) -> Verdict:
    """Judge a finished run.

    Args:
        summary: Of the report.
        latencies: Of baseline and pruned model.
        limits: Of the promotion gates; latency is judged with the first number of threads, as promotion does.
    """
    if missing := nothing_accepted(summary):
        return Verdict(missing[0].upper() + missing[1:], ())
    checks = (_floor(summary), _promotion(summary, latencies, limits), _equivalence(summary), _parity(summary))
    failed = [check.short for check in checks if not check.passed]
    shorts = [check.short for check in checks]
    sentence = (
        f"Not ready to ship: {'; '.join(failed)}"
        if failed
        else f"Ready to ship: {', '.join(shorts[:-1])}, and {shorts[-1]}"
    )
    return Verdict(sentence, checks)


def as_text(verdict: Verdict) -> str:
    """Lay the verdict out for a terminal of 80 columns."""
    found = wrap(f"{verdict.sentence}.", WIDTH)
    for check in verdict.checks:
        text = f"{mark(check.passed)} {check.name}: {check.detail}"
        found += wrap(text, WIDTH, initial_indent="  ", subsequent_indent="    ")
    return "\n".join(found)


def mark(passed: bool) -> str:
    """Return the sign in front of a check."""
    return "✓" if passed else "✗"


def _floor(summary: Summary) -> Check:
    """The loop accepts by the validation set; the test set, which no decision has seen, has to confirm it."""
    validation, floor = summary["validation"], summary["floor"]
    allowed, lost = validation["baseline"] - floor, summary["accuracy_drop"]
    low, high = 100 * summary["pairs"]["low"], 100 * summary["pairs"]["high"]
    within = lost <= allowed + _ROUNDING
    test = f"{100 * abs(lost):.2f} points {'lost' if lost > 0 else 'gained'}" if lost else "nothing lost"
    measure = summary["measure"]
    short = (
        f"{measure} is within the floor"
        if within
        else f"on the test set {measure} is beyond the floor ({test}, {100 * allowed:.2f} allowed)"
    )
    return Check(
        "Within the floor" if within else "Beyond the floor",
        within,
        short,
        f"{test} on the test set (95 % interval of the change {low:+.2f} to {high:+.2f}), "
        f"{100 * allowed:.2f} allowed. On the validation set {validation['dense']:.2%}, the floor is {floor:.2%}.",
    )


def _promotion(summary: Summary, latencies: Sequence[tuple[Row, Row]], limits: Promote) -> Check:
    gates = _gates(summary, latencies, limits)
    failed = [gate.reason for gate in gates if not gate.passed]
    return Check(
        "Promotion gates",
        not failed,
        f"it {summarise(gates)}",
        f"{'; '.join(failed) or 'each passes: ' + '; '.join(gate.name for gate in gates)}. Compared with its own "
        "baseline; promote measures it again, side by side with what is in production.",
    )


def _gates(summary: Summary, latencies: Sequence[tuple[Row, Row]], limits: Promote) -> tuple[Gate, ...]:
    """Judge as `promote` would the first version."""
    threads = latencies[0][0]["threads"] if latencies else None
    figures = []
    for name, position, parity in (("baseline", 0, 1.0), ("dense", 1, summary["parity"]["onnx_close"])):
        found = summary["baseline"] if name == "baseline" else summary["dense"]
        rows = [pair[position] for pair in latencies if pair[position]["threads"] == threads]
        figures.append(
            Figures(
                accuracy=found["accuracy"],
                macs=found["macs"],
                size_bytes=found["size_bytes"],
                parity=parity,
                latencies_ms={row["batch_size"]: row["median_ms"] for row in rows},
                accuracy_interval=found["accuracy_interval"],
                quartiles_ms={row["batch_size"]: quartiles_of(row) for row in rows},
            )
        )
    return judge(figures[1], figures[0], limits, summary["pairs"])


_SAME = {
    "structured": "with channels removed, the outputs are those of the model with the channels set to zero",
    "dynamic": "where gates close channels, the outputs are those of the model with the channels set to zero",
}
_ZEROS = "the weights that went are zeros in the model itself"


def _equivalence(summary: Summary) -> Check:
    difference = f"largest relative difference {summary['parity']['dense_vs_masked']:.1e}"
    if summary["proven"]:
        what = _SAME.get(summary["kind"], _ZEROS)
        return Check("Proven exact", True, "its exactness is proven", f"{what}; {difference} on validation samples.")
    return Check(
        "Not proven exact",
        False,
        "its exactness is not proven",
        f"on no validation sample do the outputs depend on the channels, so that a difference from the model with "
        f"channels set to zero could not show ({difference}). The outputs may be constant or saturated.",
    )


def _parity(summary: Summary) -> Check:
    found = summary["parity"]
    agrees = found["onnx_vs_torch"] < TOLERANCE or found["onnx_close"] >= 1.0
    detail = (
        f"ONNX Runtime and PyTorch agree on {found['onnx_close']:.2%} of {found['num_samples']:,} validation samples; "
        f"largest relative difference {found['onnx_vs_torch']:.1e}, {TOLERANCE:.0e} counts as agreeing."
    )
    if agrees:
        return Check("ONNX file agrees", True, "the ONNX file agrees with it", detail)
    return Check(
        "ONNX file differs",
        False,
        f"the ONNX file agrees with it on {found['onnx_close']:.2%} of samples alone",
        detail,
    )
