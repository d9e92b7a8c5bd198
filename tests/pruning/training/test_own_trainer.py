"""A trainer of the user's own trains the module that it is given; what has another architecture is refused by name."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import pruning
from pruning.errors import SecateurError, SettingsError
from pruning.training.callbacks import Callbacks
from pruning.training.recipe import Recipe
from pruning.training.trainer import finetune

DATA = SimpleNamespace(
    inputs=torch.randn(24, 6, generator=torch.Generator().manual_seed(0)), targets=torch.arange(24) % 3
)


def baseline(width: int = 16) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, 3))


def narrowed() -> nn.Module:
    model = baseline().eval()
    groups = pruning.find_groups(model, DATA.inputs)
    return pruning.narrow(model, pruning.make_plan(groups, "l2_norm", channel_sparsity=0.5), DATA.inputs).train()


def in_place(model: nn.Module, samples: Any, recipe: Recipe, teacher: nn.Module | None) -> None:
    assert model.training
    assert recipe.name == "mine"
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for batch in samples.ordered(8):
        optimizer.zero_grad()
        torch.autograd.backward(nn.functional.cross_entropy(model(batch.inputs), batch.targets))
        optimizer.step()


def compiled_copy(model: nn.Module, samples: Any, recipe: Recipe, teacher: nn.Module) -> nn.Module:
    other = copy.deepcopy(model)
    in_place(other, samples, recipe, teacher)
    return nn.DataParallel(other)


def all_by_name(**given: Any) -> None:
    assert given.keys() == {"model", "samples", "loader", "recipe", "teacher", "loss", "seed"}
    in_place(given["model"], given["samples"], given["recipe"], given["teacher"])


def rebuilds(model: nn.Module) -> nn.Module:
    return baseline()


def rebuilds_in_place(model: nn.Module) -> None:
    for index, layer in enumerate(baseline()):
        model[index] = layer  # type: ignore[operator]


def widens(model: nn.Module) -> nn.Module:
    return baseline(9)


def adds_a_layer(model: nn.Module) -> nn.Module:
    return nn.Sequential(*model, nn.Linear(3, 3))  # type: ignore[misc]


def does_nothing(model: nn.Module) -> None:
    pass


def halves(model: nn.Module) -> None:
    model.half()


def diverges(model: nn.Module) -> None:
    model[3].weight.data.fill_(float("inf"))  # type: ignore[index]


def gives_numbers(model: nn.Module) -> Any:
    return {"loss": 0.1}


def raises(model: nn.Module) -> None:
    raise KeyError("no such callback")


def wants_more(model: nn.Module, data_yaml: str) -> None:
    pass


def run(name: str, model: nn.Module, **given: Any) -> nn.Module:
    recipe = Recipe(name="mine", trainer=f"{__name__}:{name}")
    history = finetune(model, DATA, recipe, seed=0, teacher=baseline(), **given)
    assert (history.losses, history.kept) == ((), 0)
    return model


def test_a_trainer_trains_in_place_or_returns_the_module_and_gets_what_it_takes() -> None:
    trained = [run(name, narrowed()).state_dict() for name in ("in_place", "compiled_copy", "all_by_name")]
    before = narrowed().state_dict()
    assert not torch.equal(trained[0]["0.weight"], before["0.weight"])
    for other in trained[1:]:
        assert all(torch.equal(other[name], tensor) for name, tensor in trained[0].items())


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("rebuilds", r"rebuilt the architecture of the baseline: 0\.weight is \(16, 6\) again, it was \(8, 6\)"),
        ("rebuilds_in_place", r"rebuilt the architecture of the baseline: 0\.weight is \(16, 6\) again"),
        ("widens", r"changed the architecture: 0\.weight is \(9, 6\), it was \(8, 6\)"),
        ("adds_a_layer", r"changed the architecture: 4\.weight, 4\.bias new"),
        ("does_nothing", "left every weight as it was"),
        ("halves", "left 0.weight as float16, it was float32"),
        ("diverges", "left values in 3.weight that are not finite"),
        ("gives_numbers", "returned a dict; expected None, or the trained module"),
        ("raises", r"raised KeyError: 'no such callback' \(.*test_own_trainer.py, line \d+\)"),
        (
            "wants_more",
            "missing a required argument: 'data_yaml'; it is given, by name, what it takes of model",
        ),
        ("nowhere", "can't be imported"),
    ],
)
def test_a_trainer_that_does_something_else_is_refused_by_name(name: str, text: str) -> None:
    with pytest.raises(SecateurError, match=rf"recipe 'mine': trainer '.*:{name}' ?(.*){text}"):
        run(name, narrowed())


def test_a_penalty_needs_the_built_in_trainer() -> None:
    with pytest.raises(SecateurError, match="names a trainer, but a penalty takes part"):
        run("in_place", narrowed(), callbacks=Callbacks(penalty=lambda: torch.zeros(())))


def test_module_modes_and_random_state_are_restored() -> None:
    model = narrowed().eval()
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    finetune(model, DATA, Recipe(name="mine", trainer=f"{__name__}:all_by_name"), seed=0)
    assert torch.equal(torch.rand(2), expected)
    assert not model.training
    with pytest.raises(SettingsError):
        run("rebuilds", model)


ORDERS: list[list[float]] = []


def by_loader(model: nn.Module, loader: Any) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    assert len(loader) == 3
    for _ in range(2):
        seen: list[float] = []
        for inputs, targets in loader:
            seen += inputs[:, 0].tolist()
            optimizer.zero_grad()
            torch.autograd.backward(nn.functional.cross_entropy(model(inputs), targets))
            optimizer.step()
        ORDERS.append(seen)


def test_the_loader_gives_every_sample_once_in_another_order_each_time() -> None:
    ORDERS.clear()
    recipe = Recipe(name="mine", batch_size=8, trainer=f"{__name__}:by_loader")
    models = [narrowed(), narrowed()]
    for model in models:
        finetune(model, DATA, recipe, seed=5)
    assert ORDERS[:2] == ORDERS[2:], "the same seed, the same orders"
    assert ORDERS[0] != ORDERS[1]
    assert sorted(ORDERS[0]) == sorted(ORDERS[1]) == sorted(DATA.inputs[:, 0].tolist())
    assert torch.equal(models[0].state_dict()["0.weight"], models[1].state_dict()["0.weight"])
