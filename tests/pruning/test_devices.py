"""What training and evaluation call on a batch makes its tensors where the batch is.

The device `meta` stands in for a GPU: its tensors have no values, torch refuses to compute with them and the CPU's
together, and reading a value is an error, so that code which would make a GPU wait is found too.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pruning.detection import Detection
from pruning.embedding import Embedding
from pruning.evaluation import cross_entropy, distillation_loss, losses_of_each, top1
from pruning.task import (
    CausalLM,
    Classification,
    ImageToImage,
    MultiLabel,
    Regression,
    Segmentation,
    Task,
    TokenClassification,
)
from pruning.training.recipe import Recipe
from pruning.training.step import MovingAverage, mix
from zoo.augment import crop

META = "meta"


def floats(*shape: int) -> Tensor:
    return torch.empty(shape, device=META)


def classes(*shape: int) -> Tensor:
    return torch.empty(shape, device=META, dtype=torch.int64)


CASES: list[tuple[Task, Tensor, Tensor]] = [
    (Classification(), floats(6, 3), classes(6)),
    (MultiLabel(), floats(6, 3), floats(6, 3)),
    (Regression(), floats(6, 1), floats(6, 1)),
    (ImageToImage(), floats(6, 1, 4, 4), floats(6, 1, 4, 4)),
    (Segmentation(), floats(6, 3, 4, 4), classes(6, 4, 4)),
    (TokenClassification(), floats(6, 5, 3), classes(6, 5)),
    (CausalLM(), floats(6, 5, 3), classes(6, 5)),
    (Embedding(), floats(6, 3), floats(6, 3)),
]


@pytest.mark.parametrize(("task", "outputs", "targets"), CASES, ids=[type(case[0]).__name__ for case in CASES])
def test_losses_and_answers_of_a_task_are_on_the_device_of_its_batch(
    task: Task, outputs: Tensor, targets: Tensor
) -> None:
    for found in (
        task(outputs, targets),
        task.distillation(outputs, outputs, 4.0),
        task.answers(outputs),
        losses_of_each(task, outputs, targets),
    ):
        assert found.device.type == META
    if (smoothed := task.smoothed(0.1)) is not None:
        value: Any = smoothed(outputs, targets)
        assert all(one.device.type == META for one in (value if isinstance(value, tuple) else (value,)))


def test_the_losses_of_images_with_boxes_are_on_one_device() -> None:
    class Constant(Detection):
        def loss(self, outputs: Any, targets: Any) -> Any:
            del outputs, targets
            return floats()

    boxes = torch.tensor([[[0.0, 0, 4, 4, 1, 0]], [[1.0, 1, 2, 2, 0, 0]]])
    sums, counts = Constant().sums_of_each(floats(2, 3), boxes)
    assert (sums.device.type, counts.device.type) == (META, META)


def test_the_built_in_losses_and_metric_are_on_the_device_of_the_batch() -> None:
    logits = floats(6, 3)
    found = (cross_entropy(logits, classes(6)), distillation_loss(logits, logits, 4.0), top1(logits, classes(6)))
    assert {one.device.type for one in found} == {META}


@pytest.mark.parametrize("recipe", [Recipe(mixup=0.2), Recipe(cutmix=1.0)])
def test_mixed_samples_stay_where_they_were(recipe: Recipe) -> None:
    mixed = mix(floats(6, 1, 8, 8), classes(6), recipe, 0, 1)
    assert mixed.inputs.device.type == META
    assert mixed.loss(cross_entropy, floats(6, 3), classes(6)).device.type == META


def test_an_average_of_weights_is_kept_where_they_are() -> None:
    model = nn.BatchNorm1d(3, device=META)
    average = MovingAverage(model, 0.9)
    average.update(model)
    with average.swapped_in(model):
        assert {tensor.device.type for tensor in model.state_dict().values()} == {META}


def test_the_stand_in_finds_a_tensor_on_the_cpu() -> None:
    with pytest.raises(RuntimeError, match="device"):
        cross_entropy(floats(6, 3), torch.zeros(6, dtype=torch.int64)) + torch.zeros(2)


def test_the_augmentation_runs_on_the_cpu_where_samples_come_from() -> None:
    assert crop(torch.zeros(2, 1, 8, 8), torch.Generator(), padding=1).device.type == "cpu"
