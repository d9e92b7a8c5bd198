"""Residual streams in their principal components: the same function, or a refusal that says why."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pruning
from pruning.plan.plan import Plan
from pruning.plan.verification import outputs_of, relative_difference
from pruning.recovery import basis
from pruning.recovery.basis import in_principal_components
from pruning.statistics.moments import contrasts

SIZE, TOKENS = 12, 5


class GainPlusOne(nn.Module):
    """RMS norm as Gemma has it: the gain is what is learned, plus 1."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(SIZE))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last axis."""
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * (1 + self.weight)


class Scale(nn.Module):
    """A factor for each channel."""

    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.rand(SIZE))

    def forward(self, x: Tensor) -> Tensor:
        """Scale the last axis."""
        return x * self.gamma


class Net(nn.Module):
    """Two residual branches over tokens, then the mean over tokens is classified."""

    def __init__(
        self,
        norm: Callable[[], nn.Module],
        *,
        last: Callable[[], nn.Module] | None = None,
        bias: bool = True,
        behind: Callable[[], nn.Module] = nn.Identity,
        stream: Callable[[Tensor], Tensor] = lambda x: x,
        after: bool = False,
    ) -> None:
        super().__init__()
        self.embed = nn.Linear(6, SIZE)
        self.place = nn.Parameter(torch.randn(TOKENS, SIZE))
        self.norms = nn.ModuleList([norm(), norm()])
        self.reads = nn.ModuleList([nn.Linear(SIZE, 20, bias=bias) for _ in range(2)])
        self.writes = nn.ModuleList([nn.Linear(20, SIZE) for _ in range(2)])
        self.behind = nn.ModuleList([behind(), behind()])
        self.last, self.head = (last or norm)(), nn.Linear(SIZE, 3, bias=bias)
        self.stream, self.after = stream, after

    def forward(self, x: Tensor) -> Tensor:
        """Classify [N, T, 6]."""
        x = self.embed(x) + self.place
        for norm, read, write, behind in zip(self.norms, self.reads, self.writes, self.behind, strict=True):
            if self.after:
                x = norm(x + behind(write(F.gelu(read(x)))))
            else:
                x = self.stream(x) + behind(write(F.gelu(read(norm(x)))))
        return self.head(self.last(x).mean(1))  # type: ignore[no-any-return]


def layer_norm() -> nn.Module:
    return nn.LayerNorm(SIZE)


def rms_norm() -> nn.Module:
    return nn.RMSNorm(SIZE)


def made(*args: Callable[[], nn.Module], **kwargs: object) -> Net:
    """A network whose gains and biases are none of those with which they begin."""
    model = Net(*args, **kwargs).eval()  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def inputs(count: int) -> Tensor:
    return torch.randn(count, TOKENS, 6)


def groups_of(model: nn.Module) -> pruning.Groups:
    return pruning.find_groups(model, inputs(2), allow_mixed=True)


def difference(model: nn.Module, other: nn.Module) -> float:
    given = inputs(16)
    return relative_difference(outputs_of(model, given), outputs_of(other, given))


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(lambda: made(layer_norm), id="layer norm"),
        pytest.param(lambda: made(layer_norm, bias=False), id="layer norm whose bias nothing can take over"),
        pytest.param(lambda: made(rms_norm), id="RMS norm"),
        pytest.param(lambda: made(GainPlusOne, bias=False), id="gain plus one"),
        pytest.param(lambda: made(layer_norm, behind=Scale), id="branches that are scaled"),
    ],
)
def test_turned_model_computes_the_same(model: Callable[[], Net]) -> None:
    original = model()
    before = {name: tensor.clone() for name, tensor in original.state_dict().items()}
    turned = in_principal_components(groups_of(original), inputs(64))
    assert len(turned.streams) == 1
    assert not turned.refused
    assert difference(original, turned.model) < 1e-5
    assert not torch.allclose(turned.model.get_parameter("embed.weight"), before["embed.weight"])
    assert all(torch.equal(before[name], tensor) for name, tensor in original.state_dict().items())


