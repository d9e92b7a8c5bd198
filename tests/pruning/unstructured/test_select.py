from __future__ import annotations

from math import ceil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pruning import find_groups
from pruning.errors import CriterionError, ModelError, SettingsError, TargetError
from pruning.io.onnx import export_onnx
from pruning.io.parity import check_parity
from pruning.training.recipe import Recipe
from pruning.training.trainer import finetune
from pruning.unstructured.criteria import LayerWeights, lamp, weight_criterion_names
from pruning.unstructured.masks import (
    WeightScope,
    choose_n_of_m,
    choose_weights,
    enforce_masks,
    sparsity_of,
    zero_weights,
)

IMAGE = torch.randn(1, 4, 6, 6, generator=torch.Generator().manual_seed(3))


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(4, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, groups=2),
        nn.ReLU(),
        nn.ConvTranspose2d(8, 4, 2, groups=2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(16, 3),
    ).eval()


LAYERS = ["0.weight", "3.weight", "5.weight", "9.weight"]


def samples(num: int = 24) -> SimpleNamespace:
    generator = torch.Generator().manual_seed(1)
    return SimpleNamespace(inputs=torch.randn(num, 4, 6, 6, generator=generator), targets=torch.arange(num) % 3)


def linear(*rows: list[float]) -> tuple[nn.Linear, Tensor]:
    layer = nn.Linear(len(rows[0]), len(rows), bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(rows))
    return layer, torch.zeros(1, len(rows[0]))


def lanes_of(mask: Tensor, of: int) -> Tensor:
    return mask.reshape(*mask.shape[:-1], -1, of)


def test_smallest_weights_of_each_layer_go_in_local_scope() -> None:
    model, inputs = linear([1.0, -4.0, 2.0, 0.5], [-0.1, 3.0, -5.0, 6.0])
    mask = choose_weights(find_groups(model, inputs), 0.5, scope="local")["weight"]
    assert mask.tolist() == [[False, True, False, False], [False, True, True, True]]


def test_global_scope_removes_the_exact_number_and_empties_no_layer() -> None:
    model = network()
    with torch.no_grad():
        model.get_parameter("0.weight").mul_(1e-6)
    masks = choose_weights(find_groups(model, IMAGE), 0.6, scope=WeightScope(max_layer_sparsity=0.9))
    total = sum(mask.numel() for mask in masks.values())
    assert list(masks) == LAYERS
    assert sum(int((~mask).sum()) for mask in masks.values()) == ceil(0.6 * total)
    assert int(masks["0.weight"].sum()) == 29  # a tenth of 288, rounded up, stays


def test_share_beyond_what_layers_may_lose_is_refused() -> None:
    with pytest.raises(TargetError, match=r"no layer may lose more than 90\.0%"):
        choose_weights(find_groups(network(), IMAGE), 0.95, scope=WeightScope(max_layer_sparsity=0.9))


@pytest.mark.parametrize("scope", ["local", "global"])
def test_share_is_met_and_by_less_than_a_weight_of_each_layer(scope: str) -> None:
    for share in (0.1, 0.37, 0.9):
        masks = choose_weights(find_groups(network(), IMAGE), share, scope=scope)  # type: ignore[arg-type]
        total = sum(mask.numel() for mask in masks.values())
        assert share <= sparsity_of(masks) < share + len(masks) / total


def test_layer_too_small_for_a_local_share_is_refused() -> None:
    model, inputs = linear([1.0, 2.0])
    with pytest.raises(TargetError, match=r"0\.5000 can: in local scope no layer may lose its last weight"):
        choose_weights(find_groups(model, inputs), 0.9, scope="local")


def test_equal_weights_go_by_layer_and_place() -> None:
    model = nn.Sequential(nn.Linear(3, 2, bias=False), nn.Linear(2, 2, bias=False))
    for parameter in model.parameters():
        nn.init.ones_(parameter)
    masks = choose_weights(find_groups(model, torch.zeros(1, 3)), 0.4)
    assert masks["0.weight"].flatten().tolist() == [False] * 4 + [True] * 2
    assert bool(masks["1.weight"].all())


