from __future__ import annotations

import os
import random
from collections import UserDict
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, default_collate

from pruning import collect, find_groups
from pruning.batches import Batch, Batches, DatasetBatches, TensorBatches, as_batches, checked_batches
from pruning.errors import DataError
from pruning.evaluation import evaluate
from pruning.recovery.calibrate import recalibrate
from pruning.task import Task
from pruning.training.recipe import Recipe
from pruning.training.trainer import finetune

NUMBER = 41


def tensors(seed: int = 0) -> tuple[dict[str, Tensor], Tensor]:
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(NUMBER, 3, 8, 8, generator=generator)
    table = torch.randn(NUMBER, 5, generator=generator)
    return {"image": image, "table": table}, torch.arange(NUMBER) % 4


class Listed(Dataset[Any]):
    """A picture and a row of a table by name, made as they are asked for; perhaps with noise of three generators."""

    def __init__(self, noise: float = 0.0) -> None:
        self.inputs, self.labels, self.noise = *tensors(), noise

    def __len__(self) -> int:
        return NUMBER

    def __getitem__(self, index: int) -> Any:
        drawn = self.noise * (torch.rand(1) + random.random() + float(np.random.rand()))
        return {
            "image": self.inputs["image"][index] + drawn,
            "table": self.inputs["table"][index],
            "label": self.labels[index],
        }


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.linear = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(5, 8)
        self.drop, self.head = nn.Dropout(0.3), nn.Linear(8, 4)

    def forward(self, image: Tensor, table: Tensor) -> Tensor:
        seen = self.norm(self.conv(image)).relu().mean((2, 3))
        found: Tensor = self.head(self.drop(seen + self.linear(table).relu()))
        return found


def dataset_batches(num_workers: int = 0, noise: float = 0.0) -> DatasetBatches:
    return DatasetBatches(Listed(noise), Task().unpack, num_workers=num_workers)


def same(one: Any, other: Any) -> bool:
    pairs = zip(one, other, strict=True)
    return all(torch.equal(a.inputs[n], b.inputs[n]) for a, b in pairs for n in ("image", "table"))


def trained(samples: Any) -> dict[str, Tensor]:
    torch.manual_seed(3)
    model = TwoInputs()
    finetune(model, samples, Recipe(epochs=2, batch_size=8, learning_rate=0.05, optimizer="sgd"), seed=5)
    return model.state_dict()


@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_training_on_a_data_set_gives_the_bytes_of_training_on_tensors(num_workers: int) -> None:
    inputs, targets = tensors()
    expected, found = trained(TensorBatches(inputs, targets)), trained(dataset_batches(num_workers))
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_noise_is_a_function_of_seed_epoch_and_sample() -> None:
    here = [slice(0, 20), slice(20, NUMBER)]

    def read(num_workers: int, batches: list[Any] = here, **of: int) -> list[Any]:
        return list(dataset_batches(num_workers, noise=0.1).read(batches, **of))

    expected = read(0, seed=1, epoch=2)
    assert same(expected, read(1, seed=1, epoch=2))
    assert same(expected, read(2, seed=1, epoch=2))
    assert same(expected[1:], read(2, here[1:], seed=1, epoch=2)), "begun at a later batch"
    assert not same(expected, read(0, seed=1, epoch=3))
    assert not same(expected, read(0, seed=2, epoch=2))
    backwards = read(0, [torch.arange(NUMBER - 1, -1, -1)], seed=1, epoch=2)[0].inputs["image"].flip(0)
    assert torch.equal(backwards, torch.cat([batch.inputs["image"] for batch in expected])), "in another order"


