"""Paths that the example didn't take: what could reach their parameters stays, unless an example takes them too."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pruning
from pruning.errors import ModelError, UntriedWarning
from pruning.plan.verification import outputs_of, relative_difference

X = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))


class Heads(nn.Module):
    """A head chosen by name, a layer chosen by index, and one behind an `if`."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Linear(8, 16)
        self.inner = nn.Sequential(nn.Linear(16, 20), nn.ReLU(), nn.Linear(20, 16))
        self.layers = nn.ModuleList(nn.Linear(16, 12) for _ in range(2))
        self.heads = nn.ModuleDict({"a": nn.Linear(12, 5), "b": nn.Linear(12, 5)})
        self.extra = nn.Linear(12, 12)

    def forward(self, x: Tensor, task: str = "a", index: int = 0, more: bool = False) -> Tensor:
        x = self.layers[index](torch.relu(self.inner(torch.relu(self.stem(x)))))
        if more:
            x = self.extra(x)
        found: Tensor = self.heads[task](torch.relu(x))
        return found


EXAMPLES: list[Any] = [(X,), (X, "b", 1), {"x": X, "more": True}, (X, "b", 1, True)]
INNER, ALL = ["inner.0.weight:0"], ["stem.weight:0", "inner.0.weight:0", "inner.2.weight:0", "layers.0.weight:0"]


def third(groups: pruning.Groups) -> pruning.Plan:
    return pruning.make_plan(groups, "l1_norm", channel_sparsity=0.3)


def test_what_may_reach_parameters_that_no_example_used_stays_whole() -> None:
    model = Heads()
    groups = pruning.find_groups(model, EXAMPLES[0])
    assert [group.name for group in groups] == INNER
    reason = str(groups.report()["layers.0.weight"])
    assert "layers.1.weight" in reason
    assert "which no example used" in reason
    assert "ignore_unused=True" in reason
    with pytest.warns(UntriedWarning, match="no value that it takes was found for task"):
        dense = pruning.narrow(model, third(groups), EXAMPLES[0], groups=groups)
    for example in EXAMPLES:
        masked = pruning.apply_masks(model, third(groups))
        assert relative_difference(outputs_of(masked, example), outputs_of(dense, example)) < 1e-5


def test_further_examples_take_the_other_paths_and_one_plan_fits_all() -> None:
    model = Heads()
    groups = pruning.find_groups(model, EXAMPLES)
    assert {slice_.parameter for group in groups for slice_ in group.slices if slice_.axis == 1} == {
        "inner.0.weight", "inner.2.weight", "layers.0.weight", "layers.1.weight", "extra.weight",
        "heads.a.weight", "heads.b.weight",
    }  # fmt: skip
    assert pruning.count_macs(groups) == pruning.count_macs(pruning.find_groups(model, EXAMPLES[0]))
    plan = third(groups)
    dense = pruning.narrow(model, plan, EXAMPLES, groups=groups)
    for example in EXAMPLES:
        masked = pruning.apply_masks(model, plan)
        assert relative_difference(outputs_of(masked, example), outputs_of(dense, example)) < 1e-5


def test_a_pair_of_ways_that_no_example_takes_together_is_refused_and_the_remedy_named() -> None:
    model = Heads()
    groups = pruning.find_groups(model, EXAMPLES[:3])
    with pytest.raises(pruning.errors.VerificationError, match=r"with index=1 .* make such inputs a further example"):
        pruning.narrow(model, third(groups), EXAMPLES[:3], groups=groups)


def test_a_narrowed_model_is_verified_on_every_example() -> None:
    class Fragile(Heads):
        def forward(self, x: Tensor, task: str = "a", index: int = 0, more: bool = False) -> Tensor:
            if index and not x.is_meta and self.stem.out_features != 16:
                raise RuntimeError("I want 16")
            return super().forward(x, task, index, more)

    model = Fragile()
    groups = pruning.find_groups(model, EXAMPLES)
    with pytest.raises(pruning.errors.VerificationError, match="I want 16"):
        pruning.narrow(model, third(groups), EXAMPLES, groups=groups)


def test_parameters_that_are_of_no_use_can_be_ignored() -> None:
    groups = pruning.find_groups(Heads(), X, ignore_unused=True)
    assert [group.name for group in groups] == ALL


def test_parameters_that_fit_nowhere_hold_nothing_back() -> None:
    model = Heads()
    del model.layers[1], model.heads["b"]
    model.extra = nn.Linear(7, 9)
    model.scale = nn.Parameter(torch.ones(1))
    assert len(pruning.find_groups(model, X)) == 4
    assert "doesn't use it" in str(pruning.find_groups(model, X).report()["extra.weight"])


class Branches(nn.Module):
    """The path that isn't taken reads what `change` makes of the features, and what it gives is joined with them."""

    def __init__(self, change: Any, width: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.last = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(12, 4, 1)
        self.other, self.change = nn.Linear(width, 4), change

    def forward(self, x: Tensor, other: bool = False) -> Any:
        x = torch.relu(self.stem(x))
        return self.other(self.change(x)) if other else self.last(x)


@pytest.mark.parametrize(
    ("change", "width"),
    [
        (lambda x: x.mean((2, 3)), 12),
        (lambda x: x.flatten(1), 12 * 16),
        (lambda x: torch.cat([x, x], 1).mean((2, 3)), 24),
        (lambda x: torch.cat([x, x[:, :3]], 1).mean((2, 3)), 15),
        (lambda x: x.mean((2, 3)).chunk(2, 1)[0], 6),
    ],
    ids=["as it is", "flattened", "twice", "with others", "half of it"],
)
def test_what_another_path_makes_of_channels_is_allowed_for(change: Any, width: int) -> None:
    model, x = Branches(change, width), torch.randn(2, 3, 4, 4)
    groups = pruning.find_groups(model, x)
    assert not len(groups)
    assert "other.weight" in str(groups.report()["stem.weight"])
    both = pruning.find_groups(model, [(x,), (x, True)])
    plan = pruning.Plan.of(both, {group.name: range(0, group.size, 3) for group in both})
    pruning.narrow(model, plan, [(x,), (x, True)], groups=both)


def test_what_a_module_returns_counts_though_nothing_reads_it() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(8, 16), nn.Linear(16, 10)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            wide = torch.relu(self.a(x))
            return self.b(wide), wide

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.two, self.last, self.aside = Two(), nn.Linear(10, 3), nn.Linear(16, 3)

        def forward(self, x: Tensor, aside: bool = False) -> Any:
            narrow, wide = self.two(x)
            return self.aside(wide) if aside else self.last(torch.relu(narrow))

    assert [group.name for group in pruning.find_groups(Outer(), X)] == ["two.b.weight:0"]


def test_lists_are_several_examples_and_a_list_as_an_argument_lies_in_a_tuple() -> None:
    class Takes(Heads):
        def forward(self, x: Any) -> Any:  # type: ignore[override]
            return super().forward(torch.cat(x), "b")

    model = Takes()
    assert [group.name for group in pruning.find_groups(model, ([X, X],), ignore_unused=True)] == ALL
    with pytest.raises(ModelError, match="a list is several examples"):
        pruning.find_groups(Heads(), [X, X[:, 1:]])
    with pytest.raises(ModelError, match="give a tuple with the list inside"):
        pruning.find_groups(model, [[X, X]])
    with pytest.raises(ModelError, match="at least one example"):
        pruning.find_groups(model, [])
