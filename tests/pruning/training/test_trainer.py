from __future__ import annotations

import copy
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from pruning.errors import ModelError, SettingsError
from pruning.evaluation import evaluate
from pruning.training.callbacks import Callbacks
from pruning.training.recipe import Recipe
from pruning.training.trainer import History, finetune

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
    assert after.score > max(0.9, before.score)


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
    assert evaluate(student, samples()).score > 0.9
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


def _scripted(*shares: float) -> Callable[[nn.Module], Tensor]:
    """Judge one model after another by so many hits of a hundred, whatever it is."""
    left = iter(shares)
    return lambda _model: (torch.arange(100) < 100 * next(left)).float()


def _after_each_epoch(recipe: Recipe, judge: Callable[[nn.Module], Tensor]) -> tuple[list[dict[str, Tensor]], History]:
    """Train, and return the states that were judged, the one at the end last."""
    net, seen = model(), []

    def watched(now: nn.Module) -> Tensor:
        seen.append(state(now))
        return judge(now)

    history = finetune(net, samples(), recipe, seed=0, callbacks=Callbacks(judge=watched))
    return [*seen, state(net)], history


def test_a_judge_that_finds_each_epoch_better_changes_no_bit() -> None:
    plain = model()
    finetune(plain, samples(), RECIPE, seed=0)
    states, history = _after_each_epoch(RECIPE, _scripted(0.5, 0.6, 0.6, 0.7))
    assert same(states[-1], state(plain))
    assert history.kept == 3
    assert history.scores == pytest.approx((0.5, 0.6, 0.6, 0.7))


@pytest.mark.parametrize(
    ("shares", "kept"), [((0.5, 0.52, 0.51, 0.5), 3), ((0.5, 0.49, 0.51, 0.49), 0), ((0.5, 0.49, 0.48, 0.49), 0)]
)
def test_training_that_ends_below_its_beginning_is_undone(shares: tuple[float, ...], kept: int) -> None:
    plain = model()
    finetune(plain, samples(), RECIPE, seed=0)
    states, history = _after_each_epoch(RECIPE, _scripted(*shares))
    assert history.kept == kept
    assert same(states[-1], states[kept])
    assert same(states[3], state(plain)), "what is worse by chance alone is gone on from"


def test_an_epoch_that_is_worse_beyond_chance_is_undone_at_half_the_rate(caplog: pytest.LogCaptureFixture) -> None:
    recipe = RECIPE.model_copy(update={"schedule": "constant", "momentum": 0.0, "epochs": 2})
    states, history = _after_each_epoch(recipe, _scripted(0.9, 0.2, 0.95))
    assert history.kept == 2
    assert "epoch 1 of 2 ended at 0.2000" in caplog.text

    by_hand = model()  # the second epoch from the beginning, at half the rate
    half = recipe.model_copy(update={"learning_rate": 0.025})
    lost = model()
    finetune(lost, samples(), recipe.model_copy(update={"epochs": 1}), seed=0)
    assert same(states[1], state(lost))

    class Second:
        def load(self, *_: object) -> list[float]:
            return [0.0]

        def save(self, *_: object) -> None:
            pass

        def is_due(self) -> bool:
            return False

    finetune(by_hand, samples(), half, seed=0, callbacks=Callbacks(checkpointer=Second()))
    assert same(states[-1], state(by_hand))
