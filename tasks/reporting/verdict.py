"""May the pruned model be shipped? A gate for each figure, the answer in words, and the reasons."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from textwrap import wrap

from pruning.allocation.schedule import REACHED
from pruning.metrics import ACCURACY, Measure
from pruning.plan.verification import TOLERANCE
from tasks.config.schema import Promote
from tasks.config.target_schema import worst_score
from tasks.intervals import Interval, Paired, describe_pairs
from tasks.reporting.tables import (
    WIDTH,
    Summary,
    as_bytes,
    as_quartiles,
    as_sentence,
    measure_in,
    nothing_accepted,
    quartiles_of,
)
from tasks.stages.benchmark import Row

Show = Callable[[float], str]


@dataclass(frozen=True)
class Figures:
    """The measured figures of one model.

    Attributes:
        score: On the test set, in torch.
        macs: Of one sample.
        size_bytes: As it is stored.
        parity: Share of the samples on which ONNX Runtime and torch agree.
        latencies_ms: Batch size -> median time of a batch.
        answer_difference: Of the registered model from its recorded answers, relative; None without a version.
        score_interval: Of the score, 95 %; None where it is no mean over samples.
        measure: What the score is.
        quartiles_ms: Batch size -> lower and upper quartile.
        float_ms: Batch size -> median time of its own float file, where it is a quantised one.
    """

    score: float
    macs: int
    size_bytes: int
    parity: float
    latencies_ms: Mapping[int, float] = field(default_factory=dict)
    answer_difference: float | None = None
    score_interval: Interval | None = None
    quartiles_ms: Mapping[int, Interval] = field(default_factory=dict)
    measure: Measure = ACCURACY
    float_ms: Mapping[int, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Gate:
    """One figure of both models.

    Attributes:
        name: What is compared.
        candidate: The candidate's figure.
        reference: Production's, or the baseline's if nothing is in production yet.
        limit: The worst allowed figure of the candidate.
        passed: Whether it does.
        shown: Both figures and the limit, for people.
        spread: Its name, and both figures' spreads; empty if the figure is counted, not measured.
        remark: A note.
    """

    name: str
    candidate: float
    reference: float
    limit: float
    passed: bool
    shown: tuple[str, str, str]
    spread: tuple[str, str, str] | None = None
    remark: str = ""

    @property
    def reason(self) -> str:
        """Say why the gate isn't passed."""
        candidate, reference, limit = self.shown
        more = f" ({self.remark})" if self.remark else ""
        return f"{self.name}: candidate {candidate}, reference {reference}, expected {limit}{more}"


def judge(candidate: Figures, reference: Figures, chosen: Promote, pairs: Paired | None = None) -> tuple[Gate, ...]:
    """Compare a candidate with the model it would replace; it may go into production if every gate is passed.

    Args:
        candidate: The model to be promoted.
        reference: The model it would replace.
        chosen: The limits.
        pairs: Both on the same samples, one by one.
    """
    gates = [
        _score(candidate, reference, chosen, pairs),
        _at_least("parity", candidate.parity, reference.parity, chosen.min_parity),
        _at_most("MACs", candidate.macs, reference.macs, chosen.max_macs_increase, "{:,.0f}".format),
        _at_most(
            "size",
            candidate.size_bytes,
            reference.size_bytes,
            chosen.max_size_increase,
            lambda size: as_bytes(round(size)),
        ),
        *(_latency(candidate, reference, size, chosen.max_latency_increase) for size in candidate.latencies_ms),
        *(_against_float(candidate, size) for size in candidate.float_ms),
    ]
    if candidate.answer_difference is not None:
        difference, other = candidate.answer_difference, reference.answer_difference or 0.0
        shown = (f"{difference:.1e}", f"{other:.1e}", f"at most {TOLERANCE:.0e}")
        gates.append(Gate("answers", difference, other, TOLERANCE, difference <= TOLERANCE, shown))
    return tuple(gates)


