from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zoo.datasets import Samples, Splits, stratified_split


def make_samples(number: int = 6, num_classes: int = 3, shape: tuple[int, ...] = (2, 4)) -> Samples:
    inputs = torch.arange(number * torch.Size(shape).numel(), dtype=torch.float32).reshape(number, *shape)
    return Samples(inputs, torch.arange(number) % num_classes)


@pytest.fixture
def splits() -> Splits:
    return Splits(make_samples(9), make_samples(6), make_samples(3), ("a", "b", "c"))


def test_splits_tell_their_input_shape_and_number_of_classes(splits: Splits) -> None:
    assert (splits.input_shape, splits.num_classes, len(splits.train)) == ((2, 4), 3, 9)


def test_equal_data_have_equal_fingerprints(splits: Splits) -> None:
    copy = Samples(splits.train.inputs.clone(), splits.train.targets.clone())
    assert replace(splits, train=copy).fingerprint() == splits.fingerprint()


def bump_input(splits: Splits) -> Splits:
    inputs = splits.validation.inputs.clone()
    inputs[-1, -1, -1] += 1e-3
    return replace(splits, validation=Samples(inputs, splits.validation.targets))


def change_target(splits: Splits) -> Splits:
    targets = splits.test.targets.clone()
    targets[0] = 2
    return replace(splits, test=Samples(splits.test.inputs, targets))


def swap_order(splits: Splits) -> Splits:
    return replace(splits, train=splits.train.take(torch.arange(9).flip(0)))


def rename_class(splits: Splits) -> Splits:
    return replace(splits, classes=("a", "b", "d"))


def reshape_inputs(splits: Splits) -> Splits:
    def reshape(samples: Samples) -> Samples:
        return Samples(samples.inputs.reshape(-1, 4, 2), samples.targets)

    return Splits(reshape(splits.train), reshape(splits.validation), reshape(splits.test), splits.classes)


def swap_splits(splits: Splits) -> Splits:
    return replace(splits, validation=splits.test, test=splits.validation)


@pytest.mark.parametrize(
    "change",
    [bump_input, change_target, swap_order, rename_class, reshape_inputs, swap_splits],
    ids=lambda c: c.__name__,
)
def test_any_change_changes_the_fingerprint(splits: Splits, change: Callable[[Splits], Splits]) -> None:
    assert change(splits).fingerprint() != splits.fingerprint()


def test_fingerprint_reads_values_and_not_memory_layout(splits: Splits) -> None:
    strided = splits.train.inputs.transpose(1, 2).contiguous().transpose(1, 2)
    assert not strided.is_contiguous()
    assert replace(splits, train=Samples(strided, splits.train.targets)).fingerprint() == splits.fingerprint()


@pytest.mark.parametrize(
    ("inputs", "targets", "message"),
    [
        (torch.zeros(3, 2), torch.zeros(4, dtype=torch.int64), "3 inputs for 4 targets"),
        (torch.zeros(3, 2), torch.tensor(1), r"targets have shape \[\], expected"),
        (torch.zeros(3, 2, dtype=torch.float64), torch.zeros(3, dtype=torch.int64), "inputs are torch.float64"),
        (
            torch.tensor([[1.0], [float("nan")]]),
            torch.zeros(2, dtype=torch.int64),
            "1 of 2 inputs hold values that are not",
        ),
        (torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64), "there are no samples"),
        (torch.zeros(3), torch.zeros(3, dtype=torch.int64), "expected .* at least two axes"),
    ],
)
def test_faulty_samples_are_refused(inputs: torch.Tensor, targets: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Samples(inputs, targets)


def test_large_numbers_are_finite() -> None:
    assert len(Samples(torch.full((2, 4), 3e38), torch.zeros(2, dtype=torch.int64))) == 2


def test_all_faults_are_named_at_once() -> None:
    with pytest.raises(ValueError, match=r"float64.*2 inputs for 3 targets"):
        Samples(torch.zeros(2, 2, dtype=torch.float64), torch.zeros(3))


def test_targets_out_of_range_are_refused(splits: Splits) -> None:
    wrong = Samples(splits.test.inputs, torch.tensor([0, 1, 3]))
    with pytest.raises(ValueError, match=r"targets of test lie in \[0, 3\], expected \[0, 2\]"):
        replace(splits, test=wrong)


def test_splits_of_unequal_shape_are_refused(splits: Splits) -> None:
    with pytest.raises(ValueError, match=r"inputs of validation have shape \[2, 5\], those of train \[2, 4\]"):
        replace(splits, validation=make_samples(shape=(2, 5)))


def test_repeated_class_names_are_refused(splits: Splits) -> None:
    with pytest.raises(ValueError, match="expected at least two different names"):
        replace(splits, classes=("a", "a", "b"))


THREE_FRACTIONS = st.tuples(st.integers(5, 60), st.integers(5, 35)).map(
    lambda percent: (percent[0] / 100, percent[1] / 100, (100 - sum(percent)) / 100)
)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(20, 60), min_size=2, max_size=8), THREE_FRACTIONS, st.integers(0, 9))
def test_stratified_split_is_exact_in_each_class_and_overall(
    sizes: list[int], fractions: tuple[float, float, float], seed: int
) -> None:
    targets = torch.cat([torch.full((size,), label) for label, size in enumerate(sizes)])
    targets = targets[torch.randperm(len(targets), generator=torch.Generator().manual_seed(seed))]
    parts = stratified_split(targets, fractions, seed)
    assert sorted(torch.cat(parts).tolist()) == list(range(len(targets)))
    for part, fraction in zip(parts, fractions, strict=True):
        assert abs(len(part) - fraction * len(targets)) < 1.5
        counts = targets[part].bincount(minlength=len(sizes)).tolist()
        assert all(abs(count - fraction * size) < 1 + 1e-9 for count, size in zip(counts, sizes, strict=True))


def test_stratified_split_depends_on_nothing_but_its_seed() -> None:
    targets = torch.arange(100) % 5
    first, again, other = (stratified_split(targets, (0.5, 0.5), seed)[0] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_small_class_reaches_every_split() -> None:
    targets = torch.tensor([0] * 20 + [1] * 3)
    for part in stratified_split(targets, (0.8, 0.1, 0.1), seed=0):
        assert set(targets[part].tolist()) == {0, 1}


def test_a_class_smaller_than_the_splits_is_refused() -> None:
    with pytest.raises(ValueError, match="class 1 has 2 samples, expected at least 3"):
        stratified_split(torch.tensor([0, 0, 0, 1, 1]), (0.6, 0.2, 0.2), seed=0)


@pytest.mark.parametrize("fractions", [(0.6, 0.6), (1.2, -0.2), (1.0, 0.0), ()])
def test_fractions_that_make_no_whole_are_refused(fractions: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="expected positive ones that make 1"):
        stratified_split(torch.arange(10) % 2, fractions, seed=0)


def test_a_part_without_targets_is_named(splits: Splits) -> None:
    with pytest.raises(ValueError, match=r"test has no targets; give Samples.*, or Splits.unlabelled"):
        replace(splits, test=torch.zeros(3, 2, 4))  # type: ignore[arg-type]
