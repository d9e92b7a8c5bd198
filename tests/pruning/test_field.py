"""What users of other pruning tools ran into, one test a complaint: what crashed there, and what was silently wrong."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import pruning
from pruning.containers import Inputs
from pruning.errors import PlanError
from pruning.plan.verification import outputs_of, relative_difference
from tests.pruning.field_networks import (
    Attention,
    CausalModel,
    Conv1D,
    DenseUNet,
    Literal,
    Recurrent,
    Spectrum,
    Temperature,
    WindowAttention,
)
from tests.pruning.networks import IMAGE, make

IMAGES = torch.randn(IMAGE, generator=torch.Generator().manual_seed(0))


def _half(groups: pruning.Groups) -> pruning.Plan:
    generator, removed = torch.Generator().manual_seed(0), {}
    for group in groups:
        most = min(groups[name].size for name in (group.name, *group.ties)) // 2
        removed[group.name] = torch.randperm(group.size, generator=generator)[:most].tolist()
    return pruning.Plan.of(groups, removed)


def _is_pruned_exactly(model: nn.Module, inputs: Inputs, *parameters: str) -> pruning.Groups:
    """Half of every group goes, the parameters named among them, and what is left computes what the masked one does."""
    torch.manual_seed(1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    groups = pruning.find_groups(model, inputs)
    assert set(parameters) <= {s.parameter for group in groups for s in group.slices}, groups.report()
    plan = _half(groups)
    masked = outputs_of(pruning.apply_masks(model, plan, groups=groups), inputs)
    dense = pruning.narrow(model, plan, inputs, groups=groups)
    assert relative_difference(masked, outputs_of(dense, inputs)) < 1e-5
    assert relative_difference(masked, outputs_of(model, inputs)) > 1e-3  # what went was of use
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    return groups


TOKENS = torch.randint(0, 50, (2, 7), generator=torch.Generator().manual_seed(0))
SEQUENCE = torch.randn(2, 7, 24, generator=torch.Generator().manual_seed(0))


# Structure


@pytest.mark.parametrize(("name", "layer"), [("ChannelShuffle", "0.0"), ("ShuffleModule", "2.0")])
def test_channel_shuffle_by_view_transpose_view_is_exact(name: str, layer: str) -> None:
    _is_pruned_exactly(make(name), IMAGES, f"features.{layer}.weight")


def test_pixel_shuffle_between_convolutions() -> None:
    _is_pruned_exactly(make("SuperResolution"), IMAGES, "body.0.0.weight", "body.1.weight")


def test_blocks_that_chunk_in_two_need_no_rewriting() -> None:
    _is_pruned_exactly(make("ChunkedBlocks"), IMAGES, "features.1.first.0.weight", "features.1.blocks.1.0.weight")


def test_linear_then_view_then_transposed_convolution() -> None:
    _is_pruned_exactly(make("Decoder"), IMAGES, "fc.weight", "up.weight")


def test_window_attention_takes_seconds_and_little_memory() -> None:
    begin, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    model = nn.Sequential(*(WindowAttention(96, 3, 8) for _ in range(6)), nn.LayerNorm(96))
    pruning.find_groups(model, torch.randn(1, 64, 64, 96))
    assert time.process_time() - begin < 15
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # KiB; index lists took 8 GiB
    small = nn.Sequential(WindowAttention(), WindowAttention(), nn.LayerNorm(24))
    _is_pruned_exactly(small, torch.randn(2, 8, 8, 24), "0.qkv.weight", "1.out.weight", "0.table")


def test_head_counts_and_hidden_sizes_that_are_plain_integers_follow() -> None:
    groups = _is_pruned_exactly(nn.Sequential(Attention(), nn.LayerNorm(24)), SEQUENCE, "0.q.weight", "0.v.weight")
    assert any(group.size == 4 for group in groups)  # whole heads


def test_heads_that_share_keys_and_values() -> None:
    _is_pruned_exactly(CausalModel(kv_heads=2), TOKENS, "attention.q.weight", "attention.v.weight", "up.weight")


def test_a_parameter_that_is_used_through_a_function() -> None:
    _is_pruned_exactly(make("FunctionalParameters"), IMAGES, "w", "out")


def test_a_reshape_to_a_literal_keeps_its_group_and_names_the_line() -> None:
    groups = _is_pruned_exactly(Literal(), IMAGES, "wide.weight")
    [row] = [row for row in groups.report() if row.parameter == "conv.weight"]
    assert not row.prunable
    assert "field_networks.py:" in str(row)


def test_a_dense_u_net_is_no_matter_of_recursion() -> None:
    _is_pruned_exactly(DenseUNet(), IMAGES, "layers.0.weight", "layers.23.weight", "stem.weight")
    _is_pruned_exactly(make("UNet"), IMAGES, "middle.0.weight", "up2.weight")


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_lose_hidden_units_with_all_their_gates(kind: Callable[..., nn.Module]) -> None:
    _is_pruned_exactly(Recurrent(kind), torch.randn(2, 5, 6), "body.weight_hh_l0", "body.weight_ih_l1")


def test_shared_weights_are_counted_and_cut_once() -> None:
    groups = _is_pruned_exactly(make("Siamese"), IMAGES, "branch.0.0.weight", "left.weight")
    assert pruning.count_parameters(groups) == sum(p.numel() for p in make("Siamese").parameters())


def test_weight_norm() -> None:
    torch.manual_seed(0)
    norm = nn.utils.parametrizations.weight_norm
    model = nn.Sequential(
        norm(nn.Conv2d(3, 12, 3)), nn.ReLU(), norm(nn.Conv2d(12, 8, 3)), nn.Flatten(), nn.LazyLinear(3)
    )
    model(IMAGES)
    _is_pruned_exactly(model, IMAGES, "0.parametrizations.weight.original1", "4.weight")


def test_a_causal_language_model_is_traced_from_its_tokens() -> None:
    _is_pruned_exactly(CausalModel(), {"tokens": TOKENS}, "attention.q.weight", "up.weight", "down.weight")


def test_auxiliary_heads_still_run_in_training_mode() -> None:
    model = make("AuxiliaryHead")
    groups = _is_pruned_exactly(model, IMAGES, "auxiliary.0.0.weight", "first.0.weight")
    dense = pruning.narrow(model, _half(groups), IMAGES, groups=groups)
    assert len(dense.train()(IMAGES)) == 2


# Silently wrong


def test_an_unknown_operator_is_not_taken_for_element_wise() -> None:
    groups = _is_pruned_exactly(Spectrum(), torch.randn(4, 6), "b.weight")
    assert not groups.report()["a.weight"].prunable
    assert any("fft" in name for name in groups.unknown_operators)


def test_a_group_that_would_become_empty_is_an_error_and_not_skipped() -> None:
    groups = pruning.find_groups(make("Plain"), IMAGES)
    group = next(iter(groups))
    with pytest.raises(PlanError, match="would lose all of its"):
        pruning.Plan.of(groups, {group.name: range(group.size)})


def test_rounding_to_8_prunes_a_layer_of_12() -> None:
    model = nn.Sequential(nn.Linear(4, 12), nn.ReLU(), nn.Linear(12, 3))
    groups = pruning.find_groups(model, torch.randn(2, 4))
    plan = pruning.make_plan(groups, criterion="l2_norm", channel_sparsity=0.3, scope="local", round_to=8)
    assert plan.kept_sizes(groups) == {"0.weight:0": 8}


def test_a_name_that_the_network_does_not_have_is_an_error_and_not_skipped() -> None:
    groups = pruning.find_groups(make("Plain"), IMAGES)
    with pytest.raises(PlanError, match="unknown group"):
        pruning.Plan.of(groups, {"features.9.weight:0": [0]})


def test_masking_a_layer_that_a_residual_couples_changes_the_outputs() -> None:
    model = make("Residual")
    groups = pruning.find_groups(model, IMAGES)
    before = outputs_of(model, IMAGES)
    for group in groups:
        masked = pruning.apply_masks(
            model, pruning.Plan.of(groups, {group.name: range(group.size // 2)}), groups=groups
        )
        assert relative_difference(before, outputs_of(masked, IMAGES)) > 0, group.name


def test_equal_scores_do_not_remove_more_than_asked() -> None:
    model = nn.Sequential(nn.Linear(4, 10), nn.ReLU(), nn.Linear(10, 10), nn.ReLU(), nn.Linear(10, 3))
    groups = pruning.find_groups(model, torch.randn(2, 4))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0)
    plan = pruning.make_plan(groups, criterion="l2_norm", channel_sparsity=0.3, scope="global")
    assert sum(len(gone) for gone in plan.removed.values()) == 6


def test_the_temperature_of_a_softmax_stays_where_the_width_that_it_follows_goes() -> None:
    _is_pruned_exactly(Temperature(), torch.randn(2, 5, 6), "q.weight", "k.weight", "v.weight", "out.weight")


def test_linear_layers_with_the_weight_the_other_way_round_are_pruned() -> None:
    torch.manual_seed(0)
    _is_pruned_exactly(
        nn.Sequential(Conv1D(6, 16), nn.GELU(), Conv1D(16, 3)), torch.randn(2, 5, 6), "0.weight", "2.weight"
    )


def test_the_users_model_stays_as_it_was_even_where_narrowing_fails() -> None:
    model = make("Plain")
    before: dict[str, Any] = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    groups = pruning.find_groups(model, IMAGES)
    other = pruning.find_groups(make("Residual"), IMAGES)
    with pytest.raises(PlanError):
        pruning.narrow(model, _half(other), IMAGES, groups=groups)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    outputs_of(model, IMAGES)
