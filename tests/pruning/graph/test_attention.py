from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pruning
from pruning.graph.module_copy import NarrowableAttention, narrowable
from pruning.plan.verification import outputs_of, relative_difference

CASES: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {}),
    ({"batch_first": True}, {"need_weights": False}),
    ({"batch_first": True, "bias": False}, {"average_attn_weights": False}),
    ({"batch_first": True, "kdim": 10, "vdim": 7}, {}),
    ({"batch_first": True}, {"attn_mask": torch.triu(torch.ones(5, 5, dtype=torch.bool), 1), "need_weights": False}),
    ({"batch_first": True}, {"attn_mask": torch.randn(6, 5, 5)}),
    ({"batch_first": True}, {"key_padding_mask": torch.tensor([[False] * 4 + [True], [False] * 5])}),
    ({"batch_first": True}, {"key_padding_mask": torch.randn(2, 5), "attn_mask": torch.randn(5, 5)}),
]


@pytest.mark.parametrize(("built", "called"), CASES)
def test_it_computes_what_torchs_own_computes(built: dict[str, Any], called: dict[str, Any]) -> None:
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(12, 3, **built).eval()
    shape = (2, 5) if built.get("batch_first") else (5, 2)
    q, k, v = (torch.randn(*shape, d) for d in (12, built.get("kdim", 12), built.get("vdim", 12)))
    expected = attention(q, k, v, **called)
    with narrowable(attention):
        assert type(attention) is NarrowableAttention
        found = attention(q, k, v, **called)
    assert type(attention) is nn.MultiheadAttention
    assert torch.allclose(expected[0], found[0], atol=1e-6)
    assert (expected[1] is None) == (found[1] is None)
    assert found[1] is None or torch.allclose(expected[1], found[1], atol=1e-6)


def test_without_a_batch_it_computes_the_same() -> None:
    attention = nn.MultiheadAttention(12, 3).eval()
    x = torch.randn(5, 12)
    expected = attention(x, x, x)
    with narrowable(attention):
        found = attention(x, x, x)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(expected, found, strict=True))


class Block(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.stem = nn.Linear(6, 12)
        self.attention = nn.MultiheadAttention(12, 3, batch_first=True, **options)
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Any:
        x = self.stem(x)
        return self.head(x + self.attention(x, x, x)[0])


@pytest.mark.parametrize("options", [{}, {"bias": False}])
def test_heads_and_widths_of_heads_can_go(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model, x = Block(**options), torch.randn(2, 5, 6)
    groups = pruning.find_groups(model, x)
    sizes = {group.name: group.size for group in groups}
    assert sorted(sizes.values()) == [3, 4, 12]  # heads, their width, the model's width
    plan = pruning.Plan.of(groups, {name: [1] for name in sizes})
    dense = pruning.narrow(model, plan, x)
    assert dense.get_submodule("attention").num_heads == 2
    fresh = torch.randn(2, 5, 6)
    masked = pruning.apply_masks(model, plan)
    assert relative_difference(outputs_of(masked, fresh), outputs_of(dense, fresh)) < 1e-5


def test_an_encoder_layer_keeps_off_its_fused_path_once_narrowed() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(12, 3, 20, batch_first=True).eval()
    model, x = nn.Sequential(nn.Linear(6, 12), layer, nn.Linear(12, 4)).eval(), torch.randn(2, 5, 6)
    groups = pruning.find_groups(model, x)
    assert sorted(group.size for group in groups) == [3, 4, 20]
    dense = pruning.narrow(model, pruning.Plan.of(groups, {group.name: [0] for group in groups}), x)
    with torch.no_grad():
        assert dense(x).shape == (2, 5, 4)


class Text(nn.Module):
    """Returns every position, padded ones too, where PyTorch's fused path gives zeros before the last norm."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.embed = nn.Embedding(30, 12, padding_idx=0)
        layer = nn.TransformerEncoderLayer(12, 4, 20, dropout=0.0, batch_first=True, **options)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.out = nn.Linear(12, 2)

    def forward(self, ids: Tensor, padding: Tensor | None = None) -> Any:
        return self.out(self.encoder(self.embed(ids), src_key_padding_mask=padding))


class Translation(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.embed = nn.Embedding(30, 12)
        self.body = nn.Transformer(12, 4, 2, 2, 20, dropout=0.0, batch_first=True, **options)
        self.out = nn.Linear(12, 2)

    def forward(self, ids: Tensor, padding: Tensor | None = None, causal: Tensor | None = None) -> Any:
        x = self.embed(ids)
        return self.out(
            self.body(
                x, x.flip(1), src_key_padding_mask=padding, memory_key_padding_mask=padding, tgt_mask=causal,
                tgt_key_padding_mask=padding,
            )
        )  # fmt: skip


PADDING = torch.tensor([[False] * 7, [False] * 5 + [True] * 2])
MASKS: dict[type[nn.Module], list[dict[str, Tensor]]] = {
    Text: [{}, {"padding": PADDING}, {"padding": PADDING[:, :6]}],
    Translation: [{}, {"padding": PADDING}, {"causal": torch.ones(7, 7, dtype=torch.bool).triu(1)}],
}


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors", "ignore:enable_nested_tensor is True")
@pytest.mark.parametrize("options", [{}, {"norm_first": True, "activation": "gelu"}])
@pytest.mark.parametrize("kind", MASKS)
def test_a_narrowed_encoder_takes_the_masks_that_the_masked_one_takes(
    kind: type[nn.Module], options: dict[str, Any]
) -> None:
    torch.manual_seed(0)
    model, ids = kind(**options).eval(), torch.randint(1, 30, (2, 7))
    groups = pruning.find_groups(model, ids)
    for narrowed in ("linear", "self_attn", "layers.1.", ""):
        plan = pruning.Plan.of(groups, {group.name: [1] for group in groups if narrowed in group.name})
        assert plan.removed
        dense = pruning.narrow(model, plan, ids, groups=groups)
        masked = pruning.apply_masks(model, plan, groups=groups)
        for context, training, masks in product(
            (torch.no_grad, torch.inference_mode, torch.enable_grad), (False, True), MASKS[kind]
        ):
            here = ids[:, : masks.get("padding", ids).shape[1]]
            with context():
                expected, found = masked.train(training)(here, **masks), dense.train(training)(here, **masks)
            case = narrowed, context, training, masks
            assert relative_difference([expected.detach()], [found.detach()]) < 1e-5, case


def test_attention_that_lost_nothing_stays_pytorchs_own() -> None:
    model, ids = Text().eval(), torch.randint(1, 30, (2, 7))
    groups = pruning.find_groups(model, ids)
    plan = pruning.Plan.of(groups, {group.name: [1] for group in groups if "layers.1.self_attn" in group.name})
    dense = pruning.narrow(model, plan, ids, groups=groups)
    kinds = [type(dense.get_submodule(f"encoder.layers.{number}.self_attn")) for number in range(2)]
    assert kinds == [nn.MultiheadAttention, NarrowableAttention]
