from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from pruning.errors import ModelError, SettingsError
from pruning.evaluation import evaluate
from pruning.training.recipe import Recipe
from pruning.training.trainer import Callbacks, finetune

RECIPE = Recipe(name="quick", epochs=3, learning_rate=0.05, batch_size=16)


def model() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 3))


def samples(num: int = 97) -> SimpleNamespace:
    generator = torch.Generator().manual_seed(0)
    targets = torch.arange(num) % 3
    inputs = torch.randn(num, 6, generator=generator) + 4 * nn.functional.one_hot(targets, 6)
    return SimpleNamespace(inputs=inputs, targets=targets)


def state(net: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in net.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_training_lowers_the_loss_and_learns() -> None:
    net = model()
    before = evaluate(net, samples())
    history = finetune(net, samples(), RECIPE.model_copy(update={"epochs": 15}), seed=0)
    after = evaluate(net, samples())
    assert len(history.losses) == 15
    assert history.recipe == "quick"
    assert history.losses[-1] < history.losses[0] / 2
    assert after.accuracy > max(0.9, before.accuracy)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_same_seed_gives_the_same_bits_whatever_the_global_random_state(optimizer: str) -> None:
    recipe = RECIPE.model_copy(update={"optimizer": optimizer, "gradient_clip": 1.0})
    first, second, third = model(), model(), model()
    noise = lambda inputs, generator: inputs + 0.1 * torch.randn(inputs.shape, generator=generator)  # noqa: E731
    torch.manual_seed(5)
    finetune(first, samples(), recipe, seed=3, augment=noise)
    torch.manual_seed(6)
    finetune(second, samples(), recipe, seed=3, augment=noise)
    finetune(third, samples(), recipe, seed=4, augment=noise)
    assert same(state(first), state(second))
    assert not same(state(first), state(third))


def test_global_random_state_and_modes_are_restored() -> None:
    net = model()
    net[1].eval()
    torch.manual_seed(9)
    expected = torch.rand(3)
    torch.manual_seed(9)
    finetune(net, samples(), RECIPE, seed=0)
    assert torch.equal(torch.rand(3), expected)
    assert [module.training for module in net] == [True, False, True, True, True]
    assert all(parameter.grad is None for parameter in net.parameters())


def test_last_batch_of_one_sample_does_not_break_batch_norm() -> None:
    finetune(model(), samples(33), RECIPE, seed=0)


def test_distillation_alone_pulls_the_student_to_the_teacher() -> None:
    teacher = model()
    finetune(teacher, samples(), RECIPE.model_copy(update={"epochs": 10}), seed=0)
    data = SimpleNamespace(inputs=samples().inputs, targets=torch.zeros(97, dtype=torch.long))  # labels say nothing
    student, kept = model(), state(teacher)
    recipe = RECIPE.model_copy(update={"epochs": 25, "distillation": 1.0, "temperature": 2.0})
    finetune(student, data, recipe, seed=0, teacher=teacher)
    assert evaluate(student, samples()).accuracy > 0.9
    assert same(state(teacher), kept)
    assert teacher.training


def test_half_the_distillation_is_half_of_each_loss() -> None:
    net = model().eval()
    for module in net:
        module.train = lambda mode=True, module=module: module  # type: ignore[method-assign,misc]
    teacher, data = copy.deepcopy(model()), samples(16)
    losses = []
    for weight in (0.0, 0.5, 1.0):
        recipe = RECIPE.model_copy(update={"epochs": 1, "distillation": weight})
        losses.append(finetune(copy.deepcopy(net), data, recipe, seed=0, teacher=teacher).losses[0])
    assert losses[1] == pytest.approx((losses[0] + losses[2]) / 2, rel=1e-5)


def test_distilling_without_a_teacher_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"'quick' distils .* no teacher"):
        finetune(model(), samples(), RECIPE.model_copy(update={"distillation": 0.5}), seed=0)


def test_label_smoothing_of_a_foreign_loss_is_refused() -> None:
    recipe = RECIPE.model_copy(update={"label_smoothing": 0.1})
    finetune(model(), samples(), recipe, seed=0)
    with pytest.raises(SettingsError, match="label_smoothing"):
        finetune(model(), samples(), recipe, seed=0, loss=nn.functional.cross_entropy)


def test_loss_that_becomes_nan_names_epoch_and_step_and_spares_the_weights() -> None:
    net, data = model(), samples(32)
    data.inputs[3] = float("nan")
    with pytest.raises(ModelError, match=r"became nan in epoch 1 of 3, step [12] of 2; lower the learning rate"):
        finetune(net, data, RECIPE, seed=0)
    assert all(parameter.isfinite().all() for parameter in net.parameters())


def test_progress_hears_of_every_step() -> None:
    heard: list[tuple[int, int]] = []
    finetune(model(), samples(40), RECIPE, seed=0, callbacks=Callbacks(progress=lambda *counts: heard.append(counts)))
    assert heard == [(step, 9) for step in range(1, 10)]