@pytest.mark.parametrize("criterion", weight_criterion_names())
@pytest.mark.parametrize("scope", ["local", "global"])
def test_masks_of_a_rising_share_lie_within_each_other(criterion: str, scope: str) -> None:
    model = network()
    first = choose_weights(find_groups(model, IMAGE), 0.3, criterion, scope=scope, samples=samples())  # type: ignore[arg-type]
    zero_weights(model, first)
    second = choose_weights(find_groups(model, IMAGE), 0.6, criterion, scope=scope, samples=samples())  # type: ignore[arg-type]
    assert sparsity_of(first) == pytest.approx(0.3, abs=0.01)
    assert sparsity_of(second) == pytest.approx(0.6, abs=0.01)
    for name, mask in second.items():
        assert not bool((mask & ~first[name]).any())


@pytest.mark.parametrize("criterion", weight_criterion_names())
def test_choosing_changes_neither_the_model_nor_the_random_state(criterion: str) -> None:
    model = network()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    choose_weights(find_groups(model, IMAGE), 0.5, criterion, samples=samples())
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_lamp_of_one_two_three() -> None:
    layer = LayerWeights("w", torch.tensor([[1.0, -3.0, 2.0]], dtype=torch.float64), None, torch.Generator())
    torch.testing.assert_close(lamp(layer), torch.tensor([[1 / 14, 1.0, 4 / 13]], dtype=torch.float64))


def test_gradient_criteria_on_a_loss_worked_out_by_hand() -> None:
    """The loss of a sample is w·x, so that g = x: products 1·w and 3·w of two samples, 2·w of their mean."""
    model, inputs = linear([2.0, 5.0])
    two = SimpleNamespace(inputs=torch.tensor([[1.0, 0.0], [3.0, 0.0]]), targets=torch.zeros(2))
    seen: dict[str, Tensor] = {}
    from pruning.unstructured.criteria import score_layers

    for name in ("taylor_weight", "obd"):
        seen[name] = score_layers(model, ["weight"], name, two, lambda y, _: y.mean(), seed=0)["weight"]
    torch.testing.assert_close(seen["taylor_weight"], torch.tensor([[16.0, 0.0]], dtype=torch.float64))
    torch.testing.assert_close(seen["obd"], torch.tensor([[0.5 * (4 + 36) / 2, 0.0]], dtype=torch.float64))
    assert find_groups(model, inputs) is not None


def test_two_of_four_of_a_linear_layer() -> None:
    model, inputs = linear([1.0, -4.0, 2.0, 0.5, 1.0, 1.0, 1.0, 1.0])
    mask = choose_n_of_m(find_groups(model, inputs), 2, 4)["weight"]
    assert mask.tolist() == [[False, True, True, False, True, True, False, False]]


@pytest.mark.parametrize(("num_kept", "of"), [(2, 4), (1, 4), (3, 4), (1, 2)])
def test_every_m_weights_under_one_tap_keep_n(num_kept: int, of: int) -> None:
    masks = choose_n_of_m(find_groups(network(), IMAGE), num_kept, of)
    for name in ("0.weight", "3.weight"):
        lanes = lanes_of(masks[name].movedim(1, -1), of)  # [outputs, taps, taps, lanes, M]
        assert bool((lanes.sum(-1) == num_kept).all())
    transposed = masks["5.weight"]  # [inputs of both groups, outputs of one, taps, taps]
    lanes = lanes_of(transposed.reshape(2, 4, 2, 2, 2).movedim(1, -1), of)
    assert bool((lanes.sum(-1) == num_kept).all())
    assert bool((lanes_of(masks["9.weight"], of).sum(-1) == num_kept).all())


def test_layers_that_m_does_not_divide_are_all_named() -> None:
    with pytest.raises(TargetError, match=r"0\.weight \(36\), 3\.weight \(36\)") as caught:
        choose_n_of_m(find_groups(network(), IMAGE), 2, 8)
    assert "5.weight" not in str(caught.value)
    masks = choose_n_of_m(find_groups(network(), IMAGE), 2, 8, ignore=["0", "3"])
    assert list(masks) == ["5.weight", "9.weight"]


