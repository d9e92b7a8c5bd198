"""Faults that aren't the model's pass through the engine as they are."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pruning
from pruning.errors import ModelError, VerificationError
from pruning.evaluation import losses_of_each
from pruning.plan.example_variants import other_calls
from pruning.plan.other_sizes import other_inputs

X = torch.randn(2, 8)


class OutOfTime(Exception):  # noqa: N818 - what users write
    """Raised by a signal handler."""


def ring(_number: int, _frame: Any) -> None:
    raise OutOfTime("too long")


class Net(nn.Module):
    """Calls `disturb` where its forward pass runs, or where it is copied."""

    def __init__(self, disturb: Callable[[], Any], *, copying: bool = False) -> None:
        super().__init__()
        self.a, self.b, self.disturb, self.copying = nn.Linear(8, 6), nn.Linear(6, 2), disturb, copying

    def forward(self, x: Tensor) -> Any:
        if not self.copying:
            self.disturb()
        return self.b(torch.relu(self.a(x)))

    def __reduce_ex__(self, protocol: Any) -> Any:
        if self.copying:
            self.disturb()
        return super().__reduce_ex__(protocol)


def signalled() -> None:
    signal.raise_signal(signal.SIGUSR1)


def timed_out() -> None:
    raise TimeoutError


def exhausted() -> None:
    raise MemoryError


def faulty() -> None:
    raise KeyError("own fault")


@pytest.mark.parametrize("copying", [False, True], ids=["running", "copying"])
@pytest.mark.parametrize(
    ("disturb", "expected"),
    [(signalled, OutOfTime), (timed_out, TimeoutError), (exhausted, MemoryError), (faulty, ModelError)],
)
def test_only_the_models_own_faults_are_turned_into_messages(
    disturb: Callable[[], Any], expected: type[Exception], copying: bool
) -> None:
    before = signal.signal(signal.SIGUSR1, ring)
    try:
        with pytest.raises(expected) as caught:
            pruning.find_groups(Net(disturb, copying=copying), X)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert expected is not ModelError or isinstance(caught.value.__cause__, KeyError)


class DisturbedElsewhere(Net):
    """Calls `disturb` on batches of other sizes than the example's alone."""

    def forward(self, x: Tensor) -> Any:
        if len(x) != len(X):
            self.disturb()
        return self.b(torch.relu(self.a(x)))


def out_of_memory() -> None:
    raise torch.OutOfMemoryError


def interrupt(_number: int, _frame: Any) -> None:
    raise RuntimeError("of a handler, by a type that models raise too")


@pytest.mark.parametrize(("disturb", "expected"), [(signalled, RuntimeError), (out_of_memory, torch.OutOfMemoryError)])
@pytest.mark.parametrize("tried", [other_inputs, other_calls])
def test_they_pass_through_what_tries_other_inputs(
    tried: Callable[[nn.Module, Tensor], Any], disturb: Callable[[], Any], expected: type[Exception]
) -> None:
    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        with pytest.raises(expected):
            list(tried(DisturbedElsewhere(disturb), X))
    finally:
        signal.signal(signal.SIGUSR1, before)


class OwnError(Exception):
    """A class of the model's own, of which the engine knows nothing."""


class Particular(nn.Module):
    """Raises its own exception where it is not as it wants to be."""

    def __init__(self, wants: Callable[[nn.Module, Tensor], bool]) -> None:
        super().__init__()
        self.a, self.b, self.wants = nn.Linear(8, 6), nn.Linear(6, 2), wants

    def forward(self, x: Tensor) -> Any:
        if not (x.is_meta or self.wants(self, x)):
            raise OwnError
        return self.b(torch.relu(self.a(x)))


def narrow_particular(wants: Callable[[nn.Module, Tensor], bool]) -> nn.Module:
    model = Particular(wants)
    groups = pruning.find_groups(model, X)
    return pruning.narrow(model, pruning.Plan.of(groups, {"a.weight:0": [1]}), X, groups=groups)


@pytest.mark.parametrize(
    ("wants", "expected", "match"),
    [
        (lambda model, x: len(model.a.weight) == 6, VerificationError, "narrowed Particular does not run: OwnError"),
        (lambda model, x: bool(model.a.weight[1].any()), ModelError, "masked Particular does not run on the example"),
    ],
)
def test_an_exception_of_the_models_own_is_the_cause_of_one_of_ours_that_says_where(
    wants: Callable[[nn.Module, Tensor], bool], expected: type[Exception], match: str
) -> None:
    with pytest.raises(expected, match=rf"{match}.*\(raised at test_errors\.py:\d+\)") as caught:
        narrow_particular(wants)
    assert isinstance(caught.value.__cause__, OwnError)


def test_what_a_model_refuses_by_an_exception_of_its_own_is_left_out() -> None:
    assert narrow_particular(lambda _, x: x.shape == X.shape).get_parameter("a.weight").shape == (5, 8)
    assert narrow_particular(lambda model, _: bool(model.get_parameter("a.weight").any())) is not None


class Uncopied:
    """Holds a tensor, and calls `disturb` where it is copied."""

    def __init__(self, disturb: Callable[[], Any]) -> None:
        self.x, self.disturb = X, disturb

    def __deepcopy__(self, memo: Any) -> Any:
        self.disturb()


def own_fault() -> None:
    raise OwnError


def test_inputs_that_cannot_be_copied() -> None:
    with pytest.raises(ModelError, match=r"Uncopied, which can't be copied: OwnError \(raised at test_errors"):
        pruning.find_groups(nn.Linear(8, 2), (Uncopied(own_fault),))
    with pytest.raises(TimeoutError):
        pruning.find_groups(nn.Linear(8, 2), (Uncopied(timed_out),))


def test_a_time_out_in_a_loss_is_no_loss_that_has_to_be_called_for_each_sample() -> None:
    calls: list[int] = []

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        calls.append(1)
        if len(calls) == 1:
            raise TimeoutError
        return (outputs - targets).square().mean()

    with pytest.raises(TimeoutError):
        losses_of_each(loss, X, X)
