"""Samples of a stream: read in passes, like those of a data set, with little in memory."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import IterableDataset

from pruning.batches import DatasetBatches, TensorBatches
from pruning.errors import DataError
from pruning.streams import WINDOW, StreamBatches, spread_over
from pruning.task import Task
from pruning.training.callbacks import deal_batches
from pruning.training.recipe import Recipe
from pruning.training.trainer import finetune

NUMBER = 300
INPUTS, TARGETS = torch.arange(NUMBER * 2.0).reshape(NUMBER, 2), torch.arange(NUMBER) % 3


class Stream(IterableDataset[Any]):
    def __init__(self, noise: float = 0.0, length: int = NUMBER, broken: int | None = None) -> None:
        self.noise, self.length, self.broken = noise, length, broken
        self.passes, self.alive, self.most, self.epoch = 0, weakref.WeakSet[Any](), 0, -1

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[Any]:
        self.passes += 1
        for number in range(self.length):
            if number == self.broken:
                raise OSError("shard 3 is gone")
            sample = INPUTS[number] + self.noise * torch.rand(2), int(TARGETS[number])
            self.alive.add(sample[0])
            self.most = max(self.most, len(self.alive))
            yield sample


def batches(stream: Any, **more: Any) -> StreamBatches:
    return StreamBatches(stream, Task().unpack, length=NUMBER, name="'my:data': train", **more)


class Listed:
    def __init__(self, noise: float) -> None:
        self.noise = noise

    def __len__(self) -> int:
        return NUMBER

    def __getitem__(self, number: int) -> Any:
        return INPUTS[number] + self.noise * torch.rand(2), int(TARGETS[number])


@pytest.mark.parametrize("noise", [0.0, 1.0])
def test_any_order_is_that_of_a_data_set_in_one_pass(noise: float) -> None:
    stream, listed = Stream(noise), DatasetBatches(Listed(noise), Task().unpack)
    order = torch.randperm(NUMBER, generator=torch.Generator().manual_seed(0))
    asked: list[slice | Tensor] = [
        order[:7],
        slice(3, 5),
        order[100:],
        torch.tensor([299, 0, 0]),
        torch.arange(NUMBER) > 297,
    ]
    for (found, expected), passes in zip(
        ((batches(stream), listed), (batches(stream).take(order), listed.take(order))), (1, 2), strict=True
    ):
        pairs = zip(found.read(asked, seed=3, epoch=2), expected.read(asked, seed=3, epoch=2), strict=True)
        for one, other in pairs:
            assert one.digest() == other.digest()
        assert (stream.passes, stream.epoch) == (passes, 2)
    state = torch.get_rng_state()
    first = batches(stream).first(2)
    assert torch.equal(torch.get_rng_state(), state)
    assert first.digest() == listed.first(2).digest()


def test_a_pass_holds_a_window_of_samples() -> None:
    stream = Stream()
    order = deal_batches(NUMBER, 10, torch.Generator().manual_seed(0), 40)
    for batch in batches(stream).read(order):
        assert batch.size == 10
    gc.collect()
    assert stream.most <= 40 + 10 + 2


def test_order_is_shuffled_within_windows_and_each_sample_comes_once() -> None:
    order = torch.cat(deal_batches(NUMBER, 7, torch.Generator().manual_seed(0), 64))
    assert sorted(order.tolist()) == list(range(NUMBER))
    assert all(
        sorted(order[at : at + 64].tolist()) == list(range(at, min(NUMBER, at + 64))) for at in range(0, 300, 64)
    )
    assert order[:64].tolist() != list(range(64))
    alike = [deal_batches(NUMBER, 7, torch.Generator().manual_seed(0), window) for window in (None, NUMBER, 999)]
    assert all(torch.equal(torch.cat(alike[0]), torch.cat(one)) for one in alike[1:])


def test_samples_that_are_kept_are_spread_and_need_no_pass() -> None:
    stream, numbers = Stream(), spread_over(NUMBER, 30)
    kept = TensorBatches(INPUTS[numbers], TARGETS[numbers])
    found = batches(stream, kept=kept)
    assert torch.equal(found.spread(10).loaded().inputs, INPUTS[numbers[::3]])
    assert stream.passes == 0
    assert torch.equal(found.spread(50).loaded().inputs, INPUTS[spread_over(NUMBER, 50)])
    assert found.spread(NUMBER) is found
    answered = found.with_targets(torch.arange(NUMBER) + 5)
    assert torch.equal(answered.spread(30).loaded().targets, numbers + 5)
    assert torch.equal(next(answered.read([torch.tensor([7, 3])])).targets, torch.tensor([12, 8]))
    assert torch.equal(answered.take(torch.tensor([7, 3])).first(1).targets, torch.tensor([12]))
    with pytest.raises(DataError, match="300 samples but 3 targets"):
        found.with_targets(torch.arange(3))


def test_a_stream_that_ends_early_or_breaks_is_told() -> None:
    with pytest.raises(DataError, match="'my:data': train ended before sample 290 of 300"):
        batches(Stream(length=290)).first(NUMBER)
    with pytest.raises(DataError, match="train: sample 50: OSError: shard 3 is gone"):
        batches(Stream(broken=50)).first(NUMBER)

    def ragged(samples: list[Any]) -> Tensor:
        raise ValueError("no")

    with pytest.raises(DataError, match="samples 0 to 3 can't be joined to a batch: ValueError: no"):
        batches(Stream(), collate_fn=ragged).first(4)
    with pytest.raises(DataError, match="samples 0 to 3 can't be unpacked: DataError: a sample is 3 values"):
        batches(Stream(), collate_fn=lambda _: (1, 2, 3)).first(4)


class Windowed(TensorBatches):
    window = WINDOW


@pytest.mark.thorough
def test_training_by_passes_is_training_by_numbers() -> None:
    recipe = Recipe(name="short", epochs=2, batch_size=16, learning_rate=0.001)
    weights = []
    for samples in (batches(Stream()), Windowed(INPUTS, TARGETS), TensorBatches(INPUTS, TARGETS)):
        torch.manual_seed(0)
        model = nn.Linear(2, 3)
        finetune(model, samples, recipe, seed=0)
        weights.append(model.weight.detach().clone())
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[1], weights[2])  # there all samples are shuffled
