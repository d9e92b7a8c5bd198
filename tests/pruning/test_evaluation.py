from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from pruning.errors import DataError, ModelError
from pruning.evaluation import cross_entropy, evaluate, top1


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
