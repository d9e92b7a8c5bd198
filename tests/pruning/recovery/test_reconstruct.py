from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pruning import Plan, calibrate, count_macs, find_groups, make_plan, narrow, reconstruct
from pruning.allocation.dataflow import Unsuitable
from pruning.allocation.tape import Replay
from pruning.errors import CriterionError, DataError, PlanError
from pruning.evaluation import restored_modes
from pruning.graph.layers import LayerCall
from pruning.plan.blocks import find_blocks
from pruning.recovery.normal_equations import MEAN_ALONE
from pruning.recovery.reconstruct import RIDGE, _Passes
from pruning.statistics.layer_hooks import Observer, observe
from tests.pruning.networks import make


def error(model: nn.Module, dense: nn.Module, inputs: Tensor) -> float:
    with torch.no_grad(), restored_modes(model), restored_modes(dense):
        return float((model.eval()(inputs) - dense.eval()(inputs)).square().mean())


def test_duplicate_is_stood_in_for_exactly_and_the_mean_goes_into_the_bias() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    with torch.no_grad():
        weight, bias = model.get_parameter("0.weight"), model.get_parameter("0.bias")
        weight[1], bias[1] = weight[0], bias[0]
        weight[2], bias[2] = 0, 5
    inputs = torch.randn(200, 3)
    groups = find_groups(model, inputs[:1])
    plan = Plan.of(groups, {"0.weight:0": [1, 2]})  # a duplicate and a constant
    dense = narrow(model, plan, inputs)
    before = dense.get_parameter("2.weight").clone()
    refits = reconstruct(dense, model, plan, groups, inputs, ridge=1e-8)
    torch.testing.assert_close(dense(inputs), model(inputs), rtol=1e-3, atol=1e-3)
    assert [refit.layer for refit in refits] == ["0.weight", "2.weight"]
    assert refits[0].error_before == pytest.approx(0, abs=1e-9)
    assert refits[1].error_before > 0.1
    assert refits[1].error_after < 1e-5
    assert not torch.allclose(dense.get_parameter("2.weight"), before)


def test_mean_goes_into_the_batch_norm_that_follows() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 3, 1), nn.ReLU(), nn.Conv2d(3, 2, 1, bias=False), nn.BatchNorm2d(2)).eval()
    with torch.no_grad():
        model.get_parameter("0.weight")[0], model.get_parameter("0.bias")[0] = 0, 5
    inputs = torch.randn(20, 1, 4, 4)
    groups = find_groups(model, inputs[:1])
    plan = Plan.of(groups, {"0.weight:0": [0]})
    dense = narrow(model, plan, inputs)
    scale = dense.get_parameter("3.weight").clone()
    reconstruct(dense, model, plan, groups, inputs)
    torch.testing.assert_close(dense(inputs), model(inputs), rtol=1e-4, atol=1e-4)
    assert torch.equal(dense.get_parameter("3.weight"), scale)
    torch.testing.assert_close(dense.get_buffer("3.running_mean"), -5 * model.get_parameter("2.weight")[:, 0, 0, 0])


@pytest.mark.parametrize(
    "name",
    [
        "Plain", "Residual", "ResidualWithGroups", "ResidualWithPadding", "Depthwise", "SqueezeAndExcite",
        "DenselyConnected", "ChannelShuffle", "ChunkedBlocks", "UNet", "Decoder",
    ],
)  # fmt: skip
def test_outputs_come_nearer_on_inputs_not_seen(name: str) -> None:
    model = make(name)
    torch.manual_seed(0)
    inputs, unseen = torch.randn(64, 3, 16, 16), torch.randn(16, 3, 16, 16)
    groups = find_groups(model, inputs[:1])
    plan = make_plan(groups, channel_sparsity=0.3)
    dense = narrow(model, plan, inputs[:1], groups=groups)
    before = error(model, dense, unseen)
    refits = reconstruct(dense, model, plan, groups, inputs)
    assert error(model, dense, unseen) < 0.4 * before
    assert not any(refit.skipped for refit in refits)
    assert all(refit.error_after <= refit.error_before + 1e-6 for refit in refits)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out, self.heads = (
            nn.Linear(8, 24),
            nn.Linear(8, 8),
            nn.MultiheadAttention(8, 2, batch_first=True),
        )
        self.wide, self.narrow = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        x = x + self.out((q @ k.transpose(1, 2)).softmax(-1) @ v)
        x = x + self.heads(x, x, x, need_weights=False)[0]
        out: Tensor = x + self.narrow(self.wide(x).relu())
        return out


