"""What a sensitivity curve says between its points."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pruning.choosing.sensitivity import Curve


def predicted_damage(curve: Curve, removed: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the loss that a curve predicts for numbers of removed channels, above the whole model's.

    The monotone envelope: a group doesn't heal by losing more, and what a sample measured below the whole model counts
    as nothing. Up to the first point above nothing it rises with the square, as a loss does around its minimum; between
    two points as the power law through both; beyond the last as steeply as it ever did.
    """
    counts = np.array([0.0, *(point.removed for point in curve.points)])
    losses = np.array([0.0, *(point.loss - curve.baseline_loss for point in curve.points)])
    envelope = np.maximum.accumulate(np.maximum(losses, 0.0))
    steepest = float(np.max(np.diff(envelope) / np.diff(counts)))
    beyond = np.maximum(removed - counts[-1], 0.0) * steepest
    inside = np.minimum(removed, counts[-1])
    segment = np.clip(np.searchsorted(counts, inside, side="right"), 1, len(counts) - 1)
    begin, end, low, high = counts[segment - 1], counts[segment], envelope[segment - 1], envelope[segment]
    part = (inside - begin) / (end - begin)
    with np.errstate(divide="ignore", invalid="ignore"):  # of segments that begin at nothing, which are squares
        power = low * (inside / begin) ** (np.log(high / low) / np.log(end / begin))
    damage: NDArray[np.float64] = np.where(low > 0, power, high * part**2) + beyond
    return damage
