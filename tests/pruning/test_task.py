"""Tasks: what a batch is taken apart into, losses over what counts, outputs in any container, what doesn't fit."""

from __future__ import annotations

from collections import namedtuple
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from pruning.containers import main_output
from pruning.errors import DataError, ModelError
from pruning.evaluation import evaluate, sums_of_each
from pruning.plan.dry_run import find_groups
from pruning.scoring import Scorer
from pruning.statistics.collect import collect
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
from pruning.training.trainer import finetune

GENERATOR = torch.Generator().manual_seed(0)


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=GENERATOR)


def classes(count: int, *shape: int, ignored: int | None = None) -> Tensor:
    found = torch.randint(count, shape, generator=GENERATOR)
    if ignored is not None:
        found[torch.rand(shape, generator=GENERATOR) < 0.4] = ignored
    return found


CASES: dict[str, tuple[Task, Tensor, Tensor]] = {
    "classification": (Classification(), randn(13, 4), classes(4, 13)),
    "multi_label": (MultiLabel(), randn(13, 4), classes(2, 13, 4)),
    "regression": (Regression(), randn(13, 1), randn(13)),
    "segmentation": (Segmentation(255), randn(13, 3, 5, 5), classes(3, 13, 5, 5, ignored=255)),
    "image_to_image": (ImageToImage(), randn(13, 3, 4, 4), randn(13, 3, 4, 4)),
    "token_classification": (TokenClassification(), randn(13, 6, 5), classes(5, 13, 6, ignored=-100)),
    "causal_lm": (CausalLM(), randn(13, 6, 5), classes(5, 13, 6, ignored=-100)),
}


class Stored(nn.Module):
    """A model whose outputs are looked up, so that each sample's are known."""

    def __init__(self, outputs: Tensor) -> None:
        super().__init__()
        self.outputs = nn.Parameter(outputs)

    def forward(self, index: Tensor) -> Any:
        return {"logits": self.outputs[index.long().flatten()], "hidden": self.outputs.detach()}


@pytest.mark.parametrize("name", CASES)
def test_loss_and_score_do_not_depend_on_the_batches(name: str) -> None:
    task, outputs, targets = CASES[name]
    samples = SimpleNamespace(inputs=torch.arange(13)[:, None].float(), targets=targets)
    found = [
        evaluate(
            Stored(outputs), samples, loss=task, metric=Scorer(task.metric(), task.predict), batch_size=size, each=True
        )
        for size in (1, 4, 13)
    ]
    for one in found:
        assert one.loss == pytest.approx(task(outputs, targets).item(), rel=1e-5)
        assert one.score == pytest.approx(found[0].score, rel=1e-9)
        assert one.losses is not None
        assert one.losses.mean().item() == pytest.approx(one.loss, rel=1e-5)
    assert (found[0].values is not None) == task.mean_over_samples


@pytest.mark.parametrize("name", CASES)
def test_gradients_flow_and_a_teacher_that_answers_alike_teaches_nothing(name: str) -> None:
    task, outputs, targets = CASES[name]
    own = outputs.clone().requires_grad_()
    task(own, targets).backward()  # type: ignore[no-untyped-call]
    assert own.grad is not None
    assert own.grad.abs().sum() > 0
    task.check_targets(targets, [str(number) for number in range(outputs.shape[-1 if name.startswith("tok") else 1])])
    task.check_outputs(outputs, targets, ())
    assert task.distillation(outputs, outputs.clone(), 4.0).item() == pytest.approx(0, abs=1e-6)
    assert task.distillation(outputs, outputs + randn(*outputs.shape), 4.0).item() > 0
    assert task.answers(outputs).shape[0] == 13


def test_only_what_counts_is_averaged_over() -> None:
    task, outputs, targets = CASES["segmentation"]
    expected = functional.cross_entropy(outputs, targets, ignore_index=255)
    torch.testing.assert_close(task(outputs, targets), expected)
    sums, counts = sums_of_each(task, outputs, targets)
    assert counts.tolist() == (targets != 255).flatten(1).sum(1).tolist()
    torch.testing.assert_close(sums.sum() / counts.sum(), expected)


def test_a_batch_in_which_nothing_counts_has_no_loss() -> None:
    task = Segmentation()
    assert task(randn(2, 3, 4, 4), torch.full((2, 4, 4), -100)).item() == 0


def test_a_column_is_compared_with_a_row_value_by_value() -> None:
    outputs, targets = torch.tensor([[1.0], [2.0]]), torch.tensor([1.0, 4.0])
    assert Regression()(outputs, targets).item() == 2.0
    with pytest.raises(ModelError, match=r"of shape \[2, 3\] for targets \[2\]"):
        Regression()(randn(2, 3), targets)


def test_perplexity_predicts_the_next_token() -> None:
    task, outputs, targets = CASES["causal_lm"]
    metric = task.metric()
    metric.update(task.predict(outputs), targets)
    expected = functional.cross_entropy(outputs[:, :-1].flatten(0, 1), targets[:, 1:].flatten()).exp()
    assert metric.compute() == pytest.approx(expected.item(), rel=1e-5)


