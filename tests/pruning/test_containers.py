"""Tensors that a network is given and returns, in containers of any kind: all are seen, kept whole and compared."""

from __future__ import annotations

import functools
import itertools
from collections import UserDict, namedtuple
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pruning
from pruning.containers import find_tensors
from pruning.errors import ModelError, VerificationError
from pruning.plan.verification import outputs_of, relative_difference

X = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))


@dataclass
class Outputs:
    logits: Any


class Slotted:
    __slots__ = ("__hidden", "empty")

    def __init__(self, logits: Any) -> None:
        self.__hidden = logits


class Plain:
    def __init__(self, logits: Any) -> None:
        self.logits, self.itself = logits, self


class Rows:
    """Gives its tensors by iteration alone."""

    def __init__(self, logits: Any) -> None:
        self.rows = functools.partial(iter, [logits])

    def __iter__(self) -> Iterator[Any]:
        yield from self.rows()


class OwnDict(dict[str, Any]):
    pass


class OwnList(list[Any]):
    pass


Named = namedtuple("Named", "logits")


def looped(logits: Any) -> list[Any]:
    inside: list[Any] = [logits]
    inside.append(inside)
    return inside


CONTAINERS: dict[str, Callable[[Any], Any]] = {
    "a dataclass": Outputs,
    "an object": Plain,
    "slots": Slotted,
    "a namespace": lambda t: SimpleNamespace(logits=t),
    "a set": lambda t: {t},
    "a generator": lambda t: (u for u in [t]),
    "a subclass of dict": lambda t: OwnDict(logits=t),
    "a mapping": lambda t: UserDict(logits=t),
    "a subclass of list": lambda t: OwnList([t]),
    "a named tuple": Named,
    "an iterable": Rows,
    "a list that holds itself": looped,
    "a partial": lambda t: functools.partial(print, t),
    "a closure": lambda t: lambda: t,
    "nested": lambda t: {"all": [Outputs((Plain({t}), None, "text", 3.0))]},
}


