"""A batch in shards: exact over ragged ones, its random numbers a function of (seed, epoch, step, shard) alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pruning.batches import TensorBatches
from pruning.errors import ModelError, SettingsError
from pruning.training.callbacks import Callbacks
from pruning.training.recipe import Recipe
from pruning.training.trainer import finetune
from pruning.world import World
from tasks.training_state import TrainingCheckpointer
from tests.pruning.training import together

SGD = Recipe(name="sgd", optimizer="sgd", epochs=1, batch_size=11, learning_rate=1.0, momentum=0.0, weight_decay=0.0)


def of_valid(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Sum over what is not ignored, and its number: as language models have it."""
    summed = nn.functional.cross_entropy(outputs, targets, ignore_index=-100, reduction="sum")
    return summed, (targets != -100).sum()


@pytest.mark.parametrize("shards", [2, 4])
@pytest.mark.parametrize("accumulation", [1, 5])
def test_gradient_of_ragged_shards_is_that_of_the_whole(shards: int, accumulation: int) -> None:
    drawn = torch.Generator().manual_seed(0)
    inputs, targets = torch.randn(11, 6, generator=drawn).double(), torch.randint(0, 5, (11,), generator=drawn)
    targets[:5] = -100  # a shard of three has none that count
    whole, divided = (nn.Linear(6, 5).double() for _ in range(2))
    divided.load_state_dict(whole.state_dict())
    recipe = SGD.model_copy(update={"gradient_accumulation": accumulation})
    losses = [
        finetune(
            model, TensorBatches(inputs, targets), recipe, loss=of_valid, seed=0, callbacks=Callbacks(world=world)
        ).losses[0]
        for model, world in ((whole, World()), (divided, World(shards)))
    ]
    torch.testing.assert_close(divided.weight, whole.weight, rtol=1e-12, atol=1e-14)
    assert losses[1] == pytest.approx(losses[0], rel=1e-12)


def test_one_shard_is_what_there_was_before() -> None:
    assert together.train(World(1), together.PLAIN) == together.train(World(), together.PLAIN)


@pytest.mark.thorough
def test_shards_shape_the_result() -> None:
    assert len({together.train(World(shards), together.PLAIN) for shards in (1, 2, 4)}) == 3


class _StoppedError(Exception):
    pass


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["plain", "rich", "fp16"])
def test_training_stopped_within_an_epoch_goes_on_to_the_same_bytes(name: str, tmp_path: Path) -> None:
    recipe = next(one for one in together.RECIPES if one.name == name)
    expected = together.train(World(4), recipe)

    class Stopping(TrainingCheckpointer):
        def save(self, *state: Any) -> None:
            super().save(*state)
            raise _StoppedError

    kept = tmp_path / "kept.safetensors"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(together, "TrainingCheckpointer", Stopping)
        with pytest.raises(_StoppedError):
            together.train(World(4), recipe, together.Killing(kept, rank=-1, step=-1))
    seen: list[int] = []
    assert together.train(World(4), recipe, together.Killing(kept, rank=-1, step=-1), seen) == expected
    assert seen[0] == 2


def test_running_statistics_move_by_the_mean_of_the_shards() -> None:
    inputs = torch.randn(8, 3, generator=torch.Generator().manual_seed(0)).double()
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2)).double()
    order: list[Tensor] = []
    model[0].register_forward_pre_hook(lambda _, given: order.append(given[0].detach().clone()))
    data = TensorBatches(inputs, torch.zeros(8, dtype=torch.long))
    finetune(model, data, SGD.model_copy(update={"batch_size": 8}), seed=0, callbacks=Callbacks(world=World(4)))
    assert [len(one) for one in order] == [2, 2, 2, 2]
    variances = torch.stack([one.var(0) for one in order]).mean(0)
    torch.testing.assert_close(model[0].running_var, 0.9 * torch.ones(3).double() + 0.1 * variances)
    torch.testing.assert_close(model[0].running_mean, 0.1 * inputs.mean(0))
    assert dict(model.named_buffers())["0.num_batches_tracked"].item() == 1


