"""Handwritten digits, as scikit-learn ships them."""

import torch
from sklearn.datasets import load_digits

from secateur import Samples, Splits


def load() -> Splits:
    """Return 1,797 scans: 60 % to train on, 20 % to decide by, 20 % to report on."""
    images, labels = load_digits(return_X_y=True)
    inputs = torch.tensor(images, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
    targets = torch.tensor(labels, dtype=torch.int64)
    order = torch.randperm(len(targets), generator=torch.Generator().manual_seed(0))
    train, validation, test = (Samples(inputs[part], targets[part]) for part in order.split([1079, 359, 359]))
    return Splits(train, validation, test, classes=tuple("0123456789"))
