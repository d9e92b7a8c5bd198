"""How far chance may have moved a score on so many samples: intervals of 95 %."""

from __future__ import annotations

from math import sqrt

import torch
from torch import Tensor
from typing_extensions import TypedDict  # pydantic reads those of `typing` from Python 3.12 on

from pruning.evaluation import NORMAL_95, interval_of_mean
from pruning.metrics import ACCURACY, Measure

_ROUNDING = 1e-9

Interval = tuple[float, float]
"""Its lower and its upper end."""


class Paired(TypedDict):
    """How two models differ on the same samples.

    Attributes:
        difference: Mean of the second model's metric minus the first's.
        low: Lower end of its interval.
        high: Upper end.
        lost: Samples on which the second model is worse.
        won: Samples on which it is better.
        num_samples: How many there are.
    """

    difference: float
    low: float
    high: float
    lost: int
    won: int
    num_samples: int


def interval_of(values: Tensor) -> Interval:
    """Return the interval of a mean.

    Where each value is 0 or 1: (p + z²/2n ± z √(p(1−p)/n + z²/4n²)) / (1 + z²/n). Else mean ± z s/√n.

    Args:
        values: The metric of each sample, [N].

    Source: E. B. Wilson, "Probable inference, the law of succession, and statistical inference", 1927.
    """
    count, mean = len(values), float(values.double().mean())
    if not _is_share(values):
        return interval_of_mean(values)
    square = NORMAL_95**2
    half = NORMAL_95 * sqrt(mean * (1 - mean) / count + square / (4 * count**2))
    middle, scale = mean + square / (2 * count), 1 + square / count
    return max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)


def compare_pairs(before: Tensor, after: Tensor, measure: Measure = ACCURACY) -> Paired:
    """Compare two models sample by sample, which is more precise than comparing two means.

    mean(d) ± z √((mean(d²) − mean(d)²)/n) with d = after − before. Where the metric is 0 or 1, half a sample lost, half
    a sample won and one unchanged are added for the interval: without them it would be empty where no sample differs.

    Args:
        before: The first model's metric of each sample, [N].
        after: The second's, [N].
        measure: What the metric is: which way is up.

    Source: A. Agresti and Y. Min, "Simple improved confidence intervals for comparing matched proportions", 2005.
    """
    changes = after.double() - before.double()
    count, total, squares = len(changes), float(changes.sum()), float(changes.square().sum())
    more, one = (2, 1.0) if _is_share(before) and _is_share(after) else (0, 0.0)
    mean = total / (count + more)
    half = NORMAL_95 * sqrt(max((squares + one) / (count + more) - mean**2, 0.0) / (count + more))
    gains = changes if measure.higher_is_better else -changes
    return {
        "difference": total / count,
        "low": mean - half,
        "high": mean + half,
        "lost": int((gains < -_ROUNDING).sum()),
        "won": int((gains > _ROUNDING).sum()),
        "num_samples": count,
    }


def describe_pairs(found: Paired, measure: Measure = ACCURACY) -> str:
    """Say how many samples differ, and whether that is evidence of a gain or a loss, by which way is up."""
    count, net = found["num_samples"], found["won"] - found["lost"]
    if not found["lost"] and not found["won"]:
        return f"the same on all {count:,} samples"
    way = "gain" if measure.gain(0.0, found["difference"]) > 0 else "loss"
    evidence = {
        (False, False): "no evidence of a difference",
        (True, False): f"no evidence of a {way}",
        (True, True): f"a {way} beyond chance",
    }[abs(found["difference"]) > _ROUNDING, found["low"] > 0 or found["high"] < 0]
    right_or_wrong = abs(abs(found["difference"]) * count - abs(net)) <= _ROUNDING * count
    if not right_or_wrong or not net:
        return f"{found['lost']:,} of {count:,} samples worse, {found['won']:,} better: {evidence}"
    return f"{abs(net):,} of {count:,} samples: {evidence}"


def _is_share(values: Tensor) -> bool:
    """Say whether each sample is right or wrong, with nothing in between."""
    return bool(torch.isin(values.double(), torch.tensor([0.0, 1.0], dtype=torch.float64)).all())
