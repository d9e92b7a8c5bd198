from __future__ import annotations

from types import SimpleNamespace
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from pruning import find_groups, make_plan, narrow
from pruning.allocation.selection import Scope
from pruning.errors import SettingsError
from pruning.graph.groups import Groups
from pruning.training.callbacks import Callbacks
from pruning.training.recipe import Recipe, Sparsity
from pruning.training.sparsity import GroupLasso, ScalePenalty, SparsityTraining
from pruning.training.trainer import finetune


def learned(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.data for name, parameter in model.named_parameters()}


def two_layers() -> tuple[nn.Sequential, Groups]:
    model = nn.Sequential(nn.Linear(2, 3, bias=False), nn.ReLU(), nn.Linear(3, 2, bias=False))
    return model, find_groups(model, torch.zeros(1, 2))


def test_proximal_step_of_the_group_lasso_worked_out_by_hand() -> None:
    """A channel has s = 4 values. ηλ√s = 0.1 · 10 · 2 = 2: norms 5, 2 and 1 come to 3, 0 and 0."""
    model, groups = two_layers()
    with torch.no_grad():
        model.get_parameter("0.weight").copy_(torch.tensor([[3.0, 0.0], [2.0, 0.0], [0.0, 0.6]]))
        model.get_parameter("2.weight").copy_(torch.tensor([[4.0, 0.0, 0.8], [0.0, 0.0, 0.0]]))
    (group,) = groups
    penalty, parameters = GroupLasso(), learned(model)
    found = penalty.find(group, parameters)
    thresholds = penalty.thresholds(found, parameters, 0.1)
    torch.testing.assert_close(thresholds, torch.tensor([25.0, 10.0, 5.0], dtype=torch.float64))
    penalty.step(found, parameters, 0.1, 10.0, torch.zeros(3, dtype=torch.bool))
    torch.testing.assert_close(model.get_parameter("0.weight").data, torch.tensor([[1.8, 0.0], [0.0, 0.0], [0.0, 0.0]]))
    torch.testing.assert_close(model.get_parameter("2.weight").data, torch.tensor([[2.4, 0.0, 0.0], [0.0, 0.0, 0.0]]))
    assert penalty.thresholds(found, parameters, 0.1)[1:].tolist() == [0.0, 0.0]


def test_proximal_step_of_the_scales_worked_out_by_hand() -> None:
    """ηλ = 0.1 · 2 = 0.2: 1, −0.5, 0.2, −0.1 come to 0.8, −0.3, 0, 0."""
    model = nn.Sequential(nn.Conv2d(1, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1)).eval()
    (group,) = find_groups(model, torch.zeros(1, 1, 2, 2))
    with torch.no_grad():
        model.get_parameter("1.weight").copy_(torch.tensor([1.0, -0.5, 0.2, -0.1]))
    penalty, parameters = ScalePenalty(), learned(model)
    others = {name: tensor.clone() for name, tensor in parameters.items() if name != "1.weight"}
    found = penalty.find(group, parameters)
    spared = torch.zeros(4, dtype=torch.bool)
    penalty.step(found, parameters, 0.1, 2.0, spared)
    torch.testing.assert_close(parameters["1.weight"], torch.tensor([0.8, -0.3, 0.0, 0.0]), atol=1e-6, rtol=0)
    assert (parameters["1.weight"][3] == 0).item()
    penalty.step(found, parameters, 0.1, 100.0, ~spared)
    assert parameters["1.weight"][0].item() == pytest.approx(0.8)
    assert all(torch.equal(parameters[name], tensor) for name, tensor in others.items())


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 20, 3, padding=1, bias=False), nn.BatchNorm2d(20)
        self.inner, self.inner_norm = nn.Conv2d(20, 30, 3, padding=1, bias=False), nn.BatchNorm2d(30)
        self.outer, self.outer_norm = nn.Conv2d(30, 20, 3, padding=1, bias=False), nn.BatchNorm2d(20)
        self.fc = nn.Linear(20, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = x + self.outer_norm(self.outer(torch.relu(self.inner_norm(self.inner(x)))))
        out: Tensor = self.fc(torch.relu(x).mean((2, 3)))
        return out


def samples(num: int = 96) -> SimpleNamespace:
    generator = torch.Generator().manual_seed(0)
    targets = torch.arange(num) % 3
    inputs = torch.randn(num, 1, 6, 6, generator=generator) * 0.3
    inputs[torch.arange(num), 0, 2 * targets] += 2
    return SimpleNamespace(inputs=inputs, targets=targets)


def recipe(penalty: Literal["group_lasso", "bn_scale"], share: float) -> Recipe:
    return Recipe(epochs=8, learning_rate=0.05, batch_size=16, sparsity=Sparsity(penalty=penalty, share=share))


@pytest.mark.parametrize("penalty", ["group_lasso", "bn_scale"])
def test_the_share_asked_for_is_at_zero_and_no_group_is_emptied(penalty: Literal["group_lasso", "bn_scale"]) -> None:
    torch.manual_seed(0)
    model = Residual()
    groups = find_groups(model, torch.zeros(1, 1, 6, 6))
    chosen = recipe(penalty, 0.5)
    training = SparsityTraining(groups, model, chosen)
    history = finetune(model, samples(), chosen, seed=0, callbacks=Callbacks(after_step=training))
    assert training.share == pytest.approx(0.5, abs=0.03)
    assert history.losses[-1] < 0.7 * history.losses[0]
    for norm in (model.inner_norm, model.outer_norm):
        assert 0 < int((norm.weight == 0).sum()) < len(norm.weight) or penalty == "group_lasso"
        assert bool((norm.weight != 0).any())


def test_channels_that_the_group_lasso_brought_to_zero_can_go_without_a_difference() -> None:
    torch.manual_seed(0)
    model = Residual()
    example = torch.randn(2, 1, 6, 6)
    chosen = recipe("group_lasso", 0.4)
    groups = find_groups(model, example)
    callbacks = Callbacks(after_step=SparsityTraining(groups, model, chosen))
    finetune(model, samples(), chosen, seed=0, callbacks=callbacks)
    groups = find_groups(model.eval(), example)
    plan = make_plan(groups, "l2_norm", channel_sparsity=0.39, scope=Scope("global", "none"))
    dense = narrow(model, plan, example)
    torch.testing.assert_close(dense(example), model(example), rtol=1e-4, atol=1e-5)


def test_share_that_would_empty_groups_is_refused() -> None:
    model, groups = two_layers()
    with pytest.raises(SettingsError, match=r"leaves 2; ask for 66\.7% at most"):
        SparsityTraining(groups, model, recipe("group_lasso", 0.9))


def test_recipe_with_sparsity_is_not_trained_without_it() -> None:
    with pytest.raises(SettingsError, match="no after_step was given"):
        finetune(Residual(), samples(), recipe("bn_scale", 0.5), seed=0)


def test_scales_need_batch_norms() -> None:
    model, groups = two_layers()
    with pytest.raises(SettingsError, match="needs batch norms with a scale: choose group_lasso"):
        SparsityTraining(groups, model, recipe("bn_scale", 0.5))