class Attending(nn.Module):
    """Attention whose projections are packed, and a layer whose weights are computed."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)
        self.layer = nn.utils.parametrizations.weight_norm(nn.Linear(16, 12))
        self.last = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(torch.relu(self.layer(self.attention(x, x, x, need_weights=False)[0])))
        return out


def test_weights_that_are_no_layers_own_go_by_a_share_and_stay_whole_under_a_pattern(
    caplog: pytest.LogCaptureFixture,
) -> None:
    groups = find_groups(Attending().eval(), torch.randn(2, 5, 16))
    masks = choose_weights(groups, 0.5, scope="local")
    packed, computed = "attention.in_proj_weight", "layer.parametrizations.weight.original1"
    assert set(masks) == {"attention.out_proj.weight", "last.weight", packed, computed}
    assert set(choose_n_of_m(groups, 2, 4)) == {"attention.out_proj.weight", "last.weight"}
    assert f"{packed} stays whole" in caplog.text
    assert f"{computed} stays whole" in caplog.text


def test_own_criterion_is_called_with_the_weights_and_held_to_its_contract() -> None:
    model, inputs = linear([1.0, -4.0, 2.0, 0.5])
    groups = find_groups(model, inputs)
    assert choose_weights(groups, 0.5, lambda layer: -layer.weight)["weight"].tolist() == [[False, True, False, True]]
    with pytest.raises(CriterionError, match="one finite score per weight"):
        choose_weights(groups, 0.5, lambda layer: layer.weight[0])


def test_faults_are_named() -> None:
    groups = find_groups(network(), IMAGE)
    with pytest.raises(TargetError, match="4:2 is no pattern"):
        choose_n_of_m(groups, 4, 2)
    with pytest.raises(TargetError, match="expected a share"):
        choose_weights(groups, 1.0)
    with pytest.raises(CriterionError, match="score single weights"):
        choose_weights(groups, 0.5, "apoz")
    with pytest.raises(CriterionError, match="pass samples"):
        choose_weights(groups, 0.5, "obd")
    with pytest.raises(SettingsError, match="unknown module or parameter"):
        choose_weights(groups, 0.5, ignore=["absent"])


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(epochs=3, learning_rate=0.1, batch_size=8, weight_decay=0.01, gradient_clip=1.0),
        Recipe(epochs=3, learning_rate=0.01, batch_size=8, weight_decay=0.1, optimizer="adamw"),
        Recipe(epochs=3, learning_rate=0.01, batch_size=8, optimizer="Adafactor", precision="bf16", ema=0.5),
        Recipe(epochs=3, batch_size=8, optimizer="RMSprop", gradient_accumulation=2, precision="fp16"),
    ],
)
def test_zeros_are_exactly_zero_after_training_and_the_rest_has_moved(recipe: Recipe) -> None:
    model = network()
    masks = choose_n_of_m(find_groups(model, IMAGE), 2, 4)
    before = {name: model.get_parameter(name).detach().clone() for name in masks}
    with enforce_masks(model, masks):
        finetune(model, samples(), recipe, seed=0)
    for name, mask in masks.items():
        after = model.get_parameter(name).detach()
        assert torch.equal(after[~mask].view(torch.int32), torch.zeros_like(after[~mask], dtype=torch.int32))
        assert bool((after[mask] != before[name][mask]).float().mean() > 0.9)
    finetune(model, samples(), recipe, seed=0)
    assert all(bool((model.get_parameter(name)[~mask] != 0).any()) for name, mask in masks.items())


class Noisy(torch.optim.SGD):
    """Moves weights whatever their gradients are, as optimizers that turn or perturb updates do."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        super().step(closure)
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.add_(1e-3)


def test_an_optimizer_that_moves_removed_weights_is_refused() -> None:
    model = network()
    masks = choose_n_of_m(find_groups(model, IMAGE), 2, 4)
    recipe = Recipe(epochs=1, learning_rate=0.1, batch_size=8, optimizer=f"{__name__}:Noisy")
    with pytest.raises(ModelError, match="that were removed are not zero after training"), enforce_masks(model, masks):
        finetune(model, samples(), recipe, seed=0)


def test_onnx_file_holds_the_zeros_and_computes_the_same(tmp_path: Path) -> None:
    import onnx
    from onnx import numpy_helper

    model = network()
    masks = choose_n_of_m(find_groups(model, IMAGE), 2, 4)
    zero_weights(model, masks)
    path = export_onnx(model, IMAGE, tmp_path / "sparse.onnx")
    assert check_parity(path, model, samples().inputs).max_relative_difference < 1e-5
    zeros = sum(int((numpy_helper.to_array(one) == 0).sum()) for one in onnx.load(path).graph.initializer)
    assert zeros >= sum(int((~mask).sum()) for mask in masks.values())
