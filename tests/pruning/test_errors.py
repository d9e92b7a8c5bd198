"""Faults that aren't the model's pass through the engine as they are."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pruning
from pruning.errors import ModelError
from pruning.structure.calls import other_calls
from pruning.structure.other_inputs import other_inputs

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