@pytest.mark.parametrize("norm", [layer_norm, rms_norm])
def test_first_channels_hold_all_of_a_stream_of_low_rank(norm: Callable[[], nn.Module]) -> None:
    """What is left then differs from the original by the norms' gains alone: they see fewer channels."""
    model, rank = made(norm, bias=False), 4
    with torch.no_grad():
        for one in (*model.norms, model.last):
            if isinstance(one, nn.LayerNorm):
                one.bias.zero_()
        space = torch.linalg.qr(torch.randn(SIZE, rank)).Q
        for name, parameter in model.named_parameters():
            if name == "place":
                parameter.copy_(parameter @ space @ space.T)
            elif name.startswith(("embed.", "writes.")):
                parameter.copy_(space @ space.T @ parameter)
    turned = in_principal_components(groups_of(model), inputs(64)).model
    kept = rank + 1 if norm is layer_norm else rank
    groups = groups_of(turned)
    stream = next(group for group in groups if group.mixed)
    plan = Plan.of(groups, {stream.name: list(range(kept, SIZE))})
    dense = pruning.narrow(turned, plan, inputs(2), groups=groups)
    with torch.no_grad():
        for one in (*dense.norms, dense.last):  # type: ignore[misc]
            one.weight.mul_((SIZE / kept) ** 0.5)
            one.eps = (one.eps or torch.finfo(torch.float32).eps) * SIZE / kept
    assert difference(model, dense) < 1e-4
    untouched = groups_of(model)
    whole = pruning.narrow(model, Plan.of(untouched, plan.removed), inputs(2), groups=untouched)
    with torch.no_grad():
        for one in (*whole.norms, whole.last):  # type: ignore[misc]
            one.weight.mul_((SIZE / kept) ** 0.5)
    assert difference(model, whole) > 0.1, "the same channels of the original"


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (lambda: made(layer_norm, after=True), "without a layer that reads its channels in between"),
        (lambda: made(layer_norm, last=rms_norm), "both layer norms and RMS norms"),
        (lambda: made(layer_norm, stream=F.gelu), "takes the channels one by one"),
    ],
)
def test_stream_that_cannot_be_turned_stays_and_says_why(model: Callable[[], Net], why: str) -> None:
    original = model()
    turned = in_principal_components(groups_of(original), inputs(64))
    assert not turned.streams
    assert len(turned.refused) == 1
    assert why in next(iter(turned.refused.values()))
    assert difference(original, turned.model) == 0


def test_code_that_fails_while_a_stream_is_turned_leaves_it_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    model = made(layer_norm)
    groups, samples = groups_of(model), inputs(8)

    def fails(*_: object) -> Tensor:
        torch.rand(3)
        raise ValueError("no more than three calls")

    monkeypatch.setattr(basis, "_rotation", fails)
    state = torch.get_rng_state()
    turned = in_principal_components(groups, samples)
    assert torch.equal(state, torch.get_rng_state())
    assert not turned.streams
    assert "what reads it can't be found: no more than three calls" in next(iter(turned.refused.values()))
    assert difference(model, turned.model) == 0


def test_tied_embedding_is_refused_by_name() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.norm, self.head = nn.Embedding(7, SIZE), nn.LayerNorm(SIZE), nn.Linear(SIZE, 7, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, ids: Tensor) -> Tensor:
            return self.head(self.norm(self.embed(ids)))  # type: ignore[no-any-return]

    groups = pruning.find_groups(Tied(), torch.arange(6)[None], allow_mixed=True)
    refused = in_principal_components(groups, torch.randint(7, (8, 6))).refused
    assert "untie" in next(iter(refused.values()))


def test_contrasts_are_orthonormal_and_nested() -> None:
    found = contrasts(SIZE)
    assert torch.allclose(found @ found.T, torch.eye(SIZE - 1, dtype=torch.float64))
    assert torch.allclose(found.sum(1), torch.zeros(SIZE - 1, dtype=torch.float64))
    for row, values in enumerate(found):
        assert len(set(values[: row + 1].tolist())) == 1
        assert not values[row + 2 :].any()