def test_parameter_that_nothing_used_has_no_gradient() -> None:
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle = nn.Linear(3, 2), nn.Parameter(torch.ones(2))

        def forward(self, inputs: Tensor) -> Tensor:
            out: Tensor = self.used(inputs)
            return out

    model, data = Idle(), TensorBatches(torch.randn(8, 3), torch.zeros(8, dtype=torch.long))
    decays = SGD.model_copy(update={"batch_size": 8, "weight_decay": 0.5})
    finetune(model, data, decays, seed=0, callbacks=Callbacks(world=World(2)))
    assert torch.equal(model.idle, torch.ones(2)), "weight decay would have changed it"


@pytest.mark.parametrize("kind", [torch.complex64, torch.complex128])
def test_gradients_of_complex_weights_are_summed_whole(kind: torch.dtype) -> None:
    class Turned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bias, self.turn = (
                nn.Parameter(torch.zeros(1)),
                nn.Parameter(torch.tensor([1 + 2j, 3 - 1j], dtype=kind)),
            )

        def forward(self, inputs: Tensor) -> Tensor:
            return (inputs * self.turn).imag.float() + self.bias

    data = TensorBatches(torch.randn(8, 2, dtype=torch.complex64), torch.randint(2, (8,)))
    models = [Turned(), Turned()]
    for model, shards in zip(models, (1, 4), strict=True):
        decays = SGD.model_copy(update={"batch_size": 8, "learning_rate": 0.1, "epochs": 1})
        finetune(model, data, decays, seed=0, callbacks=Callbacks(world=World(shards)))
    one, other = models
    assert (one.turn.detach() - torch.tensor([1 + 2j, 3 - 1j])).real.abs().min() > 1e-4
    assert (one.turn.detach() - torch.tensor([1 + 2j, 3 - 1j])).imag.abs().min() > 1e-4
    torch.testing.assert_close(other.turn, one.turn)


def test_sparse_gradients_are_refused() -> None:
    model = nn.Sequential(nn.Embedding(5, 4, sparse=True), nn.Flatten(), nn.Linear(4, 2))
    data = TensorBatches(torch.zeros(8, 1, dtype=torch.long), torch.zeros(8, dtype=torch.long))
    with pytest.raises(ModelError, match=r"Embedding\(sparse=False\)"):
        finetune(model, data, SGD.model_copy(update={"batch_size": 8}), seed=0, callbacks=Callbacks(world=World(2)))


def test_loss_that_is_not_finite_ends_training() -> None:
    model, data = nn.Linear(3, 2), TensorBatches(torch.full((8, 3), torch.inf), torch.zeros(8, dtype=torch.long))
    with pytest.raises(ModelError, match="the loss became nan in epoch 1 of 1, step 1 of 1"):
        finetune(model, data, SGD.model_copy(update={"batch_size": 8}), seed=0, callbacks=Callbacks(world=World(2)))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"trainer": "own:train"}, r"names a trainer, which takes its batches whole; with 4 shards"),
        ({"batch_size": 7}, r"a batch of 7 samples can't be divided into 4 shards .* batch_size to 8 at least"),
    ],
)
def test_what_cannot_be_divided_is_refused(changes: dict[str, Any], said: str) -> None:
    data = TensorBatches(torch.zeros(8, 3), torch.zeros(8, dtype=torch.long))
    with pytest.raises(SettingsError, match=said):
        finetune(nn.Linear(3, 2), data, SGD.model_copy(update=changes), seed=0, callbacks=Callbacks(world=World(4)))


def test_progress_is_told_of_each_step() -> None:
    seen: list[int] = []
    data = TensorBatches(torch.randn(20, 3), torch.zeros(20, dtype=torch.long))
    callbacks = Callbacks(progress=lambda done, _total: seen.append(done), world=World(2))
    finetune(nn.Linear(3, 2), data, SGD, seed=0, callbacks=callbacks)
    assert seen == [1, 2]
