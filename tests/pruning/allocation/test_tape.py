from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from pruning.allocation.dataflow import Unsuitable
from pruning.allocation.tape import Replay, record
from pruning.graph.dispatch import state_of
from pruning.statistics.layer_hooks import observe
from tests.pruning.allocation.test_prefix_cache import FACTORIES


class By(nn.Module):
    """A linear layer, and a function of what it gives and of a buffer."""

    def __init__(self, function: object) -> None:
        super().__init__()
        self.layer, self.function = nn.Linear(4, 4), function
        self.register_buffer("seen", torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.function(self.layer(x), self.seen)  # type: ignore[operator]
        return found


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach() for name, tensor in state_of(model).items()}


@pytest.mark.parametrize("name", FACTORIES)
def test_a_tape_gives_other_inputs_the_bits_of_a_pass(name: str) -> None:
    torch.manual_seed(0)
    model, one, other = FACTORIES[name]().eval(), torch.randn(3, 1, 8, 8), torch.randn(3, 1, 8, 8)
    before = [other.clone(), *(tensor.clone() for tensor in state(model).values())]
    tape = record(model, one)
    (expected,), (found,) = observe(model, other, []), Replay(tape, state(model), [other]).outputs()
    assert torch.equal(found, expected)
    assert all(map(torch.equal, before, [other, *state(model).values()]))


@pytest.mark.parametrize("name", FACTORIES)
def test_looking_ahead_and_parking_change_nothing(name: str, tmp_path: object) -> None:
    torch.manual_seed(0)
    model, inputs = FACTORIES[name]().eval(), torch.randn(3, 1, 8, 8)
    (expected,) = observe(model, inputs, [])
    replay = Replay(record(model, inputs), state(model), [inputs.clone()])
    steps = len(replay.tape.calls)
    for at in range(0, steps, max(1, steps // 12)):
        replay.advance(at)
        replay.look_ahead(lambda *_: None)
        size = replay.num_bytes
        replay.park(tmp_path / "values")  # type: ignore[operator]
        assert replay.num_bytes == 0 < size
        replay.unpark()
        assert replay.num_bytes == size
    assert torch.equal(replay.outputs()[0], expected)


def test_memory_holds_what_is_read_later_alone() -> None:
    model = nn.Sequential(*(nn.Linear(64, 64) for _ in range(20)))
    inputs = torch.randn(32, 64)
    replay = Replay(record(model, inputs), state(model), [inputs.clone()])
    for at in range(len(replay.tape.calls)):
        replay.advance(at)
        assert replay.num_bytes == inputs.nbytes


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda x, _: x * float(x.sum()), "gives a number"),
        (lambda x, _: x + torch.rand_like(x), "draws random numbers"),
        (lambda x, _: functional.dropout(x, training=True), "draws random numbers"),
        (lambda x, seen: x + seen.add_(1), "writes into what was there before"),
        (lambda x, seen: x + seen.view(2, 2).mul_(2).flatten(), "writes into what was there before"),
        (
            lambda x, seen: functional.batch_norm(x, seen, torch.ones(4), training=True),
            "writes into what was there before",
        ),
        (lambda x, _: x * torch.tensor(x.detach().numpy().max()), "takes values out of PyTorch"),
    ],
)
def test_what_another_pass_may_do_otherwise_is_refused(function: object, reason: str) -> None:
    with pytest.raises(Unsuitable, match=reason):
        record(By(function).eval(), torch.randn(3, 4))


def test_dropout_that_drops_nothing_and_constants_are_no_obstacle() -> None:
    torch.manual_seed(0)
    model = By(lambda x, seen: functional.dropout(x, training=False) * torch.tensor([1.0, 2, 3, 4]) + seen).eval()
    tape, other = record(model, torch.randn(3, 4)), torch.randn(3, 4)
    assert torch.equal(Replay(tape, state(model), [other]).outputs()[0], model(other))


def test_the_first_read_of_a_parameter_is_that_of_its_memory() -> None:
    weight = nn.Parameter(torch.randn(4, 4))
    model = By(lambda x, seen: x @ weight.T[:, :2] + seen[:2]).eval()
    model.layer.weight = weight
    tape = record(model, torch.randn(3, 4))
    names = [call.function.__name__ for call in tape.calls]
    assert names[tape.first_reads["layer.weight"]].startswith("linear")
    assert names[tape.first_reads["seen"]].startswith("slice")
