"""Handwritten digits: small, real, and shipped with scikit-learn."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from zoo.datasets.splits import Samples, Splits, stratified_split

MEAN, STD = 0.3053, 0.3760
LARGEST_VALUE = 16


def digits(fractions: Sequence[float] = (0.6, 0.2, 0.2), seed: int = 0) -> Splits:
    """Load 1,797 scans of handwritten digits, 8 × 8 pixels in 17 grey levels.

    Inputs are float32 [N, 1, 8, 8], brought to mean 0 and standard deviation 1 by constants.

    Args:
        fractions: Shares of train, validation and test; every class is spread in this proportion.
        seed: Seed of the split.

    Source: Alpaydin & Kaynak, "Optical recognition of handwritten digits", UCI repository, 1998 (its test part).
    """
    from sklearn.datasets import load_digits  # seconds, with SciPy: only whoever loads these data waits for them

    images, labels = load_digits(return_X_y=True)
    inputs = torch.from_numpy(images).float().reshape(-1, 1, 8, 8) / LARGEST_VALUE
    samples = Samples((inputs - MEAN) / STD, torch.from_numpy(labels).long())
    train, validation, test = (samples.take(part) for part in stratified_split(samples.targets, fractions, seed))
    return Splits(train, validation, test, tuple("0123456789"))
