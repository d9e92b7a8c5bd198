from __future__ import annotations

from math import log10

import numpy as np
import pytest

from pruning.quantization.comparison import MOST_DB, Differences, OutputError


def error(found: list[float], expected: list[float]) -> OutputError:
    one = OutputError()
    one.add(np.array(found, dtype=np.float32), np.array(expected, dtype=np.float32))
    return one


def test_relative_error_and_noise_by_hand() -> None:
    found = error([3.0, 4.5], [3.0, 4.0])
    assert found.relative == pytest.approx(0.1)
    assert found.snr_db == pytest.approx(20)


def test_batches_add_up_to_one() -> None:
    found, expected = [1.0, 2.5, -1.0, 4.0], [1.0, 2.0, -1.5, 4.0]
    whole, parts = error(found, expected), OutputError()
    for part in (slice(0, 2), slice(2, 4)):
        parts.add(np.array(found[part]), np.array(expected[part]))
    assert parts.relative == pytest.approx(whole.relative)


def test_nothing_differs() -> None:
    found = error([1.0, float("-inf"), float("nan")], [1.0, float("-inf"), float("nan")])
    assert (found.relative, found.snr_db) == (0.0, MOST_DB)


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_what_is_no_number_in_one_alone_is_infinitely_far(broken: float) -> None:
    for found in (error([1.0, broken], [1.0, 2.0]), error([1.0, 2.0], [1.0, broken])):
        assert found.relative == float("inf")
        assert found.snr_db == -MOST_DB


def test_another_shape_is_infinitely_far() -> None:
    assert error([1.0, 2.0, 3.0], [1.0, 2.0]).relative == float("inf")


def test_the_worst_output_counts() -> None:
    found = Differences()
    found.add({"one": np.array([1.0]), "two": np.array([1.1])}, {"one": np.array([1.0]), "two": np.array([1.0])})
    assert found.worst_db == pytest.approx(-20 * log10(0.1))
    assert found.agreement is None
