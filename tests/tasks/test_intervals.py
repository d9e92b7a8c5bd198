from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pruning.metrics import Measure
from tasks.intervals import compare_pairs, describe_pairs, interval_of


def right(*samples: int, count: int = 359) -> Tensor:
    values = torch.ones(count)
    values[list(samples)] = 0
    return values


def test_interval_of_a_share_is_wilsons() -> None:
    values = torch.zeros(100)
    values[:90] = 1
    assert interval_of(values) == pytest.approx((0.8256, 0.9448), abs=1e-4)
    assert interval_of(torch.ones(100)) == pytest.approx((0.9630, 1.0), abs=1e-4)


def test_interval_of_a_score_is_that_of_a_mean() -> None:
    values = torch.tensor([0.2, 0.4, 0.6, 0.8])
    half = 1.96 * (0.05**0.5) / 2
    assert interval_of(values) == pytest.approx((0.5 - half, 0.5 + half), abs=1e-6)


def test_pairs_of_shares_are_agrestis_and_mins() -> None:
    found = compare_pairs(right(0, 1), right(1, 2, 3))
    share = ((2 + 1.5) - (2.5 - 1.5) ** 2 / 361 + 0.5) / 361**2
    mean = -1 / 361
    assert (found["won"], found["lost"]) == (1, 2)
    assert found["difference"] == pytest.approx(-1 / 359)
    assert found["low"] == pytest.approx(mean - 1.96 * share**0.5)
    assert found["high"] == pytest.approx(mean + 1.96 * share**0.5)


def test_models_that_never_differ_still_have_an_interval() -> None:
    found = compare_pairs(right(), right())
    assert found["low"] < 0 < found["high"]


def test_what_falls_is_a_gain_of_an_error() -> None:
    error = Measure("RMSE", higher_is_better=False, is_share=False)
    before, after = torch.linspace(1, 2, 99), torch.linspace(0.5, 1.7, 99)
    found = compare_pairs(before, after, error)
    assert (found["won"], found["lost"]) == (99, 0)
    assert found["high"] < 0
    assert describe_pairs(found, error) == "0 of 99 samples worse, 99 better: a gain beyond chance"
    assert describe_pairs(compare_pairs(after, before, error), error).endswith("a loss beyond chance")


def test_pairs_tell_more_than_two_means_do() -> None:
    before, after = right(*range(20)), right(*range(32))
    assert compare_pairs(before, after)["high"] < 0
    assert interval_of(after)[1] > interval_of(before)[0]


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        (right(), right(5), "1 of 359 samples: no evidence of a loss"),
        (right(5), right(), "1 of 359 samples: no evidence of a gain"),
        (right(), right(*range(40)), "40 of 359 samples: a loss beyond chance"),
        (right(*range(40)), right(), "40 of 359 samples: a gain beyond chance"),
        (right(5), right(5), "the same on all 359 samples"),
        (right(5), right(6), "1 of 359 samples worse, 1 better: no evidence of a difference"),
        (
            torch.tensor([0.5, 0.5, 0.5]),
            torch.tensor([0.4, 0.9, 0.3]),
            "2 of 3 samples worse, 1 better: no evidence of a gain",
        ),
    ],
)
def test_a_difference_is_said_in_samples_and_as_evidence(before: Tensor, after: Tensor, said: str) -> None:
    assert describe_pairs(compare_pairs(before, after)) == said