def _score(candidate: Figures, reference: Figures, chosen: Promote, pairs: Paired | None) -> Gate:
    measure = candidate.measure
    limit = worst_score(reference.score, measure, chosen.max_accuracy_drop, chosen.max_drop)
    shown = (
        measure.show(candidate.score),
        measure.show(reference.score),
        f"at {'least' if measure.higher_is_better else 'most'} {measure.show(limit)}",
    )
    passed = measure.gain(limit, candidate.score) >= -_ROUNDING
    gate = Gate(measure.name, candidate.score, reference.score, limit, passed, shown)
    if reference.measure != measure:
        why = f"the reference is measured by {reference.measure.name}, so the two can't be compared"
        return replace(gate, passed=False, remark=why)
    if candidate.score_interval and reference.score_interval:
        intervals = [measure.show_interval(*one) for one in (candidate.score_interval, reference.score_interval)]
        gate = replace(gate, spread=("95 % interval", intervals[0], intervals[1]))
    return replace(gate, remark=describe_pairs(pairs, measure) if pairs else "")


def as_rows(gates: tuple[Gate, ...]) -> list[tuple[str, ...]]:
    """Return the table for people: a head, a line for each gate, and one for the spread of measured figures."""
    rows: list[tuple[str, ...]] = [("gate", "candidate", "reference", "expected", "")]
    for gate in gates:
        rows.append((gate.name, *gate.shown, "passed" if gate.passed else "FAILED"))
        if gate.spread:
            rows.append((f"  {gate.spread[0]}", *gate.spread[1:], "", ""))
    return rows


def summarise(gates: tuple[Gate, ...]) -> str:
    """Say how many gates are passed, and which are not."""
    failed = [gate for gate in gates if not gate.passed]
    if not failed:
        return f"passes all {len(gates)} promotion gates"
    names = "; ".join(f"{gate.name}, {gate.remark}" if gate.remark == _NOISE else gate.name for gate in failed)
    return f"fails {len(failed)} of {len(gates)} promotion gates ({names})"


_ROUNDING = 1e-9  # of a mean over samples
_NOISE = "but within the spread of the measurement"


def _at_least(name: str, candidate: float, reference: float, limit: float) -> Gate:
    shown = (f"{candidate:.2%}", f"{reference:.2%}", f"at least {limit:.2%}")
    return Gate(name, candidate, reference, limit, candidate >= limit - _ROUNDING, shown)


def _at_most(name: str, candidate: float, reference: float, more: float, show: Show) -> Gate:
    limit = reference * (1 + more)
    shown = (show(candidate), show(reference), f"at most {show(limit)}")
    return Gate(name, float(candidate), float(reference), limit, candidate <= limit, shown)


def _latency(candidate: Figures, reference: Figures, size: int, more: float) -> Gate:
    gate = _at_most(f"latency, batch {size}", candidate.latencies_ms[size], reference.latencies_ms[size], more, _as_ms)
    if size not in candidate.quartiles_ms or size not in reference.quartiles_ms:
        return gate
    low, high = candidate.quartiles_ms[size][0], reference.quartiles_ms[size][1] * (1 + more)
    spread = ("quartiles", as_quartiles(candidate.quartiles_ms[size]), as_quartiles(reference.quartiles_ms[size]))
    remark = "" if gate.passed or low > high else _NOISE
    return replace(gate, spread=spread, remark=remark)


def _against_float(candidate: Figures, size: int) -> Gate:
    """A quantised file isn't slower than its own float one: not more than three quarters of its times are longer."""
    found, limit = candidate.latencies_ms[size], candidate.float_ms[size]
    passed = candidate.quartiles_ms[size][0] <= limit
    shown = (_as_ms(found), _as_ms(limit), f"at most {_as_ms(limit)}")
    return Gate(f"latency against its float file, batch {size}", found, limit, limit, passed, shown)


