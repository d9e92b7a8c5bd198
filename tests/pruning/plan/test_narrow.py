from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pruning
from pruning.errors import ModelError, VerificationError
from pruning.graph.module_copy import copy_whole
from pruning.plan.verification import difference_beyond_rounding
from tests.pruning.networks import IMAGE, make

X = torch.randn(IMAGE, generator=torch.Generator().manual_seed(0))


def narrowed(name: str) -> nn.Module:
    model = make(name)
    groups = pruning.find_groups(model, X)
    return pruning.narrow(model, pruning.Plan.of(groups, {g.name: [0] for g in groups}), X)


def test_modules_count_what_they_hold() -> None:
    for name in ("Depthwise", "ResidualWithGroups", "GroupNormed", "UNet", "SuperResolution"):
        for module in narrowed(name).modules():
            if isinstance(module, nn.Conv2d):
                assert module.weight.shape[:2] == (module.out_channels, module.in_channels // module.groups)
            if isinstance(module, nn.ConvTranspose2d):
                assert module.weight.shape[:2] == (module.in_channels, module.out_channels // module.groups)
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_var is not None
                assert module.num_features == len(module.running_var)
            if isinstance(module, nn.Linear):
                assert module.weight.shape == (module.out_features, module.in_features)
            if isinstance(module, nn.GroupNorm):
                assert len(module.weight) == module.num_channels
                assert module.num_channels % module.num_groups == 0


def test_tied_parameters_stay_one_tensor() -> None:
    dense = narrowed("Siamese")
    assert dense.get_submodule("left").weight is dense.get_submodule("right").weight


def test_requires_grad_and_modes_are_kept() -> None:
    model = make("Plain").train()
    model.get_parameter("features.0.0.weight").requires_grad_(False)
    groups = pruning.find_groups(model, X)
    dense = pruning.narrow(model, pruning.Plan.of(groups, {g.name: [0] for g in groups}), X)
    assert [p.requires_grad for p in dense.parameters()] == [p.requires_grad for p in model.parameters()]
    assert all(module.training for module in dense.modules())


def test_masking_zeroes_the_producing_and_the_consuming_side_but_no_statistics() -> None:
    model = make("Plain")
    groups = pruning.find_groups(model, X)
    masked = pruning.apply_masks(model, pruning.Plan.of(groups, {"features.0.0.weight:0": [3]}))
    state = masked.state_dict()
    assert not state["features.0.0.weight"][3].any()
    assert not state["features.0.1.bias"][3]
    assert not state["features.2.0.weight"][:, 3].any()
    assert state["features.0.1.running_var"][3] == model.state_dict()["features.0.1.running_var"][3] > 0


class Weighed(nn.Module):
    """Multiplies by its width, but only where it isn't watched."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Any:
        return self.b(torch.relu(self.a(x))) * (1 if x.is_meta else self.a.out_features)


def test_what_cannot_be_narrowed_exactly_is_refused_and_the_original_stays() -> None:
    model, x = Weighed(), torch.randn(4, 3)
    before = model(x)
    plan = pruning.Plan.of(pruning.find_groups(model, x), {"a.weight:0": [1]})
    with pytest.raises(VerificationError, match=r"differs from the masked one by .* at most 1e-04 is accepted"):
        pruning.narrow(model, plan, x)
    assert torch.equal(model(x), before)


def test_a_narrowed_model_that_does_not_run_is_refused() -> None:
    class Fragile(Weighed):
        def forward(self, x: Tensor) -> Any:
            if not x.is_meta and self.a.out_features != 8:
                raise RuntimeError("I want 8")
            return self.b(torch.relu(self.a(x)))

    model, x = Fragile(), torch.randn(4, 3)
    plan = pruning.Plan.of(pruning.find_groups(model, x), {"a.weight:0": [1]})
    with pytest.raises(VerificationError, match="does not run: I want 8"):
        pruning.narrow(model, plan, x)


def test_a_module_that_cannot_be_copied_is_an_error_that_says_why() -> None:
    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 8), nn.Linear(8, 2)
            self.rows = (i for i in range(3))

        def forward(self, x: Tensor) -> Any:
            return self.b(self.a(x))

    with pytest.raises(ModelError, match=r"can't be copied.*generator"):
        pruning.find_groups(Holder(), torch.zeros(1, 3))


class Remembers(nn.Module):
    """Carries its state from call to call, as a recogniser of streams does, counts, and caches a table."""

    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.cell = nn.Linear(8, 24), nn.GRU(24, 16, batch_first=True)
        self.last = nn.Linear(16, 4)
        self.state: Tensor | None = None
        self.shapes: list[torch.Size] = []
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        if self.state is not None and self.state.shape[1] != len(x):
            self.state = None
        self.shapes.append(x.shape)
        self.seen += x.shape[1]
        out, state = self.cell(torch.relu(self.encode(x)), self.state)
        self.state = state.detach()
        found: Tensor = self.last(out[:, -1])
        return found


def test_a_narrowed_model_has_seen_nothing_of_its_verification() -> None:
    torch.manual_seed(0)
    model, example = Remembers(), torch.randn(2, 6, 8)
    plan = pruning.make_plan(pruning.find_groups(model, example), "l2_norm", pruning.ChannelSparsity(0.4))
    dense = pruning.narrow(model, plan, example)
    masked = pruning.apply_masks(model, plan)
    for one in (model, dense, masked):
        assert isinstance(one, Remembers)
        assert (one.state, one.shapes, float(one.seen)) == (None, [], 0.0)
    for _ in range(2):
        torch.testing.assert_close(dense(example), masked(example))


class Codebook(nn.Module):
    """In training, a codebook and an embedding's rows are moved by what they read: parameters that a forward writes."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(30, 8, max_norm=0.5)
        self.first, self.last = nn.Linear(8, 20), nn.Linear(20, 5)
        self.centre = nn.Parameter(torch.zeros(20), requires_grad=False)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.first(self.words(tokens).mean(1))
        if self.training:
            self.centre.data.lerp_(hidden.detach().mean(0), 0.1)
        found: Tensor = self.last(torch.relu(hidden - self.centre))
        return found


def test_verifying_writes_into_no_parameter() -> None:
    torch.manual_seed(0)
    model, example = Codebook(), torch.randint(30, (2, 4))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    plan = pruning.make_plan(pruning.find_groups(model, example), "l2_norm", pruning.ChannelSparsity(0.4))
    dense = pruning.narrow(model, plan, example)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert not dense.get_parameter("centre").any()


@pytest.mark.parametrize(
    ("convolution", "shape", "folded"), [(nn.Conv2d, (2, 3, 8, 8), 16 * 4), (nn.Conv1d, (2, 3, 16), 16 * 4)]
)
def test_network_that_folds_larger_images_into_rows_is_narrowed(
    convolution: type[nn.Module], shape: tuple[int, ...], folded: int
) -> None:
    """As tutorials write it: `x.view(-1, 16 * 2 * 2)` takes an image twice as high for four images."""

    class Tutorial(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = convolution(3, 8, 3, padding=1)
            self.second = convolution(8, 16, 3, padding=1)
            self.last = nn.Linear(folded, 5)

        def forward(self, x: Tensor) -> Tensor:
            pool = nn.functional.max_pool2d if x.ndim == 4 else nn.functional.max_pool1d
            x = pool(torch.relu(self.first(x)), 2)
            x = pool(torch.relu(self.second(x)), 2)
            found: Tensor = self.last(x.reshape(-1, folded))
            return found

    torch.manual_seed(0)
    model, example = Tutorial(), torch.randn(shape)
    groups = pruning.find_groups(model, example)
    plan = pruning.make_plan(groups, "l2_norm", pruning.ChannelSparsity(0.4))
    dense, masked = pruning.narrow(model, plan, example), pruning.apply_masks(model, plan)
    torch.testing.assert_close(dense(example), masked(example))
    assert plan.removed


def test_a_jump_is_not_taken_for_rounding() -> None:
    """PyTorch's orthogonal weight reads signs as `x.diagonal().int()`: moved by one rounding, they are zero."""
    torch.manual_seed(0)
    orthogonal = nn.utils.parametrizations.orthogonal
    model, example = nn.Sequential(orthogonal(nn.Linear(8, 16)), nn.ReLU(), nn.Linear(16, 2)), torch.randn(3, 8)
    other = copy_whole(model)
    with torch.no_grad():
        other.get_parameter("2.weight").mul_(1.5)
    assert difference_beyond_rounding(model, other, example) > 0.1
    assert difference_beyond_rounding(model.double(), other.double(), example.double()) > 0.1


def test_spectral_norm_is_narrowed_exactly() -> None:
    torch.manual_seed(0)
    spectral = nn.utils.parametrizations.spectral_norm
    model, example = (
        nn.Sequential(nn.Linear(8, 16), nn.ReLU(), spectral(nn.Linear(16, 12)), nn.ReLU(), nn.Linear(12, 2)),
        torch.randn(3, 8),
    )
    plan = pruning.make_plan(pruning.find_groups(model, example), "random", pruning.ChannelSparsity(0.4))
    dense, masked = pruning.narrow(model, plan, example), pruning.apply_masks(model, plan)
    assert dense.training
    for _ in range(2):  # in training, each pass goes on with the estimate of the norm
        torch.testing.assert_close(dense(example), masked(example))
    torch.testing.assert_close(dense.eval()(example), masked.eval()(example))