def test_augmented_training_is_the_same_with_any_number_of_workers() -> None:
    expected = trained(dataset_batches(0, noise=0.5))
    assert all(torch.equal(trained(dataset_batches(2, noise=0.5))[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize("num_workers", [0, 2])
def test_reading_leaves_this_process_s_generators_alone(num_workers: int) -> None:
    def numpy_state() -> Any:
        found: Any = np.random.get_state()
        return found[1].tolist()

    states = torch.get_rng_state(), numpy_state(), random.getstate()
    for _ in dataset_batches(num_workers, noise=1.0).ordered(7):
        pass
    assert torch.equal(torch.get_rng_state(), states[0])
    assert numpy_state() == states[1]
    assert random.getstate() == states[2]


def test_everything_takes_both_kinds_and_several_inputs_by_name() -> None:
    torch.manual_seed(0)
    model, (inputs, targets) = TwoInputs().eval(), tensors()
    kinds: list[Any] = [
        SimpleNamespace(inputs=inputs, targets=targets),
        TensorBatches(inputs, targets),
        dataset_batches(),
        dataset_batches(2),
    ]
    groups = find_groups(model, {name: tensor[:1] for name, tensor in inputs.items()})
    group = groups["conv.weight:0"]
    scores, statistics, norms = [], [], []
    for samples in kinds:
        found = evaluate(model, samples, batch_size=16, each=True)
        assert found.losses is not None
        scores.append((found.score, found.loss, found.num_samples, found.losses.tolist()))
        gathered = collect(groups, ["gradients", "activity", "fisher"], samples, batch_size=16)
        statistics.append([gathered.of(need, group).tolist() for need in gathered.gathered])
        other = TwoInputs()
        other.load_state_dict(model.state_dict())
        recalibrate(other, samples, num_samples=20, batch_size=8)
        norms.append(other.norm.running_var.tolist() if other.norm.running_var is not None else None)
    assert scores[0][2] == NUMBER
    for found_by_kind in (scores, statistics, norms):
        assert all(one == found_by_kind[0] for one in found_by_kind)


def test_subsets_are_those_of_tensors() -> None:
    inputs, targets = tensors()
    for samples in (TensorBatches(inputs, targets), dataset_batches()):
        few = samples.spread(10)
        assert len(few) == 10
        assert torch.equal(few.loaded().targets, targets[torch.arange(10) * NUMBER // 10])
        again = few.take(torch.tensor([9, 0]))
        assert torch.equal(again.loaded().targets, targets[torch.tensor([9 * NUMBER // 10, 0])])
        assert samples.spread(NUMBER + 1) is samples
        assert [batch.size for batch in samples.ordered(20)] == [20, 20, 1]
        assert samples.first(3).targets.tolist() == [0, 1, 2]


class Faulty(Listed):
    def __getitem__(self, index: int) -> Any:
        if index == 23:
            raise OSError("cat.jpg is truncated")
        return super().__getitem__(index)


def halved(samples: list[Any]) -> Any:
    return default_collate(samples[: len(samples) // 2])


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize(
    ("dataset", "collate", "message"),
    [
        (
            Faulty(),
            default_collate,
            r"my data: sample 23: OSError: cat.jpg is truncated \(.*test_batches.py, line \d+\)$",
        ),
        (
            Listed(),
            halved,
            r"my data: samples 0 to 7: the inputs: DataError: collate_fn gave a tensor \[4, 3, 8, 8\] of 8",
        ),
        (Listed(), UserDict, r"my data: samples 0 to 7 can't be joined to a batch: \w+Error: "),
        (Listed(), lambda samples: 3, r"my data: samples 0 to 7 can't be unpacked: DataError: a sample is a int"),
    ],
)
def test_a_fault_names_the_sample_and_the_line_wherever_it_was_made(
    num_workers: int, dataset: Any, collate: Any, message: str
) -> None:
    samples = DatasetBatches(dataset, Task().unpack, collate_fn=collate, num_workers=num_workers, name="my data")
    with pytest.raises(DataError, match=message):
        list(samples.ordered(8))


class Ending(Listed):
    def __getitem__(self, index: int) -> Any:
        if index == 23:
            os._exit(3)
        return super().__getitem__(index)


@pytest.mark.thorough  # the loader looks every five seconds
def test_a_worker_that_ends_is_told() -> None:
    samples = DatasetBatches(Ending(), Task().unpack, num_workers=2, name="my data")
    with pytest.raises(DataError, match=r"my data: a worker process ended \(.*; memory, or shared memory in /dev/shm"):
        list(samples.ordered(8))


class Forgetful(TensorBatches):
    def read(self, batches: Sequence[Any], *, seed: int = 0, epoch: int = 0) -> Iterator[Batch]:
        return super().read(batches[:-1], seed=seed, epoch=epoch)


def test_an_evaluation_counts_what_it_saw() -> None:
    inputs, targets = tensors()
    with pytest.raises(DataError, match="40 samples were read of 41; every one has to be seen once"):
        evaluate(TwoInputs(), Forgetful(inputs, targets), batch_size=20)


def test_samples_of_any_kind_become_batches() -> None:
    inputs, targets = tensors()
    batches: Batches = TensorBatches(inputs, targets)
    assert as_batches(batches) is batches
    assert as_batches(inputs).first(2).targets is None
    with pytest.raises(DataError, match="the samples are a list; give several inputs as a tuple or a dict"):
        as_batches([1, 2])
    with pytest.raises(DataError, match="41 inputs but 2 targets"):
        as_batches(SimpleNamespace(inputs=inputs, targets=targets[:2]))
    with pytest.raises(DataError, match="no samples; at least one is needed"):
        checked_batches(torch.zeros(0, 3))
