"""Whole blocks: found from the pass alone, removed exactly, or refused with the reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn

import pruning
from pruning.errors import PlanError
from pruning.graph.module_copy import PassOn
from pruning.io.checkpoint import load_checkpoint, save_checkpoint
from pruning.io.onnx import export_onnx
from pruning.plan.blocks import find_blocks
from pruning.plan.plan import Plan
from zoo.models import resnet20


class Residual(nn.Module):
    """x + down(relu(up(x)))."""

    def __init__(self, width: int = 4, inner: int = 6) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Any:
        return x + self.down(torch.relu(self.up(x)))


class Scaled(nn.Module):
    """Two branches behind norms, each with a scale and dropout."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mix = nn.MultiheadAttention(width, 2, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, 16), nn.GELU(), nn.Dropout(0.5), nn.Linear(16, width))
        self.scale, self.other = nn.Parameter(torch.full((width,), 0.5)), nn.Parameter(torch.full((width,), 0.25))

    def forward(self, x: Tensor) -> Any:
        seen = self.first(x)
        x = x + self.scale * self.mix(seen, seen, seen, need_weights=False)[0]
        return x + self.other * self.mlp(self.second(x))


def network(*modules: nn.Module, width: int = 8) -> Any:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, width), *modules, nn.Linear(width, 3)).eval()


def values(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def test_branch_by_hand_goes_and_leaves_the_identity() -> None:
    model, inputs = network(Residual(), width=4), values(2, 5)
    blocks = find_blocks(model, inputs)
    assert list(blocks) == ["1.down"]
    assert blocks["1.down"].macs == 2 * (4 * 6 + 6 * 4)
    assert blocks["1.down"].parameters == ("1.down.bias", "1.down.weight", "1.up.bias", "1.up.weight")
    shallow = pruning.narrow(model, blocks.plan(["1.down"]), inputs)
    assert torch.equal(shallow(inputs), model[2](model[0](inputs)))
    assert [name for name, _ in shallow.named_parameters()] == ["0.weight", "0.bias", "2.weight", "2.bias"]
    groups = pruning.find_groups(model, inputs)
    assert pruning.count_macs(pruning.find_groups(shallow, inputs)) == pruning.count_macs(groups) - 96


@pytest.mark.thorough
def test_attention_and_mlp_go_apart_or_both_in_any_order() -> None:
    model, inputs = network(Scaled(), Scaled()), values(2, 6, 5)
    blocks = find_blocks(model, inputs)
    assert list(blocks) == ["1.mix", "1.mlp.3", "2.mix", "2.mlp.3"]
    for name in blocks:
        shallow = pruning.narrow(model, blocks.plan([name]), inputs)
        assert pruning.count_macs(pruning.find_groups(shallow, inputs)) == (
            pruning.count_macs(pruning.find_groups(model, inputs)) - blocks[name].macs
        )
    first = blocks.plan(["1.mix"])
    between = pruning.narrow(model, first, inputs)
    second = find_blocks(between, inputs).plan(["1.mlp.3"])
    one_by_one = pruning.narrow(between, second, inputs)
    at_once = pruning.narrow(model, first.then(second), inputs)
    assert isinstance(one_by_one.get_submodule("1"), PassOn)
    assert isinstance(at_once.get_submodule("1"), PassOn)
    assert one_by_one.state_dict().keys() == at_once.state_dict().keys()
    assert torch.equal(one_by_one(inputs), at_once(inputs))


@pytest.mark.thorough
@pytest.mark.parametrize("norm_first", [True, False])
def test_torch_transformer_layers_lose_any_of_their_branches(norm_first: bool) -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, norm_first=norm_first, batch_first=True)
    model, inputs = network(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)), values(2, 6, 5)
    blocks = find_blocks(model, inputs)
    assert len(blocks) == 4
    for name in blocks:
        pruning.narrow(model, blocks.plan([name]), inputs)
    pruning.narrow(model, blocks.plan(blocks), inputs)


