from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pruning
from pruning.errors import PlanError
from tests.pruning.networks import IMAGE, NETWORKS, make

X = torch.zeros(IMAGE)


def test_a_residual_sum_couples_its_producers_and_consumers() -> None:
    groups = pruning.find_groups(make("Residual"), X)
    stem = groups["features.0.0.weight:0"]
    roles = {(s.parameter, s.axis): s.role for s in stem.slices}
    assert roles["features.0.0.weight", 0] == "producer"
    assert roles["features.1.body.2.weight", 0] == "producer"
    assert roles["features.0.1.running_var", 0] == "follower"
    assert roles["features.1.body.0.0.weight", 1] == "consumer"
    assert "producer  features.0.0.weight, axis 0" in str(groups)


def test_a_depthwise_convolution_follows_what_the_layer_before_makes() -> None:
    groups = pruning.find_groups(make("Depthwise"), X)
    wide = groups["features.1.expand.0.weight:0"]
    roles = {s.parameter: s.role for s in wide.slices}
    assert roles["features.1.depthwise.0.weight"] == "follower"
    assert roles["features.1.project.0.weight"] == "consumer"


def test_batch_norm_parameters_are_known_by_their_use() -> None:
    groups = pruning.find_groups(make("Plain"), X)
    uses = {s.use for s in groups["features.0.0.weight:0"].slices}
    assert {"convolution.weight", "batch_norm.weight", "batch_norm.bias", "batch_norm.running_mean"} <= uses


def test_a_slice_says_where_each_channel_lies_after_a_flatten() -> None:
    groups = pruning.find_groups(make("Plain"), X)
    group = groups["features.2.0.weight:0"]
    consumer = next(s for s in group.slices if s.role == "consumer")
    assert consumer.channels().tolist() == [c for c in range(24) for _ in range(4)]


@pytest.mark.parametrize("name", NETWORKS)
def test_names_are_unique_and_the_same_on_every_instance(name: str) -> None:
    first = [(g.name, g.size) for g in pruning.find_groups(make(name), X)]
    again = [(g.name, g.size) for g in pruning.find_groups(NETWORKS[name](), X)]
    assert first == again
    assert len(set(first)) == len(first)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_parameter_is_reported_with_its_groups_or_its_reasons(name: str) -> None:
    model = make(name)
    report = pruning.find_groups(model, X).report()
    assert [row.parameter for row in report] == [n for n, _ in model.named_parameters()]
    assert all(row.prunable or row.reasons for row in report)
    assert str(report).count("\n") == len(report)


def test_an_output_stays_whole_and_says_so() -> None:
    row = pruning.find_groups(make("Plain"), X).report()["head.4.bias"]
    assert not row.prunable
    assert row.reasons == ("axis 0: it is an output of the model",)


def test_a_parameter_that_forward_does_not_use_stays_whole() -> None:
    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.left_out = nn.Linear(3, 4), nn.Linear(4, 5)

        def forward(self, x: Tensor) -> Any:
            return F.relu(self.used(x))

    groups = pruning.find_groups(Unused(), torch.zeros(2, 3))
    assert "doesn't use it" in str(groups.report()["left_out.weight"])


def test_an_unknown_name_gives_the_nearest_one() -> None:
    groups = pruning.find_groups(make("Plain"), X)
    with pytest.raises(PlanError, match=r"did you mean 'features\.0\.0\.weight:0'"):
        groups["features.0.0.weight:1"]
    with pytest.raises(KeyError, match="did you mean"):
        groups.report()["features.0.0.wieght"]


def test_inputs_may_be_a_tensor_a_tuple_or_keyword_tensors() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(3, 8), nn.Linear(5, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor, y: Tensor) -> Any:
            return self.c(torch.relu(self.a(x) + self.b(y))), 7

    x, y = torch.randn(4, 3), torch.randn(4, 5)
    names = [[g.name for g in pruning.find_groups(Two(), inputs)] for inputs in ((x, y), {"x": x, "y": y})]
    assert names == [["a.weight:0"], ["a.weight:0"]]


def test_finding_groups_leaves_model_modes_and_gradients_alone() -> None:
    model = make("Plain").train()
    pruning.find_groups(model, X)
    assert all(module.training for module in model.modules())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


@cache
def position_index(size: int) -> Tensor:
    return torch.arange(size)


def test_no_fake_tensor_stays_in_a_cache_of_the_models_code() -> None:
    class Cached(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Any:
            return self.b(torch.relu(self.a(x))) + position_index(2)

    model, x = Cached(), torch.randn(4, 3)
    assert len(pruning.find_groups(model, x)) == 1
    assert type(position_index(2)) is Tensor
    assert type(model(x)) is Tensor


def test_resizing_is_known_under_deterministic_algorithms_too() -> None:
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(8, 4, 3))
    try:
        torch.use_deterministic_algorithms(True, warn_only=True)
        groups = pruning.find_groups(model.eval(), torch.randn(1, 3, 8, 8))
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
    assert not groups.unknown_operators
    assert len(groups) == 1