@dataclass
class Out:
    logits: Tensor
    hidden: Tensor | None = None


Pair = namedtuple("Pair", "first second")


@pytest.mark.parametrize(
    "wrap",
    [
        lambda x: x,
        lambda x: (x, x + 1),
        lambda x: [x],
        lambda x: {"logits": x, "loss": x.mean()},
        lambda x: {"out": x, "aux": x + 1},
        lambda x: {"heatmap": x},
        lambda x: Out(x, x + 1),
        lambda x: Pair(x, x + 1),
    ],
)
def test_the_output_that_is_read(wrap: Any) -> None:
    x = randn(2, 3)
    assert main_output(wrap(x)) is x


@pytest.mark.parametrize("wrap", [lambda x: {"a": x, "b": x}, lambda _: None, lambda _: "text", lambda _: ()])
def test_outputs_without_one_to_read_are_refused(wrap: Any) -> None:
    with pytest.raises(ModelError, match="the loss reads one tensor"):
        main_output(wrap(randn(2, 3)))


@pytest.mark.parametrize(
    ("batch", "inputs", "targets"),
    [
        ((1, 2), 1, 2),
        ([1, 2], 1, 2),
        ({"input_ids": 1, "attention_mask": 2, "labels": 3}, {"input_ids": 1, "attention_mask": 2}, 3),
        ({"image": 1, "label": 2}, {"image": 1}, 2),
    ],
)
def test_a_batch_is_taken_apart(batch: Any, inputs: Any, targets: Any) -> None:
    assert Task().unpack(batch) == (inputs, targets)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ((1, 2, 3), "a sample is 3 values; expected"),
        ({"image": 1}, "has the keys image; expected exactly one of labels"),
        ({"labels": 1, "target": 2, "x": 3}, "expected exactly one of labels"),
        (3, "a sample is a int"),
    ],
)
def test_a_batch_that_does_not_say_what_the_target_is_is_refused(batch: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Task().unpack(batch)


@pytest.mark.parametrize(
    ("task", "targets", "message"),
    [
        (Classification(), torch.zeros(4), r"targets are a tensor \[4\] of float32; expected the index"),
        (Classification(), torch.tensor([0, 3]), r"targets lie in \[0, 3\], expected \[0, 2\]"),
        (Segmentation(), torch.full((1, 2, 2), 7), r"lie in \[7, 7\], expected \[0, 2\], or -100"),
        (Segmentation(), torch.zeros(3, dtype=torch.int64), "expected masks of class indices"),
        (MultiLabel(), torch.zeros(4, 2), r"expected 0 or 1 for each class, \[N, 3\]"),
        (MultiLabel(), torch.full((4, 3), 2.0), "targets lie in"),
        (Regression(), torch.zeros(4, dtype=torch.int64), "expected floating-point values"),
        (Regression(), torch.tensor([float("nan")]), "not finite"),
        (CausalLM(), torch.zeros(4), "expected token ids"),
    ],
)
def test_targets_of_another_task_are_refused(task: Task, targets: Tensor, message: str) -> None:
    with pytest.raises(DataError, match=message):
        task.check_targets(targets, ("a", "b", "c"))


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.head = nn.Linear(4, 16), nn.Linear(3, 16), nn.Linear(16, 2)

    def forward(self, left: Tensor, right: Tensor) -> Out:
        return Out(self.head((self.left(left) + self.right(right)).relu()))


def test_several_inputs_by_name_and_a_dataclass_are_trained_on_and_scored() -> None:
    torch.manual_seed(0)
    inputs = {"left": randn(67, 4), "right": randn(67, 3)}
    samples = SimpleNamespace(inputs=inputs, targets=(inputs["left"].sum(1) > inputs["right"].sum(1)).long())
    model, task = TwoInputs(), Classification()
    scorer = Scorer(task.metric(), task.predict)
    before = evaluate(model, samples, loss=task, metric=scorer, batch_size=7)
    finetune(model, samples, Recipe(epochs=8, learning_rate=0.1, batch_size=8, label_smoothing=0.1), loss=task, seed=0)
    after = evaluate(model, samples, loss=task, metric=scorer, batch_size=7)
    assert after.score > max(0.9, before.score)
    taught = TwoInputs()
    finetune(taught, samples, Recipe(epochs=20, distillation=1.0, batch_size=8), loss=task, seed=0, teacher=model)
    assert evaluate(taught, samples, loss=task, metric=scorer).score > 0.8


def test_criteria_take_a_loss_that_gives_sum_and_count() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 3, 1)).eval()
    samples = SimpleNamespace(inputs=randn(6, 3, 5, 5), targets=classes(3, 6, 5, 5, ignored=255))
    groups = find_groups(model, samples.inputs[:1])

    def mean(outputs: Tensor, targets: Tensor) -> Tensor:
        return functional.cross_entropy(outputs, targets, ignore_index=255)

    needs = {"gradients", "activation_gradients"}
    task = Segmentation(255)
    for loss in (task, task.loss):
        found, expected = (collect(groups, needs, samples, one, batch_size=4) for one in (loss, mean))
        for need in needs:
            for group in groups:
                torch.testing.assert_close(found.of(need, group), expected.of(need, group))
