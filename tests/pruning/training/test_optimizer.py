"""An optimizer that is carried over trains the narrowed model as it would have trained the masked one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

import pruning
from pruning.errors import PlanError
from pruning.graph.axes import kept
from pruning.plan.slicing import keep
from pruning.training.optimizer import narrow_optimizer
from tests.pruning.networks import IMAGE, make

X = torch.randn(IMAGE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def _train(
    model: nn.Module, optimizer: Optimizer, steps: int, after_backward: Callable[[], None] | None = None
) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        model(X).square().mean().backward()
        if after_backward is not None:
            after_backward()
        optimizer.step()


def _plan(groups: pruning.Groups) -> pruning.Plan:
    return pruning.Plan.of(groups, {group.name: range(group.size // 2) for group in groups})


@pytest.mark.parametrize(
    "factory",
    [
        lambda p: SGD(p, lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.01),
        lambda p: AdamW(p, lr=0.01, weight_decay=0.1),
        lambda p: Adam(p, lr=0.01, amsgrad=True),
    ],
    ids=["sgd", "adamw", "amsgrad"],
)
@pytest.mark.parametrize("name", ["Plain", "Residual"])
def test_training_goes_on_as_if_nothing_had_happened(name: str, factory: Callable[..., Optimizer]) -> None:
    torch.manual_seed(0)
    model = make(name).double().eval()  # without the noise of a batch's statistics
    optimizer = factory(model.parameters())
    _train(model, optimizer, 3)
    groups = pruning.find_groups(model, X[:1])
    plan = _plan(groups)
    dense = pruning.narrow(model, plan, X[:1], groups=groups).eval()
    carried = narrow_optimizer(optimizer, model, dense, plan, groups)
    _train(dense, carried, 3)

    # The same by hand: what goes is at zero, in the weights, in what the optimizer remembers, in every gradient.
    masks = plan.masks(groups)
    stays = {
        parameter: _mask(parameter, [kept(axis, masks) for axis in groups.trace.parameters[full]])
        for full, parameter in model.named_parameters()
    }

    def clear(of: Callable[[Tensor], list[Tensor]]) -> None:
        for parameter, mask in stays.items():
            for tensor in of(parameter):
                tensor.mul_(mask)

    def remembered(p: Tensor) -> list[Tensor]:
        return [p.data, *(v for v in optimizer.state[p].values() if isinstance(v, Tensor) and v.shape == p.shape)]

    clear(remembered)
    _train(model, optimizer, 3, lambda: clear(lambda p: [p.grad] if p.grad is not None else []))
    for full, parameter in dense.named_parameters():
        expected = keep(model.get_parameter(full).detach(), groups.trace.parameters[full], masks)
        torch.testing.assert_close(parameter.detach(), expected, rtol=1e-9, atol=1e-12)


def _mask(parameter: Tensor, alongs: list[Tensor]) -> Tensor:
    mask = torch.ones_like(parameter)
    for position, along in enumerate(alongs):
        mask *= along.to(mask.dtype).reshape([-1 if i == position else 1 for i in range(parameter.ndim)])
    return mask


def test_the_carried_optimizer_owns_every_parameter_in_its_group_with_its_options() -> None:
    model = make("Plain")
    weights = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = SGD([{"params": weights, "weight_decay": 0.1}, {"params": others, "lr": 0.5}], lr=0.1, momentum=0.9)
    groups = pruning.find_groups(model, X[:1].float())
    plan = _plan(groups)
    dense = pruning.narrow(model, plan, X[:1].float(), groups=groups)
    carried = narrow_optimizer(optimizer, model, dense, plan, groups)
    owned = [id(p) for group in carried.param_groups for p in group["params"]]
    assert sorted(owned) == sorted(id(p) for p in dense.parameters())
    assert [(g["lr"], g["weight_decay"], len(g["params"])) for g in carried.param_groups] == [
        (0.1, 0.1, len(weights)),
        (0.5, 0, len(others)),
    ]
    assert [id(p) for group in optimizer.param_groups for p in group["params"]] == [id(p) for p in (*weights, *others)]


def test_what_cannot_be_narrowed_along_is_refused() -> None:
    model = make("Plain")
    groups = pruning.find_groups(model, X[:1].float())
    plan = _plan(groups)
    dense = pruning.narrow(model, plan, X[:1].float(), groups=groups)
    optimizer = torch.optim.Adafactor(model.parameters())
    model(X.float()).square().mean().backward()
    optimizer.step()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    with pytest.raises(PlanError, match=r"Adafactor remembers 'row_var' of .* make a new optimizer"):
        narrow_optimizer(optimizer, model, dense, plan, groups)
    with pytest.raises(PlanError, match="none of Sequential's"):
        narrow_optimizer(SGD(model.parameters(), lr=0.1), nn.Sequential(nn.Linear(2, 2)), dense, plan, groups)