def _as_ms(milliseconds: float) -> str:
    return f"{milliseconds:.3f} ms"


@dataclass(frozen=True)
class Check:
    """One of the things that have to hold.

    Attributes:
        name: The question.
        passed: Whether it holds.
        short: The answer in a few words, as part of a sentence.
        detail: The figures behind it.
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
        checks: The reasons; none if nothing was pruned.
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
        return Verdict(as_sentence(missing), ())
    checks = (_floor(summary), _promotion(summary, latencies, limits), _equivalence(summary), _parity(summary))
    failed = [check.short for check in checks if not check.passed]
    shorts = [check.short for check in checks]
    sentence = (
        f"Not ready to ship: {'; '.join(failed)}"
        if failed
        else f"Ready to ship: {', '.join(shorts[:-1])}, and {shorts[-1]}"
    )
    if (reason := summary["stopped_because"]) != REACHED:
        sentence += f". But the target was not reached ({reason})"
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
    """The loop decides on the validation set; the test set, which no decision has used, has to confirm it."""
    validation, floor, measure = summary["validation"], summary["floor"], measure_in(summary)
    allowed, lost = measure.gain(floor, validation["baseline"]), summary["score_drop"]
    pairs, permitted = summary["pairs"], f"{measure.show_size(allowed).removesuffix(' points')} allowed"
    within = lost <= allowed + _ROUNDING
    test = f"{measure.show_size(lost)} {'lost' if lost > 0 else 'gained'}" if lost else "nothing lost"
    short = (
        f"{measure.name} is within the floor"
        if within
        else f"on the test set {measure.name} is beyond the floor ({test}, {permitted})"
    )
    ends = None if pairs is None else measure.show_change_interval(pairs["low"], pairs["high"])
    change = "" if ends is None else f" (95 % interval of the change {ends[1:-1].replace(', ', ' to ')})"
    return Check(
        "Within the floor" if within else "Beyond the floor",
        within,
        short,
        f"{test} on the test set{change}, {permitted}. On the validation set {measure.show(validation['dense'])}, the "
        f"floor is {measure.show(floor)}.",
    )


def _promotion(summary: Summary, latencies: Sequence[tuple[Row, Row]], limits: Promote) -> Check:
    gates = _gates(summary, latencies, limits)
    failed = [gate.reason for gate in gates if not gate.passed]
    return Check(
        "Promotion gates",
        not failed,
        f"it {summarise(gates)}",
        f"{'; '.join(failed) or '; '.join(gate.name for gate in gates) + ': each within its limit'}. Compared with its "
        "own baseline; promote measures it again, side by side with what is in production.",
    )


def _gates(summary: Summary, latencies: Sequence[tuple[Row, Row]], limits: Promote) -> tuple[Gate, ...]:
    """Judge the model as `promote` would judge a first version."""
    threads = latencies[0][0]["threads"] if latencies else None
    figures = []
    for name, position, parity in (("baseline", 0, 1.0), ("dense", 1, summary["parity"]["onnx_close"])):
        found = summary["baseline"] if name == "baseline" else summary["dense"]
        rows = [pair[position] for pair in latencies if pair[position]["threads"] == threads]
        figures.append(
            Figures(
                score=found["score"],
                macs=found["macs"],
                size_bytes=found["size_bytes"],
                parity=parity,
                latencies_ms={row["batch_size"]: row["median_ms"] for row in rows},
                score_interval=found.get("score_interval"),
                quartiles_ms={row["batch_size"]: quartiles_of(row) for row in rows},
                measure=measure_in(summary),
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
        f"on no validation sample do the outputs depend on the removed channels, so a difference from the model with "
        f"channels set to zero couldn't show ({difference}). The outputs may be constant or saturated.",
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
        f"the ONNX file agrees with it on only {found['onnx_close']:.2%} of the samples",
        detail,
    )