def test_resnet_without_blocks_is_the_masked_one_in_both_modes() -> None:
    torch.manual_seed(0)
    model, inputs = resnet20(width=4), values(4, 3, 32, 32)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            assert module.running_mean is not None
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
    blocks = find_blocks(model, inputs)
    assert len(blocks) == 7, "two of nine blocks have a convolution in place of the stream"
    plan = blocks.plan(["stage1.1.conv2", "stage3.2.conv2"])
    shallow, masked = pruning.narrow(model, plan, inputs), pruning.apply_masks(model, plan, inputs)
    for training in (False, True):
        shallow.train(training)
        masked.train(training)
        torch.testing.assert_close(shallow(inputs), masked(inputs), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(model.eval()(inputs), shallow.eval()(inputs), atol=1e-3)


@pytest.mark.thorough
def test_channels_go_after_blocks_in_one_plan(tmp_path: Path) -> None:
    def made() -> nn.Module:
        built: nn.Module = network(Residual(8), Residual(8))
        return built

    model, inputs = made(), values(2, 5)
    blocks = find_blocks(model, inputs)
    first = blocks.plan(["1.down"])
    shallow = pruning.narrow(model, first, inputs)
    groups = pruning.find_groups(shallow, inputs)
    second = pruning.make_plan(groups, mac_reduction=0.3)
    dense = pruning.narrow(shallow, second, inputs, groups=groups)
    plan = Plan.model_validate_json(first.then(second).model_dump_json())
    again = pruning.narrow(model, plan, inputs)
    assert torch.equal(again(inputs), dense(inputs))
    save_checkpoint(tmp_path / "kept", dense, plan)
    loaded, found, _ = load_checkpoint(tmp_path / "kept", made, inputs)
    assert found == plan
    assert torch.equal(loaded(inputs), dense(inputs))
    with pytest.raises(PlanError, match="blocks go before channels"):
        second.then(find_blocks(dense, inputs).plan(["2.down"]))
    with pytest.raises(PlanError, match=r"removes block '1\.down', which Sequential still has"):
        pruning.count_macs(pruning.find_groups(model, inputs), plan)


def test_plan_without_blocks_is_written_as_before_there_were_any() -> None:
    plan = Plan(removed={"a:0": (1,)}, sizes={"a:0": 3})
    assert plan.model_dump_json() == '{"removed":{"a:0":[1]},"sizes":{"a:0":3}}'
    assert Plan.model_validate_json(plan.model_dump_json()) == plan
    assert plan != Plan(removed={"a:0": (1,)}, sizes={"a:0": 3}, blocks=("b",))


def test_onnx_file_has_no_trace_of_a_block(tmp_path: Path) -> None:
    model, inputs = network(Residual(8), Residual(8)), values(2, 5)
    shallow = pruning.narrow(model, find_blocks(model, inputs).plan(["1.down"]), inputs)
    found = onnx.load(export_onnx(shallow, inputs, tmp_path / "model.onnx")).graph
    expected = onnx.load(export_onnx(network(Residual(8)), inputs, tmp_path / "like.onnx")).graph
    assert [node.op_type for node in found.node] == [node.op_type for node in expected.node]


class _Gated(Residual):
    def forward(self, x: Tensor) -> Any:
        return x + torch.sigmoid(self.down(torch.relu(self.up(x))))


class _Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.last = Residual(8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Any:
        return x + self.last(self.inner(self.last(x)))


class _Seen(Residual):
    def forward(self, x: Tensor) -> Any:
        added = self.down(torch.relu(self.up(x)))
        return (x + added) * added


class _Loose(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 8))

    def forward(self, x: Tensor) -> Any:
        return torch.cat([x + x @ self.weight, x], 1)[:, :8]


class _Formula(nn.Module):
    def forward(self, x: Tensor) -> Any:
        return 0.5 * x * (1 + torch.tanh(0.8 * (x + 0.044715 * x**3)))


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (_Gated(8), "even where its parameters are zero"),
        (_Seen(8), "read elsewhere too"),
        (_Loose(), "outside of modules that belong to it alone"),
        (_Formula(), ""),
    ],
)
def test_branch_that_cannot_go_exactly_is_refused_with_the_reason(module: nn.Module, reason: str) -> None:
    blocks = find_blocks(network(module), values(2, 5))
    assert not blocks
    assert (reason in " ".join(blocks.refused.values())) if reason else not blocks.refused


