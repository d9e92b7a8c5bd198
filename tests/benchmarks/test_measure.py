"""What a row says is what happened to the model."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import Tensor, nn

import pruning
from benchmarks.architectures import Architecture, find_architectures
from benchmarks.measure import Measurement, layer_parameters, measure, random_plan
from benchmarks.table import as_json, as_markdown, summary
from pruning.plan.verification import outputs_of


def small() -> nn.Module:
    return nn.Sequential(nn.Linear(7, 20), nn.ReLU(), nn.Linear(20, 12), nn.LayerNorm(12), nn.Linear(12, 5))


def numbers(generator: torch.Generator) -> Tensor:
    return torch.randn(3, 7, generator=generator)


class Fails(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise ValueError("no such luck")


class ScalesLongOnes(nn.Module):
    """Inputs of more than three rows take a line that the example doesn't, with a width in plain numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(7, 20), nn.Linear(20, 5)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        if len(x) > 3:
            hidden = hidden * torch.linspace(0, 1, 20)
        found: Tensor = self.last(hidden)
        return found


def test_network_that_narrow_refuses_for_other_inputs_is_called_refused() -> None:
    row = measure(Architecture("test/long", ScalesLongOnes, numbers), fast=True)
    assert row.status == "refused, for inputs of shapes (4, 7)"


def test_exact_row_holds_what_the_library_says() -> None:
    architecture = Architecture("test/small", small, numbers)
    row = measure(architecture)
    groups = pruning.find_groups(architecture.make(), architecture.make_inputs(1))
    plan = random_plan(groups)
    assert row.status == "exact"
    assert row.num_groups == len(groups) == 1
    assert row.difference < 1e-4 < row.effect
    assert row.macs_removed == 1 - pruning.count_macs(groups, plan) / pruning.count_macs(groups)
    assert row.seconds_first > 0
    assert row.seconds_second > 0
    assert row.peak_mb > 10


def test_layers_behind_a_norm_are_counted_apart() -> None:
    row = measure(Architecture("test/small", small, numbers), fast=True)
    first, second, last = 7 * 20 + 20, 20 * 12 + 12, 12 * 5 + 5
    # The second layer's weight takes the first one's channels; its bias and the last weight lie behind the norm alone.
    assert row.layer_share == (first + 20 * 12) / (first + second + last)
    assert row.layer_share_aside == (first + 20 * 12) / (first + 20 * 12 + 5)
    assert math.isnan(row.seconds_second)


def test_failing_model_is_a_row_and_no_crash() -> None:
    row = measure(Architecture("test/fails", Fails, numbers))
    assert row.status == "the model itself fails"
    assert "no such luck" in row.error


def test_every_group_loses_thirty_percent_and_tied_ones_the_same() -> None:
    (architecture,) = find_architectures("own/yolo-c2f")
    groups = pruning.find_groups(architecture.make(), architecture.make_inputs(1))
    plan = random_plan(groups)
    assert any(group.ties for group in groups)
    for group in groups:
        if not group.ties:
            assert len(plan.removed[group.name]) == min(round(0.3 * group.size), group.size - 1)


def test_models_are_the_same_each_time_and_have_no_telltale_constants() -> None:
    (architecture,) = find_architectures("own/mobilenet-v1")
    one, other = architecture.make(), architecture.make()
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name])
    assert all(float(p.detach().std()) > 0 for p in one.parameters())
    assert float(one.get_buffer("features.0.1.running_mean").std()) > 0
    a, b = architecture.make_inputs(1), architecture.make_inputs(2)
    assert isinstance(a, Tensor)
    assert isinstance(b, Tensor)
    assert a.shape == b.shape
    assert not torch.equal(a, b)


def test_layers_of_normed_weights_are_counted() -> None:
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(4, 3))
    assert sum(p.numel() for p in layer_parameters(layer).values()) == 12 + 3 + 3


def test_list_is_long_and_its_names_are_distinct() -> None:
    names = [one.name for one in find_architectures()]
    assert len(names) == len(set(names)) >= 85
    families = """resnet resnext densenet vgg mobilenet_v1 mobilenet_v2 mobilenet_v3 efficientnet_b efficientnet_v2
        shufflenet squeezenet googlenet inception regnet mnasnet convnext convnextv2 maxvit swin_t swin_v2 vit deit beit
        dinov2 clip segformer poolformer unet deeplab fcn ssd detr yolo lstm gru tcn bert distilbert roberta gpt2 opt
        llama mistral qwen gemma t5 whisper wav2vec2 mamba"""
    assert [family for family in families.split() if not any(family in name for name in names)] == []


@pytest.mark.parametrize("name", [one.name for one in find_architectures("own/*")])
@pytest.mark.filterwarnings("ignore:enable_nested_tensor", "ignore:LSTM with projections")
def test_own_network_runs(name: str) -> None:
    architecture = next(one for one in find_architectures(name) if one.name == name)
    found = outputs_of(architecture.make(), architecture.make_inputs(1))
    assert found
    assert all(bool(torch.isfinite(t).all()) for t in found)


def test_table_counts_results_and_json_has_no_nan() -> None:
    rows = [
        Measurement("a/exact", status="exact", layer_share=0.9, layer_share_aside=1.0, macs_removed=0.5),
        Measurement("a/wrong", status="differs", difference=math.inf),
        Measurement("a/exact", "torch-pruning", status="exact", macs_removed=0.25),
    ]
    counted = summary(rows, "secateur")
    assert counted["exact"] == 1
    assert counted["results"] == {"exact": 1, "differs": 1}
    assert counted["mean_macs_removed"] == 0.5
    read = json.loads(as_json(rows), parse_constant=pytest.fail)
    assert read["rows"][0]["difference"] is None
    assert read["rows"][1]["difference"] == "infinite"
    lines = as_markdown(rows).splitlines()
    assert lines[0].startswith("**secateur**: 1 of 2 exact")
    table = [line for line in lines if line.startswith("|")]
    assert len(table) == 2 + 3
    assert len({line.count("|") for line in table}) == 1


def test_with_streams_what_lies_between_inputs_and_outputs_is_counted_apart() -> None:
    row = measure(Architecture("test/small", small, numbers), fast=True, streams=True)
    assert row.engine == "secateur-streams"
    assert row.layer_share < 1.0
    assert row.layer_share_aside == 1.0, "the last bias is an output"