@pytest.mark.thorough
class InPlace(nn.Module):
    """What a layer gives is written into before its sum, by a layer that comes later, and read once more at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1, bias=False))
        self.norm, self.out = nn.BatchNorm2d(8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        early = self.a(x).relu_()
        late = self.b(early)
        early.mul_(2)
        late += self.norm(self.c(early))
        early.clamp_(max=1)
        out: Tensor = self.out((late.relu_() + early).mean((2, 3)))
        return out


class Tied(nn.Module):
    """Two layers share their weights, and the bias of the last one is read before all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.a, self.b = nn.Linear(8, 12), nn.Linear(12, 6), nn.Linear(12, 6, bias=False)
        self.b.weight = self.a.weight
        self.out = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        scale = self.out.bias.abs().mean()
        x = self.first(x).relu()
        out: Tensor = self.out((self.a(x) * scale + self.b(x.roll(1, 1))).relu())
        return out


SHARING: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "attention": (Attention(), (5, 8)),
    "in place": (InPlace(), (3, 16, 16)),
    "tied": (Tied(), (5, 8)),
    **{name: (make(name), (3, 16, 16)) for name in ("Residual", "DenselyConnected", "ChunkedBlocks", "UNet")},
}


@pytest.mark.parametrize("name", SHARING)
def test_each_layer_is_run_twice_for_the_bits_of_whole_passes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model, shape = SHARING[name]
    inputs = torch.randn(44, *shape)
    groups = find_groups(model.eval(), inputs[:1])
    plan = make_plan(groups, channel_sparsity=0.3)
    calls: Counter[str] = Counter()
    carry_out, park = Replay._carry_out, Replay.park

    def count(self: Replay, *args: Any) -> None:
        calls["operators"] += 1
        carry_out(self, *args)

    def parked(self: Replay, file: Path) -> None:
        park(self, file)
        calls["files"] += 1
        assert file.stat().st_size > 0
        assert self.num_bytes == 0

    monkeypatch.setattr(Replay, "_carry_out", count)
    monkeypatch.setattr(Replay, "park", parked)
    states = []
    for way in ("memory", "files", "whole"):
        if way == "files":
            assert calls["files"] == 0
            assert 0 < calls["operators"] < 3 * 2 * 4 * len(groups.trace.operations)  # two models, four batches
            monkeypatch.setattr("pruning.recovery.reconstruct.MAX_BYTES", 1)
        if way == "whole":
            assert calls["files"] > 2 * 4
            calls.clear()
            monkeypatch.setattr(_Passes, "_prove", refuse)
        dense = narrow(model, plan, inputs[:1], groups=groups)
        reconstruct(dense, model, plan, groups, inputs, batch_size=16)
        states.append(dense.state_dict())
    assert not calls
    assert all(torch.equal(states[0][key], other[key]) for other in states[1:] for key in other)


def refuse(_self: object) -> None:
    raise Unsuitable("for the sake of comparing")


@pytest.mark.parametrize("seed", range(4))
def test_attention_comes_nearer_on_inputs_not_seen(seed: int) -> None:
    torch.manual_seed(seed)
    model = Attention().eval()
    inputs, unseen = torch.randn(128, 5, 8), torch.randn(64, 5, 8)
    groups = find_groups(model, inputs[:1])
    plan = make_plan(groups, channel_sparsity=0.4)
    dense = narrow(model, plan, inputs[:1], groups=groups)
    before = error(model, dense, unseen)
    refits = reconstruct(dense, model, plan, groups, inputs)
    assert error(model, dense, unseen) < 0.7 * before
    packed = {f"heads.in_proj_weight[{index}/3]" for index in range(3)}
    own = {"qkv.weight", "out.weight", "heads.out_proj.weight", "wide.weight", "narrow.weight"}
    assert {refit.layer for refit in refits if not refit.skipped} == own | packed


def test_layers_are_seen_with_the_values_that_they_have() -> None:
    """Attention may draw random numbers, so it was once taken for a source of them and its output overwritten."""
    torch.manual_seed(0)
    model, inputs = Attention().eval(), torch.randn(16, 5, 8)
    expected: list[Tensor] = []
    hook = model.narrow.register_forward_hook(lambda _module, given, _result: expected.append(given[0]))
    with torch.no_grad():
        model(inputs)
    hook.remove()
    seen: dict[str, Tensor] = {}

    class Seen(Observer):
        def on_layer(self, call: LayerCall) -> None:
            seen[call.weight] = call.inputs.clone()

    observe(model, inputs, [Seen()])
    torch.testing.assert_close(seen["narrow.weight"], expected[0])


