from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from pruning.errors import DataError, ModelError
from pruning.evaluation import cross_entropy, evaluate, top1
from pruning.own_evaluation import Loader, evaluate_by


def samples(num: int = 10, classes: int = 3) -> SimpleNamespace:
    generator = torch.Generator().manual_seed(0)
    return SimpleNamespace(
        inputs=torch.randn(num, 4, generator=generator), targets=torch.randint(classes, (num,), generator=generator)
    )


def test_accuracy_and_loss_are_means_over_samples_whatever_the_batch_size() -> None:
    torch.manual_seed(0)
    model, data = nn.Linear(4, 3), samples()
    outputs = model(data.inputs)
    for batch_size in (1, 3, 10, 99):
        found = evaluate(model, data, batch_size=batch_size)
        assert found.score == pytest.approx((outputs.argmax(1) == data.targets).double().mean().item())
        assert found.loss == pytest.approx(nn.functional.cross_entropy(outputs, data.targets).item(), rel=1e-5)
        assert found.num_samples == 10


def test_model_modes_and_statistics_are_untouched() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Dropout(0.5))
    model.train()
    model[1].eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    evaluate(model, samples())
    assert [module.training for module in model.modules()] == [True, True, False, True]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_progress_hears_of_every_batch() -> None:
    heard: list[tuple[int, int]] = []
    evaluate(nn.Linear(4, 3), samples(), batch_size=4, progress=lambda done, total: heard.append((done, total)))
    assert heard == [(1, 3), (2, 3), (3, 3)]


def test_top1_averages_over_positions() -> None:
    outputs = torch.zeros(2, 3, 2)
    outputs[0, 1] = 1
    outputs[1, 2, 0] = 1
    assert top1(outputs, torch.tensor([[1, 1], [2, 2]])).tolist() == [1.0, 0.5]


@pytest.mark.parametrize("num_targets", [0, 4])
def test_unequal_numbers_of_inputs_and_targets_are_refused(num_targets: int) -> None:
    data = SimpleNamespace(inputs=torch.zeros(5, 4), targets=torch.zeros(num_targets, dtype=torch.long))
    with pytest.raises(DataError, match=f"5 inputs but {num_targets} targets"):
        evaluate(nn.Linear(4, 3), data)


def test_no_samples_are_refused() -> None:
    with pytest.raises(DataError, match="no samples"):
        evaluate(nn.Linear(4, 3), SimpleNamespace(inputs=torch.zeros(0, 4), targets=torch.zeros(0, dtype=torch.long)))


def test_metric_that_gives_one_number_for_all_is_refused() -> None:
    with pytest.raises(ModelError, match="one value per sample"):
        evaluate(nn.Linear(4, 3), samples(), metric=lambda outputs, targets: cross_entropy(outputs, targets))


def test_loss_that_is_not_finite_is_refused() -> None:
    model = nn.Linear(4, 3)
    nn.init.constant_(model.weight, float("nan"))
    with pytest.raises(ModelError, match="expected a finite number"):
        evaluate(model, samples())


class _Own:
    """A task's evaluate, as people write it."""

    def __init__(self, **changed: Any) -> None:
        self.changed = changed

    def __call__(self, model: nn.Module, loader: Loader) -> Any:
        assert not model.training
        assert not torch.is_grad_enabled()
        assert len(loader) == 3
        hits, seen = 0, 0
        for _ in range(2):  # as often as it likes
            hits = seen = 0
            for inputs, targets in loader:
                hits += int((model(inputs).argmax(1) == targets).sum())
                seen += len(targets)
        return {"metric": torch.tensor(hits / seen), "loss": 0.5, "num_samples": seen} | self.changed


def _own_samples() -> SimpleNamespace:
    generator = torch.Generator().manual_seed(0)
    return SimpleNamespace(inputs=torch.randn(17, 4, generator=generator), targets=torch.arange(17) % 3)


def test_a_task_evaluates_by_itself() -> None:
    torch.manual_seed(0)
    model, samples = nn.Sequential(nn.Linear(4, 3), nn.Dropout()), _own_samples()
    found = evaluate_by(_Own(), model, samples, batch_size=8)
    assert found.score == pytest.approx(evaluate(model, samples).score)
    assert (found.loss, found.num_samples, found.values) == (0.5, 17, None)
    assert model.training


@pytest.mark.parametrize(
    ("own", "text"),
    [
        (_Own(num_samples=16), "saw 16 of 17 samples"),
        (_Own(metric=float("nan")), "gave metric nan and loss 0.5; expected finite numbers"),
        (_Own(metric=torch.zeros(2)), "expected a mapping with a number for each of metric, loss, num_samples"),
        (lambda model, loader: {"map": 0.5}, "gave a mapping of map .KeyError: 'metric'."),
        (lambda model, loader: 0.5, "gave a float"),
        (lambda model: 0.5, "evaluate raised TypeError: .*takes 1 positional argument but 2 were given"),
        (lambda model, loader: model(next(iter(loader))), r"evaluate raised TypeError: .*test_evaluation.py, line \d+"),
    ],
)
def test_what_a_task_s_evaluate_gives_is_held_to_its_contract(own: Any, text: str) -> None:
    with pytest.raises(ModelError, match=text):
        evaluate_by(own, nn.Linear(4, 3), _own_samples(), batch_size=8)