@pytest.mark.thorough
def test_branch_around_others_is_refused_and_stays_so_without_them() -> None:
    model, inputs = network(_Nested()), values(2, 5)
    blocks = find_blocks(model, inputs)
    assert list(blocks) == ["1.inner.down"]
    shallow = pruning.narrow(model, blocks.plan(blocks), inputs)
    assert not find_blocks(shallow, inputs)


def test_branch_with_hooks_and_branch_that_shares_parameters_stay() -> None:
    model, inputs = network(Residual(8), Residual(8)), values(2, 5)
    model[1].up.register_forward_hook(lambda *_: None)
    blocks = find_blocks(model, inputs)
    assert list(blocks) == ["2.down"]
    assert "hooks" in blocks.refused["1.down"]
    tied = network(Residual(8), Residual(8))
    tied[2].up.weight = tied[1].up.weight
    blocks = find_blocks(tied, inputs)
    assert not blocks
    assert "up.weight is read elsewhere too" in blocks.refused["1"]


def test_unknown_block_is_named_with_the_nearest() -> None:
    blocks = find_blocks(network(Residual(8)), values(2, 5))
    with pytest.raises(PlanError, match=r"1\.down"):
        blocks.plan(["1.donw"])


@pytest.mark.thorough
def test_blocks_go_after_channels_once_the_channels_are_put_into_their_numbering() -> None:
    torch.manual_seed(0)
    model, inputs = resnet20(width=4).eval(), values(2, 3, 16, 16)
    whole = pruning.find_groups(model, inputs)
    first = pruning.Plan.of(whole, {group.name: [0, 2] for group in whole})
    narrowed = pruning.narrow(model, first, inputs, groups=whole)
    names = ["stage1.1.conv2", "stage2.2.conv2"]
    without = pruning.find_groups(find_blocks(model, inputs).without(names), inputs)
    both = first.with_blocks(names, whole, without)
    assert both.blocks == tuple(names)
    dense = pruning.narrow(model, both, inputs, groups=without)
    shallow = pruning.narrow(narrowed, find_blocks(narrowed, inputs).plan(names), inputs)
    assert dense.state_dict().keys() == shallow.state_dict().keys()
    assert all(torch.equal(value, dense.state_dict()[name]) for name, value in shallow.state_dict().items())
    further = pruning.find_groups(find_blocks(model, inputs).without([*names, "stage3.1.conv2"]), inputs)
    again = both.with_blocks(["stage3.1.conv2"], without, further)
    pruning.narrow(model, again, inputs, groups=further)
    with pytest.raises(PlanError, match=r"removes block 'stage1\.1\.conv2' already"):
        both.with_blocks(names, without, without)


class _Sorted(Residual):
    def forward(self, x: Tensor) -> Any:
        return x + self.down(self.up(x).sort(-1)[0])


def test_channels_that_could_not_go_without_a_block_are_refused() -> None:
    model, inputs = network(Residual(8), Residual(8)), values(2, 5)
    groups = pruning.find_groups(model, inputs)
    first = pruning.Plan.of(groups, {"1.up.weight:0": [1]})
    frozen, narrower = (pruning.find_groups(network(one, Residual(8)), inputs) for one in (_Sorted(8), Residual(8, 4)))
    with pytest.raises(PlanError, match=r"can't go from the model without 2\.down: axis 0 of 1\.up\.weight"):
        first.with_blocks(["2.down"], groups, frozen)
    with pytest.raises(PlanError, match=r"two architectures: parameter '1\.up\.weight'"):
        first.with_blocks(["2.down"], groups, narrower)


@pytest.mark.thorough
def test_model_without_blocks_comes_back_to_shape_with_the_blocks_as_they_were() -> None:
    model, inputs = network(Residual(8), Residual(8)), values(2, 5)
    shallow = find_blocks(model, inputs).without(["1.down"])
    groups = pruning.find_groups(shallow, inputs)
    channels = pruning.make_plan(groups, mac_reduction=0.3)
    plan = Plan(removed={}, sizes={}, blocks=("1.down",)).then(channels)
    dense = pruning.narrow(model, plan, inputs, groups=groups)
    with torch.no_grad():
        for parameter in dense.parameters():
            parameter.mul_(1.5)
    with pytest.raises(PlanError, match="give the original model"):
        pruning.expand(dense, plan, groups)
    wide = pruning.expand(dense, plan, groups, model)
    assert torch.equal(wide.get_parameter("1.up.weight"), model.get_parameter("1.up.weight"))
    masked = pruning.apply_masks(wide, plan, inputs, groups=groups)
    torch.testing.assert_close(masked(inputs), dense(inputs), rtol=1e-5, atol=1e-6)


