"""What a candidate has to show before it takes production's place: one gate for each figure, with both numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from tasks.params.settings import Promote
from tasks.showing.comparison import as_bytes, as_interval, as_quartiles
from tasks.showing.intervals import Interval, Paired, describe_pairs

Show = Callable[[float], str]

LARGEST_DIFFERENCE = 1e-4
"""Between what the registered model answers and what was recorded, relative to the largest answer."""


@dataclass(frozen=True)
class Figures:
    """What was measured of one model.

    Attributes:
        accuracy: On the test set, in torch.
        macs: Of one sample.
        size_bytes: As it is stored.
        parity: Share of the samples on which ONNX Runtime and torch agree.
        latencies_ms: Batch size -> median of a batch.
        answer_difference: Of the registered model from its recorded answers, relative; None where there is no version.
        accuracy_interval: Of the accuracy, 95 %.
        quartiles_ms: Batch size -> lower and upper quartile.
    """

    accuracy: float
    macs: int
    size_bytes: int
    parity: float
    latencies_ms: Mapping[int, float] = field(default_factory=dict)
    answer_difference: float | None = None
    accuracy_interval: Interval | None = None
    quartiles_ms: Mapping[int, Interval] = field(default_factory=dict)


@dataclass(frozen=True)
class Gate:
    """One figure of both models.

    Attributes:
        name: What is compared.
        candidate: The candidate's figure.
        reference: Production's, or the baseline's where nothing is in production yet.
        limit: What the candidate's figure may come to.
        passed: Whether it does.
        shown: Both figures and the limit, for people.
        spread: What the spread is, and both figures'; empty where a figure is counted, not measured.
        remark: What else is to be known.
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
        """Say why it isn't passed."""
        candidate, reference, limit = self.shown
        more = f" ({self.remark})" if self.remark else ""
        return f"{self.name}: candidate {candidate}, reference {reference}, expected {limit}{more}"


def judge(candidate: Figures, reference: Figures, chosen: Promote, pairs: Paired | None = None) -> tuple[Gate, ...]:
    """Compare a candidate with what it would replace; it goes to production if every gate is passed.

    Args:
        candidate: What wants to be in production.
        reference: What it would replace.
        chosen: The limits.
        pairs: Both on the same samples, one by one.
    """
    accuracy = _at_least(
        "accuracy", candidate.accuracy, reference.accuracy, reference.accuracy - chosen.max_accuracy_drop
    )
    if candidate.accuracy_interval and reference.accuracy_interval:
        intervals = as_interval(candidate.accuracy_interval), as_interval(reference.accuracy_interval)
        accuracy = replace(accuracy, spread=("95 % interval", *intervals))
    gates = [
        replace(accuracy, remark=describe_pairs(pairs) if pairs else ""),
        _at_least("parity", candidate.parity, reference.parity, chosen.min_parity),
        _at_most("MACs", candidate.macs, reference.macs, chosen.max_more_macs, "{:,.0f}".format),
        _at_most(
            "size",
            candidate.size_bytes,
            reference.size_bytes,
            chosen.max_more_size,
            lambda size: as_bytes(round(size)),
        ),
        *(_latency(candidate, reference, size, chosen.max_more_latency) for size in candidate.latencies_ms),
    ]
    if candidate.answer_difference is not None:
        difference, other = candidate.answer_difference, reference.answer_difference or 0.0
        shown = (f"{difference:.1e}", f"{other:.1e}", f"at most {LARGEST_DIFFERENCE:.0e}")
        gates.append(Gate("answers", difference, other, LARGEST_DIFFERENCE, difference <= LARGEST_DIFFERENCE, shown))
    return tuple(gates)


def as_rows(gates: tuple[Gate, ...]) -> list[tuple[str, ...]]:
    """Return what people see: a head, a line for each gate, and one for the spread of what is measured."""
    rows: list[tuple[str, ...]] = [("gate", "candidate", "reference", "expected", "")]
    for gate in gates:
        rows.append((gate.name, *gate.shown, "passed" if gate.passed else "FAILED"))
        if gate.spread:
            rows.append((f"  {gate.spread[0]}", *gate.spread[1:], "", ""))
    return rows


def summarise(gates: tuple[Gate, ...]) -> str:
    """Say in words how many of the gates are passed, and which are not."""
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


def _as_ms(milliseconds: float) -> str:
    return f"{milliseconds:.3f} ms"
