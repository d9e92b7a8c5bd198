"""What torch's own modules state of their widths is true after narrowing, whatever computes their weights."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pruning
from pruning.containers import Inputs
from pruning.plan.verification import outputs_of, relative_difference

parametrizations = nn.utils.parametrizations


def stated_and_true(module: nn.Module) -> list[tuple[str, object, object]]:
    """What a module of torch's says of each width, and what its tensors say."""
    state: dict[str, Any] = {name: getattr(module, name) for name in dir(module) if "weight" in name}
    weight = state.get("weight")
    shape = tuple(weight.shape) if isinstance(weight, Tensor) else ()
    match module:
        case nn.Linear():
            return [("weight", (module.out_features, module.in_features), shape)]
        case nn.Bilinear():
            return [("weight", (module.out_features, module.in1_features, module.in2_features), shape)]
        case nn.modules.conv._ConvTransposeNd():
            return [("weight", (module.in_channels, module.out_channels // module.groups), shape[:2])]
        case nn.modules.conv._ConvNd():
            return [("weight", (module.out_channels, module.in_channels // module.groups), shape[:2])]
        case nn.Embedding() | nn.EmbeddingBag():
            return [("weight", (module.num_embeddings, module.embedding_dim), shape)]
        case nn.modules.batchnorm._NormBase():
            tensors = [tuple(t.shape) for t in (*module.parameters(), *module.buffers()) if t.ndim]
            return [("features", (module.num_features,), shape) for shape in tensors]
        case nn.GroupNorm() if shape:
            return [("channels", (module.num_channels,), shape)]
        case nn.LayerNorm() if shape:
            return [("shape", tuple(module.normalized_shape), shape)]
        case nn.PReLU():
            return [("parameters", (module.num_parameters,), shape)]
        case nn.RNNBase():
            gates = {"LSTM": 4, "GRU": 3}.get(module.mode, 1)
            out = module.proj_size or module.hidden_size
            return [
                ("inputs", (gates * module.hidden_size, module.input_size), tuple(state["weight_ih_l0"].shape)),
                ("hidden", (gates * module.hidden_size, out), tuple(state["weight_hh_l0"].shape)),
            ]
        case nn.modules.rnn.RNNCellBase():
            rows = state["weight_hh"].shape[0] // state["weight_hh"].shape[1] * module.hidden_size
            return [("cell", (rows, module.input_size), tuple(state["weight_ih"].shape))]
        case nn.MultiheadAttention():
            width = module.num_heads * module.head_dim
            if state["in_proj_weight"] is not None:
                packed = tuple(state["in_proj_weight"].shape)
                same = (module.kdim, module.vdim)
                return [
                    ("packed", (3 * width, module.embed_dim), packed),
                    ("kdim, vdim", same, (module.embed_dim,) * 2),
                ]
            return [
                ("queries", (width, module.embed_dim), tuple(state["q_proj_weight"].shape)),
                ("keys", (width, module.kdim), tuple(state["k_proj_weight"].shape)),
                ("values", module.vdim, state["v_proj_weight"].shape[1]),
            ]
    return []


class Convolutions(nn.Module):
    """Every norm with and without weights, every layout of a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = parametrizations.weight_norm(nn.Conv2d(3, 16, 3, padding=1))
        self.bare = nn.InstanceNorm2d(16)
        self.grouped = nn.Conv2d(16, 24, 3, padding=1, groups=4)
        self.plain = nn.BatchNorm2d(24, affine=False, track_running_stats=False)
        self.depthwise = nn.Conv2d(24, 24, 3, padding=1, groups=24)
        self.counted = nn.BatchNorm2d(24, affine=False)
        self.up = nn.ConvTranspose2d(24, 12, 2, stride=2)
        self.each = nn.GroupNorm(12, 12, affine=False)
        self.slope = nn.PReLU(12)
        self.spectral = parametrizations.spectral_norm(nn.Conv2d(12, 10, 1))
        self.affine = nn.InstanceNorm2d(10, affine=True, track_running_stats=True)
        self.last = nn.Conv2d(10, 4, 1)

    def forward(self, x: Tensor) -> Any:
        x = self.bare(self.stem(x)).relu()
        x = self.counted(self.depthwise(self.plain(self.grouped(x)).relu())).relu()
        return self.last(self.affine(self.spectral(self.slope(self.each(self.up(x))))))


class Sequences(nn.Module):
    """Recurrent layers, tied and functional weights, two inputs to one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.bag = nn.Embedding(20, 12), nn.EmbeddingBag(20, 12)
        self.lstm = nn.LSTM(12, 10, num_layers=2, batch_first=True, bidirectional=True, proj_size=6)
        self.gru, self.cell = nn.GRU(12, 8, batch_first=True), nn.GRUCell(8, 6)
        self.norm = nn.LayerNorm(8)
        self.tied, self.both = nn.Linear(12, 20, bias=False), nn.Bilinear(6, 7, 5)
        self.tied.weight = self.embed.weight
        self.into, self.functional = nn.Linear(8, 7), nn.Linear(12, 12)
        self.back = parametrizations.orthogonal(nn.Linear(8, 12))

    def forward(self, ids: Tensor) -> Any:
        x = F.linear(self.embed(ids), self.functional.weight, self.functional.bias).relu()
        x, _ = self.lstm(x)
        x, _ = self.gru(x)
        last = self.cell(x[:, -1])
        bag = self.bag(ids)
        return self.both(last, self.into(x[:, -1])), self.tied(self.back(self.norm(x))), bag


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 12)
        self.packed = nn.MultiheadAttention(12, 3, batch_first=True)
        self.apart = nn.MultiheadAttention(12, 3, kdim=10, vdim=7, batch_first=True)
        self.keys, self.values, self.last = nn.Linear(6, 10), nn.Linear(6, 7), nn.Linear(12, 4)
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(12, 4, 20, batch_first=True), 2)

    def forward(self, x: Tensor) -> Any:
        y = self.first(x)
        y = self.packed(y, y, y)[0]
        y = self.apart(y, self.keys(x), self.values(x))[0]
        return self.last(self.encoder(y))


def hooked(norm: Callable[..., nn.Module]) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # these are deprecated, and found in models of these days
        return nn.Sequential(norm(nn.Linear(6, 12)), nn.ReLU(), norm(nn.Linear(12, 8)), nn.ReLU(), nn.Linear(8, 3))


MODELS: dict[str, tuple[Callable[[], nn.Module], Inputs]] = {
    "convolutions": (Convolutions, torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))),
    "sequences": (Sequences, torch.randint(20, (2, 5), generator=torch.Generator().manual_seed(0))),
    "attention": (Attention, torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(0))),
    "torch.nn.utils.weight_norm": (lambda: hooked(nn.utils.weight_norm), torch.ones(2, 6)),
    "torch.nn.utils.spectral_norm": (lambda: hooked(nn.utils.spectral_norm), torch.ones(2, 6)),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("allow_mixed", [False, True])
def test_widths_that_modules_state_are_those_of_their_weights(name: str, allow_mixed: bool) -> None:
    torch.manual_seed(0)
    model, inputs = MODELS[name][0]().eval(), MODELS[name][1]
    groups = pruning.find_groups(model, inputs, allow_mixed=allow_mixed)
    assert len(groups)
    plan = pruning.Plan.of(groups, {group.name: [0] for group in groups})
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # InstanceNorm warns where it is called with another width than it states
        warnings.filterwarnings("ignore", message="LSTM with projections")
        dense = pruning.narrow(model, plan, inputs, groups=groups)
    for path, module in dense.named_modules():
        for what, stated, true in stated_and_true(module):
            assert stated == true, f"{path} states {stated} as its {what}, its tensors say {true}"
    masked = pruning.apply_masks(model, plan, groups=groups)
    assert relative_difference(outputs_of(masked, inputs), outputs_of(dense, inputs)) < 1e-5


def test_norms_without_weights_state_the_width_that_they_are_called_with() -> None:
    model, inputs = Convolutions().eval(), MODELS["convolutions"][1]
    groups = pruning.find_groups(model, inputs)
    dense = pruning.narrow(model, pruning.Plan.of(groups, {g.name: [0] for g in groups}), inputs, groups=groups)
    seen: dict[str, tuple[int, int]] = {}
    for name in ("bare", "plain", "counted", "each"):
        stated = getattr(dense.get_submodule(name), "num_channels" if name == "each" else "num_features")
        dense.get_submodule(name).register_forward_pre_hook(
            lambda _module, args, name=name, stated=stated: seen.update({name: (stated, args[0].shape[1])})
        )
    dense(inputs)
    assert len(seen) == 4
    assert all(stated == called for stated, called in seen.values()), seen
    assert any(called < before for (_, called), before in zip(seen.values(), (16, 24, 24, 12), strict=True))