def residual() -> tuple[nn.Module, Tensor, Plan]:
    model = make("Residual")
    inputs = torch.randn(48, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    return model, inputs, make_plan(find_groups(model, inputs[:1]), channel_sparsity=0.4)


@pytest.mark.thorough
def test_batches_of_any_size_give_the_same_weights() -> None:
    model, inputs, plan = residual()
    assert plan.groups is not None
    results = []
    for batch_size in (48, 7):
        dense = narrow(model, plan, inputs[:1])
        reconstruct(dense, model, plan, plan.groups, inputs, batch_size=batch_size)
        results.append(dense.state_dict())
    for key, tensor in results[0].items():
        torch.testing.assert_close(tensor, results[1][key], rtol=1e-3, atol=1e-3)


def test_strong_ridge_leaves_the_weights_and_moves_the_mean_alone() -> None:
    model, inputs, plan = residual()
    assert plan.groups is not None
    dense = narrow(model, plan, inputs[:1])
    before = {name: parameter.clone() for name, parameter in dense.named_parameters()}
    reconstruct(dense, model, plan, plan.groups, inputs, ridge=1e9)
    for name, parameter in dense.named_parameters():
        if parameter.ndim > 1:
            torch.testing.assert_close(parameter, before[name], rtol=1e-5, atol=1e-6)


def test_original_modes_and_random_state_are_untouched_and_nothing_removed_changes_nothing() -> None:
    model, inputs, plan = residual()
    assert plan.groups is not None
    model.train()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    dense = narrow(model, plan, inputs[:1])
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    reconstruct(dense, model, plan, plan.groups, inputs)
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    assert model.training
    assert dense.training
    nothing = Plan.of(plan.groups, {})
    same = narrow(model, nothing, inputs[:1])
    reconstruct(same, model, nothing, plan.groups, inputs)
    for key, tensor in same.state_dict().items():
        torch.testing.assert_close(tensor, before[key], rtol=1e-5, atol=1e-6)


def test_layer_whose_rows_lost_channels_is_left_with_its_reason() -> None:
    model = make("MLPMixerLike")
    inputs = torch.randn(32, 3, 16, 16)
    groups = find_groups(model, inputs[:1])
    plan = make_plan(groups, channel_sparsity=0.3)
    dense = narrow(model, plan, inputs[:1])
    skipped = {refit.layer: refit.skipped for refit in reconstruct(dense, model, plan, groups, inputs)}
    assert "one by one" in skipped["tokens.0.weight"]
    assert skipped["channels.2.weight"] == ""


def test_faults_are_told() -> None:
    model, inputs, plan = residual()
    assert plan.groups is not None
    dense = narrow(model, plan, inputs[:1])
    with pytest.raises(DataError, match="a few hundred"):
        reconstruct(dense, model, plan, plan.groups, inputs[:0])
    with pytest.raises(CriterionError, match="samples with targets"):
        calibrate(model, inputs, "taylor", channel_sparsity=0.3)
    with pytest.raises(PlanError, match="not of the model narrowed by this plan"):
        reconstruct(model, model, plan, plan.groups, inputs)


def test_calibrate_goes_from_a_model_and_inputs_to_a_smaller_model_that_answers_alike() -> None:
    model, inputs, _ = residual()
    result = calibrate(model, inputs, mac_reduction=0.4, batch_size=16)
    groups = find_groups(model, inputs[:1])
    assert 0.4 <= 1 - count_macs(find_groups(result.model, inputs[:1])) / count_macs(groups) <= 0.42
    plain = narrow(model, result.plan, inputs[:1])
    assert error(model, result.model, inputs) < 0.3 * error(model, plain, inputs)
    again = calibrate(model, inputs, mac_reduction=0.4, batch_size=16)
    for key, tensor in result.model.state_dict().items():
        assert torch.equal(tensor, again.model.state_dict()[key])


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 24), nn.Linear(24, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.up(self.norm(x)).relu())  # type: ignore[no-any-return]


