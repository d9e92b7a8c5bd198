"""A narrowed model is verified in the ways in which users run it, and never called proven where nothing is seen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pruning
from pruning.errors import UnprovenWarning, UntriedWarning, VerificationError
from pruning.plan.example_variants import other_calls

X = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))


class Branching(nn.Module):
    """Holds its width in a literal on a path that the example in evaluation doesn't take."""

    def __init__(self, takes: Callable[[nn.Module, Tensor, Tensor | None], bool]) -> None:
        super().__init__()
        self.takes = takes
        self.a, self.b = nn.Linear(8, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Any:
        h = F.dropout(self.a(x).relu(), 0.5, self.training)
        if self.takes(self, x, mask):
            h = h.view(len(x), -1, 16)
        return self.b(h)


PATHS: dict[str, Callable[[nn.Module, Tensor, Tensor | None], bool]] = {
    "in training on a batch of 3": lambda module, _x, _mask: module.training,
    "under torch.inference_mode on a batch of 1": lambda *_: torch.is_inference_mode_enabled(),
    "with mask on a batch of 3": lambda _module, _x, mask: mask is not None,
    "under torch.inference_mode on a batch of 1 ": lambda _module, x, _mask: len(x) == 1,
    "with mask on a batch of 3 in training": lambda module, _x, mask: mask is not None and module.training,
}


@pytest.mark.parametrize("how", PATHS)
def test_a_path_that_breaks_once_narrowed_is_found_before_the_user_takes_it(how: str) -> None:
    model = Branching(PATHS[how]).eval()
    groups = pruning.find_groups(model, X)
    plan = pruning.Plan.of(groups, {"a.weight:0": [0, 3]})
    with pytest.raises(VerificationError, match=f"does not run {how.strip()}: shape "):
        pruning.narrow(model, plan, X, groups=groups)


class Signed(Branching):
    """Takes a path on negative inputs that no positive example shows."""

    def __init__(self) -> None:
        super().__init__(lambda _module, x, _mask: bool((x < 0).all()))


def test_a_path_that_the_sign_chooses_is_found_before_the_user_takes_it() -> None:
    model, x = Signed().eval(), X.abs() + 0.1
    groups = pruning.find_groups(model, x)
    with pytest.raises(VerificationError, match="does not run on the negated inputs: shape "):
        pruning.narrow(model, pruning.Plan.of(groups, {"a.weight:0": [0, 3]}), x, groups=groups)


class Switched(nn.Module):
    """Takes another path where a truth is turned over."""

    def __init__(self, turn: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.turn = turn
        self.a, self.b = nn.Linear(8, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor, early: bool = False, *, late: bool | None = None, scale: Any = None) -> Any:
        h = self.a(x).relu()
        if early or late:
            h = self.turn(h)
        return h if h.dim() == 4 else self.b(h if scale is None else h * scale)


def narrow_switched(turn: Callable[[Tensor], Tensor], example: Any = X) -> None:
    torch.manual_seed(0)
    model = Switched(turn).eval()
    groups = pruning.find_groups(model, example)
    plan = pruning.Plan.of(groups, {name: [0, 3] for name in ["a.weight:0"] if name in groups})
    pruning.narrow(model, plan, example, groups=groups)


def test_each_truth_that_forward_takes_is_turned_over() -> None:
    with pytest.raises(VerificationError, match=r"does not run with early=True on a batch of 3: shape "):
        narrow_switched(lambda h: h.view(len(h), -1, 16))
    with pytest.raises(VerificationError, match=r"differs from the masked one with early=True on a batch of 3 by"):
        narrow_switched(lambda h: h.roll(1, -1))


class Stepped(nn.Module):
    """Takes another path for another number."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor, step: int = 0) -> Any:
        h = self.a(x).relu()
        return self.b(h if step == 0 else h.flip(-1))


class Worded(Stepped):
    """Takes another path for another word."""

    def forward(self, x: Tensor, order: str = "plain") -> Any:  # type: ignore[override]  # a network of its own
        h = self.a(x).relu()
        return self.b(h if order == "plain" else h.flip(-1))


def test_a_number_is_tried_and_a_word_is_named() -> None:
    torch.manual_seed(0)
    stepped, worded = Stepped().eval(), Worded().eval()
    plan = pruning.Plan.of(pruning.find_groups(stepped, X), {"a.weight:0": [0, 3]})
    with pytest.raises(VerificationError, match=r"differs from the masked one with step=1 on a batch of 3 by"):
        pruning.narrow(stepped, plan, X)
    with pytest.warns(UntriedWarning, match=r"no value that it takes was found for order\."):
        pruning.narrow(worded, plan, X)


def test_what_no_example_shows_and_nothing_could_be_tried_for_is_named() -> None:
    with pytest.warns(UntriedWarning, match=r"the narrowed Switched .* no value that it takes was found for scale\."):
        narrow_switched(lambda h: 2 * h)
    with pytest.warns(UntriedWarning, match=r"outputs have other shapes .* with early=True, late=True\."):
        narrow_switched(lambda h: h[None], [{"x": X}, {"x": X, "scale": torch.tensor(2.0)}])
    narrow_switched(lambda h: 2 * h, [X, {"x": X, "scale": torch.tensor(2.0)}])  # no warning


def test_dropout_and_batch_norms_agree_in_training_and_learn_nothing() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 12, 3), nn.BatchNorm2d(12), nn.Dropout2d(), nn.Conv2d(12, 8, 1), nn.Flatten(),
        nn.AlphaDropout(0.3), nn.Linear(128, 6), nn.RReLU(), nn.Linear(6, 2),
    )  # fmt: skip
    x = torch.randn(1, 3, 6, 6)
    groups = pruning.find_groups(model, x)
    plan = pruning.Plan.of(groups, {group.name: [0] for group in groups})
    dense = pruning.narrow(model, plan, x, groups=groups)
    assert int(dense.get_buffer("1.num_batches_tracked")) == 0
    assert not dense.get_buffer("1.running_mean").any()


def test_the_calls_are_few_and_each_is_one_that_the_model_takes() -> None:
    class Many(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tried: list[str] = []
            self.a = nn.Linear(8, 3)

        def forward(self, x: Tensor, *, depth: int | None = None, **masks: Any) -> Any:
            return self.a(x) if depth is None else self.tried[depth]

    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(8, 3)

        def forward(
            self,
            x: Tensor,
            padding_mask: Tensor | None = None,
            attention_mask: Tensor | None = None,
            causal_mask: Tensor | None = None,
            position: Tensor | None = None,
            labels: Any = None,
        ) -> Any:
            if padding_mask is not None:
                assert padding_mask.dtype == torch.bool
                assert padding_mask.shape == x.shape[:2]
            if attention_mask is not None:
                x = x * (1 - attention_mask)[..., None]  # no bool
            if causal_mask is not None:
                assert causal_mask.shape == (x.shape[1], x.shape[1])
            if position is not None:
                assert position.dtype == torch.long
            return self.a(x)

    assert [call.how for call, _ in other_calls(Many(), X)] == [
        " on random inputs of scale 1",
        " on the negated inputs",
        " under torch.inference_mode on a batch of 1",
        " in training on a batch of 3",
    ]
    names = ("padding_mask", "attention_mask", "causal_mask", "position")
    assert [call.how for call, _ in other_calls(Masked(), X)] == [
        *(f" with {name} on a batch of 3" for name in names),
        " on random inputs of scale 1",
        " on the negated inputs",
        " under torch.inference_mode on a batch of 1",
        " in training on a batch of 3",
        *(f" with {name} on a batch of 3 in training" for name in names),
    ]


class Saturated(nn.Module):
    """Wrong once narrowed, but nothing shows it where the outputs are all ones, or ones and zeros."""

    def __init__(self, offset: float = 0.0) -> None:
        super().__init__()
        self.a, self.b, self.offset = nn.Linear(8, 16), nn.Linear(16, 3), offset

    def forward(self, x: Tensor) -> Any:
        width = 16 if x.is_meta else self.a.out_features
        return torch.sigmoid(self.b(torch.relu(self.a(x))) * width + self.offset)


def saturated(offset: float) -> tuple[nn.Module, pruning.Groups, pruning.Plan]:
    torch.manual_seed(0)
    model = Saturated(offset).eval()
    groups = pruning.find_groups(model, X)
    return model, groups, pruning.Plan.of(groups, {"a.weight:0": [0, 3]})


def test_where_the_example_shows_little_random_inputs_show_more() -> None:
    model, groups, plan = saturated(offset=0.0)
    with pytest.raises(VerificationError, match="differs from the masked one on random inputs of scale 1 by"):
        pruning.narrow(model, plan, 1e7 * X.abs(), groups=groups)


def test_where_the_example_shows_nothing_other_inputs_are_taken() -> None:
    model, groups, plan = saturated(offset=200.0)
    with pytest.raises(VerificationError, match="differs from the masked one on random inputs of scale 100 by"):
        pruning.narrow(model, plan, X, groups=groups)
    with pytest.raises(VerificationError, match="differs from the masked one on sample 1 by"):
        pruning.narrow(model, plan, X, groups=groups, samples=[X, 50 * X])


def test_what_nothing_shows_is_not_called_proven() -> None:
    model, groups, plan = saturated(offset=1e9)
    with pytest.warns(UnprovenWarning, match=r"the narrowed Saturated is not proven .* and on \d+ others its outputs"):
        pruning.narrow(model, plan, X, groups=groups)


def test_channels_that_were_zero_are_proven_by_those_that_stay() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3)).eval()
    with torch.no_grad():
        model.get_parameter("0.weight")[[1, 5]] = 0.0
        model.get_parameter("0.bias")[[1, 5]] = 0.0
    groups = pruning.find_groups(model, X)
    pruning.narrow(model, pruning.Plan.of(groups, {"0.weight:0": [1, 5]}), X, groups=groups)


class Cancelled(nn.Module):
    """One output is zero but for rounding: the mean of what an instance norm gives of what sums over channels gave."""

    def __init__(self, fault: float = 0.0, *, features: bool = False) -> None:
        super().__init__()
        self.a, self.b, self.norm = nn.Conv1d(8, 16, 3), nn.Conv1d(16, 6, 1), nn.InstanceNorm1d(6)
        self.fault, self.features = fault, features

    def forward(self, x: Tensor) -> Any:
        wrong = self.fault * (0 if x.is_meta else 16 - self.a.out_channels)
        h = self.b(self.a(x.transpose(1, 2)).relu())
        mean = self.norm(h).mean(-1)
        return (mean, h + wrong) if self.features else mean + wrong


def narrow_cancelled(model: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    groups = pruning.find_groups(model.eval(), X)
    return pruning.narrow(model, pruning.Plan.of(groups, {"a.weight:0": [0, 3, 4, 9]}), X, groups=groups)


def test_outputs_that_are_rounding_alone_are_neither_refused_nor_called_proven() -> None:
    with pytest.warns(UnprovenWarning, match="the narrowed Cancelled is not proven"):
        narrow_cancelled(Cancelled())
    narrow_cancelled(Cancelled(features=True))  # what else it gives proves it


@pytest.mark.parametrize("features", [False, True])
def test_beside_rounding_a_fault_shows(features: bool) -> None:
    with pytest.raises(VerificationError, match="differs from the masked one"):
        narrow_cancelled(Cancelled(fault=1e-3, features=features))
