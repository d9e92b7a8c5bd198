from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from pruning import find_groups
from pruning.dynamic.gates import (
    TOLERANCE,
    GatedModel,
    GateTraining,
    add_gates,
    calibrate_gates,
    macs_of_samples,
    run_masked,
)
from pruning.errors import ModelError, TargetError
from pruning.graph.groups import Groups
from pruning.io.checkpoint import load_checkpoint, save_checkpoint
from pruning.io.onnx import export_onnx
from pruning.plan.masks import masks_of
from pruning.plan.plan import Cost, Plan
from pruning.plan.verification import relative_difference
from pruning.training.callbacks import Callbacks
from pruning.training.recipe import Recipe
from pruning.training.trainer import finetune
from tests.pruning.networks import IMAGE, NETWORKS, make


class Joined(nn.Module):
    """A residual sum with a depthwise layer, a concatenation, and a linear layer behind a flattening."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 8, 3, padding=1)
        self.depthwise, self.point = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Conv2d(8, 8, 1)
        self.norm = nn.BatchNorm2d(8)
        self.left, self.right = nn.Conv2d(8, 6, 1), nn.Conv2d(8, 5, 1)
        self.last = nn.Conv2d(11, 7, 1)
        self.fc = nn.Linear(28, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.sigmoid(self.stem(x))
        x = torch.relu(x + self.norm(self.point(self.depthwise(x))))
        x = torch.relu(self.last(torch.cat([self.left(x), torch.sigmoid(self.right(x))], 1)))
        out: Tensor = self.fc(nn.functional.adaptive_avg_pool2d(x, 2).flatten(1))
        return out


def samples(num: int = 60) -> SimpleNamespace:
    generator = torch.Generator().manual_seed(0)
    targets = torch.arange(num) % 3
    inputs = torch.randn(num, 2, 6, 6, generator=generator)
    inputs[torch.arange(num), 0] += (2.0 * targets - 2)[:, None, None]
    return SimpleNamespace(inputs=inputs, targets=targets)


def gated(spread: float = 0.0) -> tuple[GatedModel, Groups]:
    """A gated model; with a spread its gates choose at random, but differently for each sample."""
    torch.manual_seed(2)
    groups = find_groups(Joined().eval(), samples(1).inputs)
    model, reasons = add_gates(groups)
    assert reasons == {}
    if spread:
        for gate in model.gates:
            linear = gate.get_submodule("linear")
            assert isinstance(linear, nn.Linear)
            nn.init.normal_(linear.weight, std=spread)
            nn.init.normal_(linear.bias, std=spread / 2)
    return model, groups


def test_model_whose_gates_are_all_open_computes_the_same() -> None:
    model, groups = gated()
    assert torch.equal(model(samples().inputs), groups.model(samples().inputs))


def test_gated_sample_is_the_model_masked_for_that_sample() -> None:
    model, groups = gated(spread=2.0)
    found, expected = run_masked(model, groups, samples(12).inputs)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    _, choices = model.choose(samples(12).inputs)
    assert all(bool((chosen[0] != chosen).any()) for chosen in choices.values())
    assert not torch.allclose(found, groups.model(samples(12).inputs), atol=0.01)


@pytest.mark.parametrize("name", [name for name in NETWORKS if name not in ("FunctionalParameters", "Siamese")])
def test_gates_of_any_network_mask_it_sample_by_sample(name: str) -> None:
    generator = torch.Generator().manual_seed(5)
    inputs = torch.randn(3, *IMAGE[1:], generator=generator)
    groups = find_groups(make(name), inputs)
    model, reasons = add_gates(groups)
    assert {*model.names, *reasons} == {group.name for group in groups}
    assert torch.equal(model(inputs), groups.model(inputs))
    with torch.no_grad():
        for gate in model.gates.parameters():
            gate.copy_(torch.randn(gate.shape, generator=generator))
    found, expected = run_masked(model, groups, inputs)
    assert relative_difference([expected], [found]) < 1e-5
    _, choices = model.choose(inputs[:1])
    with torch.no_grad():  # what is closed is not looked at by any gate, so that it need not be computed
        for parameter, mask in masks_of(groups, {groups.atom(n): c[0] > 0 for n, c in choices.items()}).items():
            model.model.get_parameter(parameter).mul_(mask)
    _, again = model.choose(inputs[:1])
    assert all(torch.equal(again[n], chosen) for n, chosen in choices.items())


def test_macs_of_a_sample_are_those_of_its_plan_and_of_the_gates() -> None:
    model, groups = gated(spread=2.0)
    cost, inputs = Cost(groups), samples(7).inputs
    found = macs_of_samples(model, cost, inputs, batch_size=4)
    _, choices = model.choose(inputs)
    for index, macs in enumerate(found.tolist()):
        kept = {name: int(chosen[index].sum()) for name, chosen in choices.items()}
        assert macs == cost.macs(kept) + model.own_macs
    sources = (2, 8, 8, 11)  # channels that the gates pool: of the input, twice of the sum, of the concatenation
    assert model.own_macs == sum(i * o for i, o in zip(sources, (8, 6, 5, 7), strict=True))


def test_trained_and_calibrated_gates_meet_the_target_and_choose_by_input() -> None:
    model, groups = gated()
    cost, data = Cost(groups), samples(120)
    target = 0.6 * cost.macs({})
    recipe = Recipe(epochs=8, learning_rate=0.05, batch_size=20)
    training = GateTraining(model, cost, target)
    callbacks = Callbacks(penalty=training.penalty, after_step=training.after_step)
    finetune(model, data, recipe, seed=0, callbacks=callbacks)
    reached = calibrate_gates(model, cost, data.inputs, target)
    found = macs_of_samples(model, cost, data.inputs)
    assert reached == pytest.approx(float(found.mean()))
    assert abs(reached / target - 1) <= TOLERANCE
    assert float(found.std()) > 0
    copy.deepcopy(model)


def test_target_below_what_no_gate_closes_is_refused() -> None:
    model, groups = gated(spread=2.0)
    with pytest.raises(TargetError, match="the nearest is"):
        calibrate_gates(model, Cost(groups), samples().inputs, 10)


class WithChoices(nn.Module):
    def __init__(self, model: GatedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor) -> Any:
        outputs, choices = self.model.choose(inputs)
        return outputs, *choices.values()


def test_exported_model_makes_the_same_choices(tmp_path: Path) -> None:
    model, _ = gated(spread=2.0)
    inputs = samples(20).inputs
    names = ("output", *(f"gate_{position}" for position in range(len(model.names))))
    both = export_onnx(WithChoices(model), inputs, tmp_path / "both.onnx", output_names=names)
    alone = export_onnx(model, inputs, tmp_path / "alone.onnx")
    outputs, choices = model.choose(inputs)
    found = onnxruntime.InferenceSession(str(both)).run(None, {"input": inputs.numpy()})
    for expected, chosen in zip(choices.values(), found[1:], strict=True):
        assert torch.equal(torch.from_numpy(chosen), expected)
        assert 0 < float(expected.mean()) < 1
    (output,) = onnxruntime.InferenceSession(str(alone)).run(None, {"input": inputs.numpy()})
    torch.testing.assert_close(torch.from_numpy(output), outputs, rtol=1e-4, atol=1e-5)


def test_checkpoint_brings_the_gates_back(tmp_path: Path) -> None:
    model, _ = gated(spread=2.0)
    model.shift.fill_(0.25)
    save_checkpoint(tmp_path / "gated", model, Plan(removed={}, sizes={}))
    loaded, _, _ = load_checkpoint(tmp_path / "gated", Joined, samples(1).inputs)
    assert isinstance(loaded, GatedModel)
    assert torch.equal(loaded(samples().inputs), model(samples().inputs))


class Refusing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 6, 1), nn.Conv2d(6, 8, 1)
        self.weight = nn.Parameter(torch.randn(5, 8, 1, 1))
        self.twice, self.last = nn.Linear(5, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.conv2d(torch.relu(self.second(torch.relu(self.first(x)))), self.weight).mean((2, 3))
        out: Tensor = self.last(torch.relu(self.twice(torch.relu(self.twice(torch.relu(x))))))
        return out


def test_groups_without_a_gate_have_a_reason() -> None:
    groups = find_groups(Refusing().eval(), samples(1).inputs)
    model, reasons = add_gates(groups)
    assert model.names == ("first.weight:0",)
    assert "by a function" in reasons["second.weight:0"]
    with pytest.raises(ModelError, match=r"second\.weight:0: a parameter consumes it, but by a function"):
        add_gates(groups, names=["second.weight:0"])
    with pytest.raises(ModelError, match="ignored by 'first'"):
        add_gates(groups, ignore=["first"])
