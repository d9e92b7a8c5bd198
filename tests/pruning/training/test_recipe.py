from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from pruning.training.optimizer import learning_rate_at, make_optimizer
from pruning.training.recipe import Recipe, recipe_for
from tasks.config.training_schema import FromScratch


def rates(recipe: Recipe, steps_per_epoch: int = 10) -> list[float]:
    return [learning_rate_at(recipe, step, steps_per_epoch) for step in range(recipe.epochs * steps_per_epoch)]


def test_constant_stays_at_the_peak() -> None:
    assert set(rates(Recipe(epochs=3, learning_rate=0.1, schedule="constant"))) == {0.1}


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_falling_schedules_start_at_the_peak_and_pass_its_half_in_the_middle(schedule: str) -> None:
    found = rates(Recipe.model_validate({"epochs": 4, "learning_rate": 0.2, "schedule": schedule}))
    assert found[0] == pytest.approx(0.2)
    assert found[20] == pytest.approx(0.1)
    assert all(later < earlier for earlier, later in itertools.pairwise(found))
    assert 0 < found[-1] < 0.01


def test_warmup_rises_to_the_peak() -> None:
    found = rates(Recipe(epochs=4, learning_rate=0.2, schedule="constant", warmup_epochs=1))
    assert found[0] == pytest.approx(0.2 / 11)
    assert all(later > earlier for earlier, later in itertools.pairwise(found[:11]))
    assert found[10:] == [0.2] * 30


def test_one_cycle_peaks_after_thirty_percent() -> None:
    found = rates(Recipe(epochs=10, learning_rate=1.0, schedule="one_cycle"))
    assert found.index(max(found)) == 30
    assert found[0] == pytest.approx(1 / 25)
    assert found[30] == pytest.approx(1.0)
    assert found[-1] < 0.01


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_norms_and_biases_are_not_decayed_and_frozen_parameters_not_owned(optimizer: str) -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Linear(2, 2))
    model[2].weight.requires_grad_(False)
    made = make_optimizer(Recipe.model_validate({"optimizer": optimizer, "weight_decay": 0.1}), model)
    owned = {id(p): family["weight_decay"] for family in made.param_groups for p in family["params"]}
    assert owned[id(model[0].weight)] == 0.1
    assert owned[id(model[0].bias)] == owned[id(model[1].weight)] == owned[id(model[2].bias)] == 0.0
    assert id(model[2].weight) not in owned
    assert isinstance(made, torch.optim.SGD if optimizer == "sgd" else torch.optim.AdamW)


@pytest.mark.parametrize(
    "wrong",
    [
        {"epochs": 0},
        {"learning_rate": 0},
        {"schedule": "step"},
        {"distillation": 1.5},
        {"lr": 0.1},
        {"warmup_epochs": 5},
    ],
)
def test_wrong_settings_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Recipe.model_validate({"epochs": 5} | wrong)


class RMSNormOfMine(nn.Module):
    pass


BATCH = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
LAYER = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))


@pytest.mark.parametrize(
    ("model", "given", "optimizer"),
    [
        (BATCH, {}, "sgd"),
        (LAYER, {}, "adamw"),
        (nn.Sequential(nn.Linear(2, 2), RMSNormOfMine()), {}, "adamw"),
        (nn.Sequential(*BATCH, *LAYER), {}, "sgd"),
        (nn.Sequential(*BATCH, *LAYER, nn.LayerNorm(2)), {}, "adamw"),
        (nn.Linear(2, 2), {}, "sgd"),
        (LAYER, {"learning_rate": 0.1}, "sgd"),
        (LAYER, {"optimizer": "sgd"}, "sgd"),
        (BATCH, {"optimizer": "adamw"}, "adamw"),
    ],
)
def test_auto_takes_the_optimizer_that_suits_the_norms(
    model: nn.Module, given: dict[str, object], optimizer: str
) -> None:
    assert recipe_for(Recipe.model_validate(given), model).optimizer == optimizer


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        (Recipe(epochs=6, optimizer="sgd"), (0.02, 0.0, None)),
        (Recipe(epochs=6, optimizer="adamw"), (1e-3, pytest.approx(0.6), 1.0)),
        (Recipe(epochs=60, optimizer="adamw", gradient_clip=None), (1e-3, 1.0, None)),
        (Recipe(epochs=6, optimizer="adamw", learning_rate=0.3, warmup_epochs=2.0), (0.3, 2.0, 1.0)),
        (FromScratch(optimizer="sgd"), (0.1, 0.0, None)),
        (FromScratch(optimizer="adamw"), (2e-3, 0.0, 1.0)),
    ],
)
def test_auto_fills_in_what_the_optimizer_needs(recipe: Recipe, expected: tuple[Any, ...]) -> None:
    assert (recipe.peak_rate, recipe.rise, recipe.largest_gradient) == expected
    owner = make_optimizer(recipe, nn.Linear(2, 2))
    assert [group["lr"] for group in owner.param_groups] == [expected[0]] * 2