def test_calibrate_takes_groups_and_so_the_channels_of_a_residual_stream() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), _Block(16), _Block(16), nn.LayerNorm(16), nn.Linear(16, 5)).eval()
    inputs = torch.randn(200, 6)
    groups = find_groups(model, inputs[:1], allow_mixed=True)
    result = calibrate(groups, inputs, channel_sparsity=0.3)
    stays = 16 - len(result.plan.removed["0.weight:0"])
    assert stays < 16
    assert result.model.get_submodule("0").out_features == stays
    assert result.model.get_submodule("3").normalized_shape == (stays,)
    assert error(model, result.model, inputs) < error(model, narrow(model, result.plan, inputs[:1]), inputs)
    assert "0.weight:0" not in calibrate(model, inputs, channel_sparsity=0.3).plan.removed


class _Adds(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layer(x)  # type: ignore[no-any-return]


def test_what_a_block_added_that_is_gone_is_made_up_for_by_the_next_one() -> None:
    torch.manual_seed(0)
    model, inputs = nn.Sequential(nn.Linear(3, 4), _Adds(), _Adds(), nn.Linear(4, 2)).eval(), torch.randn(100, 3)
    blocks = find_blocks(model, inputs[:1])
    plan = blocks.plan(["1.layer"])
    groups = find_groups(blocks.without(plan.blocks), inputs[:1])
    dense = narrow(model, plan, inputs[:1], groups=groups)
    assert error(model, dense, inputs) > 1e-2
    reconstruct(dense, model, plan, groups, inputs, ridge=1e-9)
    # Everything is linear, so that nothing has to be lost. The first layer gives what it gave: the sum that it goes
    # into is the second block's now, and the first one's was another.
    torch.testing.assert_close(dense(inputs), model(inputs), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(dense.get_parameter("0.weight"), model.get_parameter("0.weight"), rtol=1e-5, atol=1e-6)
    assert not torch.allclose(dense.get_parameter("2.layer.weight"), model.get_parameter("2.layer.weight"), atol=1e-2)


class LooksAtLargeBatches(nn.Module):
    """Looks at values where a batch is larger than those on which a tape is proven."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(16, 32), nn.Linear(32, 32), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        if len(x) > 8 and bool((x < 0).any()):
            x = 2 * x
        out: Tensor = self.last(self.second(x).relu())
        return out


def test_a_batch_on_which_code_looks_at_values_is_run_whole() -> None:
    torch.manual_seed(0)
    model, inputs = LooksAtLargeBatches().eval(), torch.randn(64, 16)
    groups = find_groups(model, inputs[:2])
    plan = make_plan(groups, "l2_norm", channel_sparsity=0.3)
    results = []
    for batch_size in (8, 64):
        dense = narrow(model, plan, inputs[:2], groups=groups)
        reconstruct(dense, model, plan, groups, inputs, batch_size=batch_size)
        results.append(dense(inputs))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)


class TiedToAnEmbedding(nn.Module):
    """An output layer whose weights are those of the embedding."""

    def __init__(self, *, bias: bool) -> None:
        super().__init__()
        self.embedding, self.up, self.down = nn.Embedding(30, 8), nn.Linear(8, 24), nn.Linear(24, 8, bias=False)
        self.out = nn.Linear(8, 30, bias=bias)
        self.out.weight = self.embedding.weight

    def forward(self, x: Tensor) -> Tensor:
        read = self.embedding(x)
        out: Tensor = self.out(read + self.down(self.up(read).relu()))
        return out


@pytest.mark.parametrize("bias", [True, False])
def test_weights_that_an_embedding_reads_too_stay(bias: bool) -> None:
    torch.manual_seed(0)
    model = TiedToAnEmbedding(bias=bias).eval()
    inputs = torch.randint(30, (64, 6))
    groups = find_groups(model, inputs[:1])
    plan = Plan.of(groups, {"up.weight:0": range(8)})
    dense = narrow(model, plan, inputs[:1], groups=groups)
    # where there is a bias, the means alone are made up for, so that the last layer has one left to take
    found = reconstruct(dense, model, plan, groups, inputs, ridge=MEAN_ALONE if bias else RIDGE)
    refits = {refit.layer: refit for refit in found}
    assert torch.equal(dense.get_parameter("embedding.weight"), model.get_parameter("embedding.weight"))
    last = refits["embedding.weight"]
    if bias:
        assert not torch.equal(dense.get_parameter("out.bias"), model.get_parameter("out.bias"))
        assert last.error_after < last.error_before
    else:
        assert "embedding" in last.skipped
        assert refits["down.weight"].error_after < refits["down.weight"].error_before