class _InCode(nn.Module):
    """Attention that the block's own code computes, and an MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)
        self.mlp = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))

    def forward(self, x: Tensor) -> Any:
        q, k, v = self.qkv(x).chunk(3, -1)
        x = x + self.out(torch.softmax(q @ k.mT, -1) @ v)
        return x + self.mlp(x)


@pytest.mark.thorough
def test_branch_in_the_code_of_a_module_goes_once_nothing_else_is_left_of_the_module() -> None:
    model, inputs = network(_InCode(), _InCode()), values(2, 6, 5)
    blocks = find_blocks(model, inputs)
    assert "1.out" not in blocks
    assert "1.out" in find_blocks(blocks.without(["1.mlp.2"]), inputs)
    plan = Plan(removed={}, sizes={}, blocks=("1.out", "1.mlp.2"))
    dense = pruning.narrow(model, plan, inputs)
    assert torch.equal(dense(inputs), model[3](model[2](model[0](inputs))))
    with pytest.raises(PlanError, match=r"unknown block '1\.out'"):
        pruning.narrow(model, Plan(removed={}, sizes={}, blocks=("1.out",)), inputs)


class _Cache:
    """Keys by the number of their layer; positions are counted in the first layer's."""

    def __init__(self) -> None:
        self.keys: dict[int, Tensor] = {}

    def update(self, keys: Tensor, layer_idx: int) -> Tensor:
        self.keys[layer_idx] = torch.cat([self.keys[layer_idx], keys], 1) if layer_idx in self.keys else keys
        return self.keys[layer_idx]

    def get_seq_length(self) -> int:
        return self.keys[0].shape[1] if 0 in self.keys else 0


class _CachedAttention(nn.Module):
    def __init__(self, layer_idx: int) -> None:
        super().__init__()
        self.key, self.out, self.layer_idx = nn.Linear(8, 8), nn.Linear(8, 8), layer_idx

    def forward(self, x: Tensor, cache: _Cache | None) -> Any:
        keys = self.key(x) if cache is None else cache.update(self.key(x), self.layer_idx)
        return self.out(torch.softmax(x @ keys.mT, -1) @ keys)


class _Decoder(nn.Module):
    def __init__(self, *, runs: bool = True) -> None:
        super().__init__()
        self.tokens, self.positions, self.runs = nn.Embedding(10, 8), nn.Embedding(32, 8), runs
        self.attention = nn.ModuleList(_CachedAttention(index) for index in range(3))
        self.mlp, self.head = Residual(8), nn.Linear(8, 10)

    def forward(self, ids: Tensor, cache: _Cache | None = None, use_cache: bool = False) -> Any:
        if cache is not None and not self.runs:
            raise NotImplementedError
        cache = cache or (_Cache() if use_cache else None)
        first = 0 if cache is None else cache.get_seq_length()
        x = self.tokens(ids) + self.positions(torch.arange(first, first + ids.shape[1]))
        for attention in self.attention:
            x = x + attention(x, cache)
        return {"logits": self.head(self.mlp(x)), "cache": cache}


def test_layer_in_whose_keys_a_cache_counts_positions_stays() -> None:
    torch.manual_seed(0)
    ids = torch.tensor([[1, 2, 3], [4, 5, 6]])
    blocks = find_blocks(_Decoder().eval(), {"ids": ids})
    assert list(blocks) == ["attention.1.out", "attention.2.out", "mlp.down"]
    assert "goes on wrongly from its cache" in blocks.refused["attention.0.out"]
    untried = find_blocks(_Decoder(runs=False).eval(), {"ids": ids})
    assert list(untried) == ["mlp.down"]
    assert "can't be tried" in untried.refused["attention.1.out"]
