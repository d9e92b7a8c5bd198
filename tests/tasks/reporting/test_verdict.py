from __future__ import annotations

from typing import Any

import pytest

from tasks.config.schema import Promote
from tasks.reporting.verdict import as_text, decide
from tests.tasks.reporting.test_tables import pairs, row, summary


def parity(**changed: float) -> dict[str, float]:
    return {"dense_vs_masked": 1e-7, "onnx_vs_torch": 2e-7, "onnx_close": 1.0, "num_samples": 360, **changed}


@pytest.mark.parametrize("kind", ["structured", "unstructured", "n_m", "dynamic"])
def test_what_holds_may_be_shipped(kind: str) -> None:
    found = decide(summary(0.949, kind=kind), [(row("baseline", 1.0), row("dense", 0.5))], Promote())
    assert found.passed
    assert found.sentence == (
        "Ready to ship: accuracy is within the floor, it passes all 5 promotion gates, its exactness is proven, and "
        "the ONNX file agrees with it"
    )
    exact = next(check.detail for check in found.checks if check.name == "Proven exact")
    assert exact.startswith(
        {
            "structured": "with channels removed, the outputs are those of the model with the channels set to zero",
            "dynamic": "where gates close channels, the outputs are those of the model with the channels set to zero",
        }.get(kind, "the weights that went are zeros in the model itself")
    )


@pytest.mark.parametrize(
    ("changed", "name", "reason", "detail"),
    [
        (
            {"accuracy": 0.93, "pairs": pairs(-0.02)},
            "Beyond the floor",
            "on the test set accuracy is beyond the floor (2.00 points lost, 1.00 allowed)",
            "95 % interval of the change -3.",
        ),
        (
            {"accuracy": 0.944, "pairs": pairs(-0.006)},
            "Promotion gates",
            "it fails 1 of 5 promotion gates (accuracy)",
            "candidate 94.40%, reference 95.00%, expected at least 94.50% (6 of 1,000 samples: no evidence of a loss)",
        ),
        (
            {"macs": 120},
            "Promotion gates",
            "it fails 2 of 5 promotion gates (MACs; size)",
            "MACs: candidate 120, reference 100, expected at most 100",
        ),
        ({"proven": False}, "Not proven exact", "its exactness is not proven", "constant or saturated"),
        (
            {"kind": "dynamic", "parity": parity(onnx_close=0.995, onnx_vs_torch=0.1)},
            "ONNX file differs",
            "it fails 1 of 5 promotion gates (parity); the ONNX file agrees with it on only 99.50% of the samples",
            "agree on 99.50% of 360 validation samples",
        ),
    ],
)
def test_what_fails_is_named_first_with_its_figures(
    changed: dict[str, Any], name: str, reason: str, detail: str
) -> None:
    limits = Promote(max_accuracy_drop=0.5) if name == "Beyond the floor" else Promote()
    found = decide(summary(**changed), [(row("baseline", 1.0), row("dense", 0.5))], limits)
    assert not found.passed
    assert found.sentence == f"Not ready to ship: {reason}"
    (check,) = (check for check in found.checks if check.name == name)
    assert detail in check.detail
    assert max(map(len, as_text(found).splitlines())) <= 80
    assert as_text(found).startswith("Not ready to ship: ")


def test_latency_fails_by_the_first_number_of_threads_and_noise_is_called_so() -> None:
    def judged(median: float, spread: float) -> Any:
        one = row("baseline", 1.0, spread), row("dense", median, spread)
        two: Any = {**row("baseline", 1.0), "threads": 2}, {**row("dense", 9.0), "threads": 2}
        return decide(summary(), [one, two], Promote()).sentence

    assert judged(1.05, 0.01).startswith("Ready to ship")
    assert judged(1.5, 0.5).endswith("(latency, batch 1, but within the spread of the measurement)")
    assert judged(1.5, 0.01).endswith("it fails 1 of 5 promotion gates (latency, batch 1)")


def test_a_target_that_was_not_reached_is_said_with_the_verdict() -> None:
    sentence = decide(summary(stopped_because="attempts used up"), [], Promote()).sentence
    assert sentence.startswith("Ready to ship: ")
    assert sentence.endswith(". But the target was not reached (attempts used up)")


@pytest.mark.parametrize("attempts", [0, 2])
def test_where_nothing_was_pruned_there_is_nothing_to_ship(attempts: int) -> None:
    found = decide(summary(accepted=0, attempts=attempts, stopped_because="attempts used up"), [], Promote())
    assert not found.passed
    assert found.sentence.startswith(f"Nothing was pruned: none of {attempts} attempts was accepted (attempts used up)")
    assert found.checks == ()


def test_without_a_benchmark_the_other_gates_are_judged() -> None:
    assert "it passes all 4 promotion gates" in decide(summary(), [], Promote()).sentence
