"""What a recipe may ask of a step, each against the same computed by hand."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from pruning.errors import SettingsError
from pruning.evaluation import evaluate
from pruning.task import Classification, Segmentation
from pruning.training.callbacks import Callbacks
from pruning.training.recipe import Recipe
from pruning.training.step import MovingAverage
from pruning.training.trainer import finetune


def network(*, norms: bool = False) -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16) if norms else nn.Identity(), nn.ReLU(), nn.Linear(16, 3))


def samples(number: int = 96) -> SimpleNamespace:
    generator = torch.Generator().manual_seed(0)
    targets = torch.arange(number) % 3
    inputs = torch.randn(number, 6, generator=generator) + 4 * functional.one_hot(targets, 6)
    return SimpleNamespace(inputs=inputs, targets=targets)


def recipe(**changed: Any) -> Recipe:
    return Recipe.model_validate({"epochs": 2, "batch_size": 16, "learning_rate": 0.05, "optimizer": "sgd"} | changed)


def weights(model: nn.Module) -> Tensor:
    return torch.cat([tensor.detach().double().flatten() for tensor in model.parameters()])


def trained(model: nn.Module, by: Recipe, data: Any = None, **given: Any) -> Tensor:
    finetune(model, samples() if data is None else data, by, seed=0, **given)
    return weights(model)


@pytest.mark.parametrize("parts", [2, 3, 8])
@pytest.mark.parametrize("distillation", [0.0, 0.5])
def test_accumulated_gradients_are_those_of_the_whole_batch(parts: int, distillation: float) -> None:
    teacher = network(norms=True).eval() if distillation else None
    whole = trained(network(), recipe(distillation=distillation, gradient_clip=0.1), teacher=teacher)
    divided = recipe(distillation=distillation, gradient_clip=0.1, gradient_accumulation=parts)
    assert torch.allclose(trained(network(), divided, teacher=teacher), whole, rtol=0, atol=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_accumulation_counts_what_the_loss_counts(smoothing: float) -> None:
    """Pixels that are ignored make the parts of a batch weigh differently."""
    generator = torch.Generator().manual_seed(3)
    masks = torch.randint(0, 4, (32, 5, 5), generator=generator)
    masks[torch.rand(32, generator=generator) < 0.6] = -100
    masks[0, 0, 0] = 1
    data = SimpleNamespace(inputs=torch.randn(32, 1, 5, 5, generator=generator), targets=masks)
    torch.manual_seed(1)
    model = nn.Conv2d(1, 4, 3, padding=1)
    found = [
        trained(
            copy.deepcopy(model),
            recipe(gradient_accumulation=parts, label_smoothing=smoothing, learning_rate=0.5),
            data,
            loss=Segmentation(),
        )
        for parts in (1, 4, 8)
    ]
    assert torch.allclose(found[1], found[0], rtol=0, atol=2e-6)
    assert torch.allclose(found[2], found[0], rtol=0, atol=2e-6)


def test_no_part_of_a_batch_is_a_single_sample() -> None:
    trained(network(norms=True), recipe(gradient_accumulation=16, batch_size=33), samples(67))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_learns_and_leaves_weights_and_outputs_alone(precision: str) -> None:
    model, seen = network(norms=True), set[torch.dtype]()
    model[0].register_forward_hook(lambda _module, _inputs, output: seen.add(output.dtype))

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        assert outputs.dtype == torch.float32
        return functional.cross_entropy(outputs, targets)

    trained(model, recipe(precision=precision, epochs=10), loss=loss)
    assert seen == {torch.bfloat16 if precision == "bf16" else torch.float16}
    assert {tensor.dtype for tensor in model.parameters()} == {torch.float32}
    assert evaluate(model, samples()).score > 0.9
    assert seen == {torch.bfloat16 if precision == "bf16" else torch.float16, torch.float32}, "judged in fp32"


@dataclass
class Answer:
    logits: Tensor
    hidden: Tensor


@pytest.mark.parametrize(
    "held", [lambda out: {"logits": out, "more": [out]}, lambda out: (out, out), lambda out: Answer(out, out)]
)
def test_half_precision_outputs_are_fp32_in_any_container(held: Callable[[Tensor], Any]) -> None:
    class Holding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network()

        def forward(self, inputs: Tensor) -> Any:
            return held(self.inner(inputs))

    plain, model = network(), Holding()
    trained(plain, recipe(precision="bf16", gradient_accumulation=2), loss=Classification())
    trained(model, recipe(precision="bf16", gradient_accumulation=2), loss=Classification())
    assert torch.equal(weights(plain), weights(model))


def test_a_step_whose_fp16_gradients_overflow_is_left_out() -> None:
    data, model = samples(16), network()
    before = weights(model)
    one = recipe(precision="fp16", steps=1, epochs=6)
    assert torch.equal(trained(model, one, data, loss=lambda out, y: 1e4 * functional.cross_entropy(out, y)), before)
    assert not torch.equal(trained(model, one, data), before)


def test_steps_end_a_run_within_an_epoch() -> None:
    heard: list[tuple[int, int]] = []
    callbacks = Callbacks(progress=lambda *counts: heard.append(counts))
    history = finetune(network(), samples(), recipe(epochs=6, steps=8), seed=0, callbacks=callbacks)
    assert heard == [(step, 8) for step in range(1, 9)]
    assert len(history.losses) == 2


def test_steps_of_whole_epochs_are_those_epochs() -> None:
    for optimizer in ("sgd", "adamw"):
        by_steps = recipe(epochs=6, steps=12, optimizer=optimizer, warmup_epochs=0.5)
        assert torch.equal(
            trained(network(), by_steps), trained(network(), recipe(optimizer=optimizer, warmup_epochs=0.5))
        )


def test_layer_rates_are_factors_on_each_step() -> None:
    once = {"steps": 1, "epochs": 6, "schedule": "constant", "momentum": 0.0, "weight_decay": 0.0}
    before, plain, scaled = (network() for _ in range(3))
    trained(plain, recipe(**once))
    trained(scaled, recipe(**once, layer_rates={"0": 0.25, "3.bias": 2.0}))
    for name, factor in (("0.weight", 0.25), ("0.bias", 0.25), ("3.weight", 1.0), ("3.bias", 2.0)):
        start, one, other = (model.get_parameter(name).detach() for model in (before, plain, scaled))
        assert torch.allclose(other - start, factor * (one - start), rtol=1e-4, atol=1e-7), name


def test_layers_that_are_not_there_are_named() -> None:
    with pytest.raises(SettingsError, match=r"recipe 'recipe': layer_rates: unknown module or parameter 'layer9'"):
        trained(network(), recipe(layer_rates={"layer9": 0.1}))


def test_training_ends_with_the_moving_average() -> None:
    states: list[dict[str, Tensor]] = []
    model = network(norms=True)
    average = MovingAverage(model, 0.6)

    def note(_step: int, _steps: int, _rate: float) -> None:
        states.append({name: tensor.clone() for name, tensor in model.state_dict().items()})

    by_hand = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    finetune(model, samples(), recipe(ema=0.6), seed=0, callbacks=Callbacks(after_step=note))
    for step, state in enumerate(states, start=1):
        decay = min(0.6, (1 + step) / (10 + step))
        for name, tensor in state.items():
            floating = tensor.is_floating_point()
            by_hand[name] = decay * by_hand[name] + (1 - decay) * tensor if floating else tensor
        average.update(_with(model, state))
    assert len(states) == 12
    for name, tensor in model.state_dict().items():
        assert torch.allclose(tensor, by_hand[name], atol=1e-6), name
    with average.swapped_in(model):
        assert torch.allclose(
            weights(model), torch.cat([by_hand[n].flatten() for n, _ in model.named_parameters()]).double()
        )


def _with(model: nn.Module, state: dict[str, Tensor]) -> nn.Module:
    other = copy.deepcopy(model)
    other.load_state_dict(state)
    return other


def _scripted(*shares: float) -> Callable[[nn.Module], Tensor]:
    left = iter(shares)
    return lambda _model: (torch.arange(100) < 100 * next(left)).float()


@pytest.mark.parametrize(
    ("scores", "settings", "epochs", "kept"),
    [
        ((0.3, 0.5, 0.5, 0.4), {"patience": 2}, 3, 3),
        ((0.3, 0.5, 0.5, 0.4), {"patience": 2, "restore_best": True}, 3, 1),
        ((0.3, 0.5, 0.6, 0.7, 0.8, 0.9), {"patience": 1}, 5, 5),
        ((0.3, 0.35, 0.39), {"patience": 2, "min_delta": 0.1}, 2, 2),
        ((0.9, 0.5), {"patience": 1, "restore_best": True}, 1, 0),
    ],
)
def test_training_ends_where_it_gets_no_better(
    scores: tuple[float, ...], settings: dict[str, Any], epochs: int, kept: int
) -> None:
    model, states, judge = network(), list[Tensor](), _scripted(*scores)

    def validate(now: nn.Module) -> Tensor:
        states.append(weights(now))
        return judge(now)

    history = finetune(
        model, samples(), recipe(epochs=5, early_stopping=settings), seed=0, callbacks=Callbacks(validate=validate)
    )
    assert (len(history.losses), history.kept) == (epochs, kept)
    assert history.scores == pytest.approx(scores)
    assert torch.equal(weights(model), states[kept])


@pytest.mark.parametrize(
    ("by", "callbacks", "text"),
    [
        (recipe(early_stopping={"patience": 1}), Callbacks(), "no `validate` was given"),
        (recipe(ema=0.9), Callbacks(judge=_scripted()), "has ema or early_stopping, and a judge undoes its epochs"),
        (recipe(channels_last=True), Callbacks(), "sets channels_last, for CUDA alone; the model is on cpu"),
        (
            recipe(early_stopping={"patience": 1}),
            Callbacks(validate=_scripted(), penalty=lambda: torch.zeros(())),
            "has to reach its end",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(by: Recipe, callbacks: Callbacks, text: str) -> None:
    with pytest.raises(SettingsError, match=text):
        finetune(network(), samples(), by, seed=0, callbacks=callbacks)


@pytest.mark.slow
def test_a_compiled_model_is_trained_in_place() -> None:
    plain, compiled = network(norms=True), network(norms=True)
    first, second = trained(plain, recipe()), trained(compiled, recipe(compile=True))
    assert torch.allclose(first, second, atol=1e-4)
    assert not torch.equal(first, weights(network(norms=True)))
    assert list(compiled.state_dict()) == list(plain.state_dict())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_channels_last_trains_alike_and_leaves_no_trace() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 3)).cuda()
    data = SimpleNamespace(inputs=torch.randn(32, 3, 8, 8), targets=torch.arange(32) % 3)
    other = copy.deepcopy(model)
    assert torch.allclose(trained(model, recipe(), data), trained(other, recipe(channels_last=True), data), atol=1e-3)
    assert all(tensor.is_contiguous() for tensor in other.parameters())
