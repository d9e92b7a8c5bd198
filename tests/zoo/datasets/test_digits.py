from __future__ import annotations

import torch

from zoo.datasets import digits


def test_digits_are_all_there_normalised_and_stratified() -> None:
    splits = digits()
    parts = [samples for _, samples in splits.named()]
    inputs = torch.cat([samples.inputs for samples in parts])
    assert inputs.shape == (1797, 1, 8, 8)
    assert abs(inputs.mean()) < 1e-3
    assert abs(inputs.std() - 1) < 1e-3
    assert [len(samples) for samples in parts] == [1078, 360, 359]
    shares = torch.stack([samples.targets.bincount() for samples in parts]).float()
    assert ((shares / shares.sum(0)).T - torch.tensor([0.6, 0.2, 0.2])).abs().max() < 0.01


def test_no_scan_is_in_two_splits() -> None:
    splits = digits()
    train, test = (splits.train.inputs.flatten(1), splits.test.inputs.flatten(1))
    assert torch.cdist(test, train).min() > 0


def test_digits_depend_on_nothing_but_their_arguments() -> None:
    assert digits().fingerprint() == digits().fingerprint()
    assert digits().fingerprint() != digits(seed=1).fingerprint()
    assert len(digits(fractions=(0.8, 0.1, 0.1)).train) == 1438