class Classifier(nn.Module):
    def __init__(self, wrap: Callable[[Any], Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.fc, self.wrap = nn.Linear(8, 12), nn.Linear(12, 10), wrap

    def forward(self, x: Tensor) -> Any:
        return self.wrap(self.fc(torch.relu(self.a(x))))


def third(groups: pruning.Groups) -> pruning.Plan:
    return pruning.make_plan(groups, "l1_norm", channel_sparsity=0.3)


@pytest.mark.parametrize("container", CONTAINERS)
def test_outputs_are_kept_whole_in_any_container(container: str) -> None:
    model = Classifier(CONTAINERS[container])
    groups = pruning.find_groups(model, X)
    assert [group.name for group in groups] == ["a.weight:0"]
    assert "it is an output of the model" in str(groups.report()["fc.weight"])
    dense = pruning.narrow(model, third(groups), X, groups=groups)
    assert next(iter(outputs_of(dense, X))).shape == (2, 10)
    masked = pruning.apply_masks(model, third(groups))
    assert relative_difference(outputs_of(masked, X), outputs_of(dense, X)) < 1e-5
    assert relative_difference(outputs_of(masked, X), outputs_of(model, X)) > 1e-3


@pytest.mark.parametrize(
    "wrap",
    [
        lambda t: float(t.sum()),
        lambda _t: None,
        lambda t: t.numpy(),
        lambda t: t.tolist(),
        lambda t: str(t.shape),
    ],
)
def test_outputs_in_which_no_tensor_is_found_are_refused(wrap: Callable[[Any], Any]) -> None:
    with pytest.raises(ModelError, match=r"Classifier returns .* no tensor is found"):
        pruning.find_groups(Classifier(wrap), X)


def test_outputs_without_end_are_refused() -> None:
    nested: Any = X
    for _ in range(300):
        nested = [nested]
    with pytest.raises(ModelError, match="nested more than 100 deep"):
        find_tensors(nested)
    with pytest.raises(ModelError, match="more than 1,000,000 values"):
        find_tensors(itertools.count())


class Lazy(nn.Module):
    """Computes while the caller iterates."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.heads = nn.Linear(8, 12), nn.ModuleList(nn.Linear(12, n) for n in (4, 5))

    def forward(self, x: Tensor) -> Iterator[Tensor]:
        x = torch.relu(self.a(x))
        for head in self.heads:
            yield head(x)


def test_what_a_generator_computes_is_traced_with_the_rest() -> None:
    model = Lazy()
    groups = pruning.find_groups(model, X)
    assert [group.name for group in groups] == ["a.weight:0"]
    dense = pruning.narrow(model, third(groups), X, groups=groups)
    assert [tuple(t.shape) for t in dense(X)] == [(2, 4), (2, 5)]


class Split(nn.Module):
    """Returns logits, and features as `take` gives them."""

    def __init__(self, take: Callable[[Tensor], Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.fc, self.take = nn.Linear(8, 12), nn.Linear(12, 10), take

    def forward(self, x: Tensor) -> Any:
        x = torch.relu(self.a(x))
        return self.fc(x), self.take(x)


@pytest.mark.parametrize("take", [Tensor.tolist, Tensor.numpy], ids=["a list", "an array"])
def test_values_that_leave_pytorch_are_outputs(take: Callable[[Tensor], Any]) -> None:
    groups = pruning.find_groups(Split(take), X)
    assert not len(groups)
    assert "takes its values out of PyTorch" in str(groups.report()["a.weight"])


def test_a_statistic_that_code_reads_as_a_number_is_one() -> None:
    assert not len(pruning.find_groups(Split(lambda x: float(x.softmax(1).max())), X))
    assert len(pruning.find_groups(Split(lambda x: float(x.sum())), X)) == 1


def test_sets_are_compared_by_what_they_hold() -> None:
    both = Classifier(lambda t: {t * factor for factor in (3.0, -1.0, 1.0, 0.5, 2.0)})
    groups = pruning.find_groups(both, X)
    pruning.narrow(both, third(groups), X, groups=groups)


@pytest.mark.parametrize("container", ["a dataclass", "an object", "slots", "a set", "a subclass of dict", "nested"])
def test_inputs_come_in_any_container_and_stay_as_they_are(container: str) -> None:
    class Takes(Classifier):
        def forward(self, x: Any) -> Any:
            [tensor] = find_tensors(x)
            return super().forward(tensor.mul_(2.0))

    given = CONTAINERS[container](X.clone())
    model = Takes(Outputs)
    groups = pruning.find_groups(model, (given,))
    dense = pruning.narrow(model, third(groups), (given,), groups=groups)
    assert dense.get_submodule("a").weight.shape == (8, 8)
    assert torch.equal(find_tensors(given)[0], X)


def test_inputs_that_can_be_read_only_once_are_refused() -> None:
    with pytest.raises(ModelError, match="read only once"):
        pruning.find_groups(Classifier(Outputs), ((x for x in [X]),))


class Empty(Classifier):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x)[:0]


def test_a_comparison_of_nothing_is_no_proof() -> None:
    assert relative_difference([], []) == float("inf")
    assert relative_difference([torch.zeros(0)], [torch.zeros(0)]) == float("inf")
    assert relative_difference([torch.tensor([torch.nan])], [torch.tensor([torch.nan])]) == float("inf")
    model = Empty(lambda t: t)
    groups = pruning.find_groups(model, X)
    with pytest.raises(VerificationError, match="no value to compare"):
        pruning.narrow(model, third(groups), X, groups=groups)


@pytest.mark.parametrize("dtype", [torch.bool, torch.int32, torch.float16, torch.float8_e4m3fn, torch.complex64])
def test_tensors_of_any_type_are_compared(dtype: torch.dtype) -> None:
    a = torch.tensor([0.0, 1.0, 2.0]).to(dtype)
    assert relative_difference([a], [a.clone()]) == 0.0
    assert relative_difference([a], [torch.tensor([1.0, 1.0, 2.0]).to(dtype)]) > 0.4
