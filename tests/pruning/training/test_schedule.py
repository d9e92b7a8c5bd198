"""Schedulers of torch's give the rates that they give in a loop of one's own."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from pruning.errors import SettingsError
from pruning.training.callbacks import Callbacks
from pruning.training.optimizer import make_optimizer
from pruning.training.recipe import Recipe
from pruning.training.trainer import finetune

DATA = SimpleNamespace(
    inputs=torch.randn(24, 4, generator=torch.Generator().manual_seed(0)), targets=torch.arange(24) % 2
)


def rates(**changed: Any) -> list[float]:
    found: list[float] = []
    recipe = Recipe.model_validate({"epochs": 3, "batch_size": 8, "learning_rate": 0.1, "optimizer": "sgd"} | changed)
    callbacks = Callbacks(after_step=lambda _step, _steps, rate: found.append(rate))
    finetune(nn.Linear(4, 2), DATA, recipe, seed=0, callbacks=callbacks)
    return found


def by_hand(make: Any, *, by_epoch: bool = False, optimizer: Any = torch.optim.SGD) -> list[float]:
    found: list[float] = []
    owner = optimizer(nn.Linear(4, 2).parameters(), lr=0.1)
    scheduler = make(owner)
    for step in range(9):
        found.append(owner.param_groups[0]["lr"])
        owner.step()
        if not by_epoch or step % 3 == 2:
            scheduler.step()
    return found


def halving(optimizer: Any, num_steps: int) -> Any:
    return lr_scheduler.LambdaLR(optimizer, lambda step: 0.5 ** (step / num_steps))


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        (
            {"schedule": "StepLR", "schedule_kwargs": {"step_size": 1, "gamma": 0.1}, "schedule_interval": "epoch"},
            by_hand(lambda o: lr_scheduler.StepLR(o, 1), by_epoch=True),
        ),
        ({"schedule": "steplr", "schedule_kwargs": {"step_size": 2}}, by_hand(lambda o: lr_scheduler.StepLR(o, 2))),
        ({"schedule": "CosineAnnealingLR"}, by_hand(lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=9))),
        (
            {"schedule": "CosineAnnealingLR", "schedule_interval": "epoch"},
            by_hand(lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=3), by_epoch=True),
        ),
        (
            {"schedule": "OneCycleLR", "optimizer": "AdamW"},
            by_hand(lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=9), optimizer=torch.optim.AdamW),
        ),
        ({"schedule": f"{__name__}:halving"}, [0.1 * 0.5 ** (step / 9) for step in range(9)]),
    ],
)
def test_rates_are_those_of_torch(changed: dict[str, Any], expected: list[float]) -> None:
    assert rates(**changed) == pytest.approx(expected, rel=1e-12)


def test_a_plateau_is_told_the_loss_of_each_epoch() -> None:
    kwargs = {"patience": 0, "threshold": 0.99, "factor": 0.5}
    found = rates(schedule="ReduceLROnPlateau", schedule_kwargs=kwargs, schedule_interval="epoch")
    assert found == [0.1] * 6 + [0.05] * 3, "the second epoch is not a hundred times better than the first"


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"schedule": "StepLR"}, r"'StepLR' can't be made .*missing 1 required positional argument: 'step_size'"),
        ({"schedule": "json:dumps"}, "schedule 'json:dumps' (made|can't be made)"),
        ({"schedule": "pruning.nowhere:x"}, "can't be imported"),
        ({"steps": 2, "epochs": 6, "warmup_epochs": 1.0}, "warmup_epochs .1. are as long as the run of 2 steps"),
    ],
)
def test_what_can_not_be_made_is_refused(changed: dict[str, Any], text: str) -> None:
    with pytest.raises(SettingsError, match=text):
        rates(**changed)


class NeedsClosure(torch.optim.SGD):
    def step(self, closure: Any) -> Any:  # type: ignore[override]
        return closure()


def no_optimizer(groups: Any, lr: float) -> str:
    return "an optimizer"


def bare(groups: Any, lr: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, lr=lr)


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"optimizer": "RAdam", "optimizer_kwargs": {"beta": 1.0}}, "unexpected keyword argument 'beta'"),
        ({"optimizer": "Muon"}, "'Muon' can't be made .*2D parameters"),
        ({"optimizer": "Rprop", "weight_decay": 0.1}, "'Rprop' takes no weight_decay"),
        ({"optimizer": f"{__name__}:NeedsClosure"}, "evaluates the loss in its step"),
        ({"optimizer": f"{__name__}:no_optimizer"}, "made a str; expected a torch.optim.Optimizer"),
        ({"optimizer": f"{__name__}:missing"}, "can't be imported"),
        ({"optimizer": f"{__name__}:bare", "learning_rate": "auto"}, "has no default of lr; set learning_rate"),
    ],
)
def test_an_optimizer_that_can_not_be_made_is_refused(changed: dict[str, Any], text: str) -> None:
    with pytest.raises(SettingsError, match=text):
        make_optimizer(Recipe.model_validate({"learning_rate": 0.1} | changed), nn.Conv1d(1, 2, 3))


@pytest.mark.parametrize(
    ("name", "made", "rate"),
    [
        ("SGD", torch.optim.SGD, 0.02),
        ("adamw", torch.optim.AdamW, 0.001),
        ("radam", torch.optim.RAdam, 0.001),
        ("Adafactor", torch.optim.Adafactor, 0.01),
    ],
)
def test_optimizers_of_torch_go_by_their_names(name: str, made: type, rate: float) -> None:
    owner = make_optimizer(Recipe.model_validate({"optimizer": name}), nn.Linear(2, 2))
    assert type(owner) is made
    assert [group["lr"] for group in owner.param_groups] == [rate, rate]
    assert [group["weight_decay"] for group in owner.param_groups] == [5e-4, 0.0]
