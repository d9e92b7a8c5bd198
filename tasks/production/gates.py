"""What a candidate has to show before it takes production's place: one gate for each figure, with both numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tasks.measured import Measured
from tasks.params.settings import Promote
from tasks.showing.comparison import as_bytes

Show = Callable[[float], str]

LARGEST_DIFFERENCE = 1e-4
"""Between what the registered model answers and what was recorded, relative to the largest answer."""


@dataclass(frozen=True)
class Figures:
    """What was measured of one model.

    Attributes:
        measured: On the test set, in torch.
        parity: Share of the test samples on which ONNX Runtime and torch agree.
        latencies_ms: Batch size -> median of a batch.
        answer_difference: Of the registered model from its recorded answers, relative; None where there is no version.
    """

    measured: Measured
    parity: float
    latencies_ms: Mapping[int, float]
    answer_difference: float | None = None


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
    """

    name: str
    candidate: float
    reference: float
    limit: float
    passed: bool
    shown: tuple[str, str, str]

    @property
    def reason(self) -> str:
        """Say why it isn't passed."""
        candidate, reference, limit = self.shown
        return f"{self.name}: candidate {candidate}, reference {reference}, expected {limit}"


def judge(candidate: Figures, reference: Figures, chosen: Promote) -> tuple[Gate, ...]:
    """Compare a candidate with what it would replace; it goes to production if every gate is passed."""
    new, old = candidate.measured, reference.measured
    gates = [
        _at_least("accuracy", new.accuracy, old.accuracy, old.accuracy - chosen.max_accuracy_drop),
        _at_least("parity", candidate.parity, reference.parity, chosen.min_parity),
        _at_most("MACs", new.macs, old.macs, chosen.max_more_macs, "{:,.0f}".format),
        _at_most("size", new.size_bytes, old.size_bytes, chosen.max_more_size, lambda size: as_bytes(round(size))),
        *(
            _at_most(f"latency, batch {size}", found, reference.latencies_ms[size], chosen.max_more_latency, _as_ms)
            for size, found in candidate.latencies_ms.items()
        ),
    ]
    if candidate.answer_difference is not None:
        difference, other = candidate.answer_difference, reference.answer_difference or 0.0
        shown = (f"{difference:.1e}", f"{other:.1e}", f"at most {LARGEST_DIFFERENCE:.0e}")
        gates.append(Gate("answers", difference, other, LARGEST_DIFFERENCE, difference <= LARGEST_DIFFERENCE, shown))
    return tuple(gates)


def as_rows(gates: tuple[Gate, ...]) -> list[tuple[str, ...]]:
    """Return what people see: a head and a line for each gate."""
    head = ("gate", "candidate", "reference", "expected", "")
    return [head, *((gate.name, *gate.shown, "passed" if gate.passed else "FAILED") for gate in gates)]


_ROUNDING = 1e-9  # of a mean over samples


def _at_least(name: str, candidate: float, reference: float, limit: float) -> Gate:
    shown = (f"{candidate:.2%}", f"{reference:.2%}", f"at least {limit:.2%}")
    return Gate(name, candidate, reference, limit, candidate >= limit - _ROUNDING, shown)


def _at_most(name: str, candidate: float, reference: float, more: float, show: Show) -> Gate:
    limit = reference * (1 + more)
    shown = (show(candidate), show(reference), f"at most {show(limit)}")
    return Gate(name, float(candidate), float(reference), limit, candidate <= limit, shown)


def _as_ms(milliseconds: float) -> str:
    return f"{milliseconds:.3f} ms"
