"""Boxes: packed, scored as COCO's own program scores them, and a detector's losses and boxes by what its heads give."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pruning.average_precision import MeanAveragePrecision
from pruning.batches import DatasetBatches
from pruning.detection import Detection, pack_boxes, unpack_boxes
from pruning.errors import DataError, ModelError, SettingsError
from pruning.evaluation import losses_of_each
from pruning.metrics import score_of
from pruning.raw_heads import RawHeads, up_to_heads
from pruning.scoring import Scorer
from pruning.training.recipe import Recipe
from pruning.training.trainer import finetune
from tests.rendered import Detector, Scenes

Boxes = list[dict[str, Tensor]]


def images(seed: int, count: int, *, crowd: bool, most: int, copies: int) -> tuple[Boxes, Boxes]:
    """Return predictions and targets of images: several boxes near each target, with equal scores among them."""
    g = torch.Generator().manual_seed(seed)
    predictions, targets = [], []
    for _ in range(count):
        m = int(torch.randint(0, most, (1,), generator=g))
        xy = torch.rand(m, 2, generator=g) * 50
        wh = torch.rand(m, 2, generator=g) * 30 + 2
        boxes, labels = torch.cat([xy, xy + wh], 1), torch.randint(0, 4, (m,), generator=g)
        crowds = (torch.rand(m, generator=g) < 0.2).long() if crowd else torch.zeros(m).long()
        found = boxes.repeat(copies, 1) + torch.randn(m * copies, 4, generator=g) * 1.5
        found[:, 2:] = torch.maximum(found[:, 2:], found[:, :2] + 1)
        called = labels.repeat(copies)
        wrong = torch.rand(m * copies, generator=g) < 0.15
        called = torch.where(wrong, torch.randint(0, 5, (m * copies,), generator=g), called)
        scores = (torch.rand(m * copies, generator=g) * 20).round() / 20
        kept = torch.rand(m * copies, generator=g) < 0.85
        predictions.append({"boxes": found[kept], "scores": scores[kept], "labels": called[kept]})
        targets.append({"boxes": boxes, "labels": labels, "iscrowd": crowds})
    return predictions, targets


def scored(predictions: Boxes, targets: Boxes, size: int) -> Any:
    metric = MeanAveragePrecision()
    for start in range(0, len(targets), size):
        metric.update(predictions[start : start + size], targets[start : start + size])
    return pytest.approx(metric.compute(), abs=1e-12)


@pytest.mark.parametrize(
    ("seed", "how", "expected"),
    [  # of pycocotools 2.0.11, COCOeval(..., "bbox").stats[:2]
        (0, {"crowd": True, "most": 8, "copies": 1}, (0.185993766218969, 0.4249968760264286)),
        (1, {"crowd": False, "most": 8, "copies": 1}, (0.2034513444752809, 0.48958342705108493)),
        (2, {"crowd": True, "most": 20, "copies": 3}, (0.2605863008824901, 0.5825633143770637)),
    ],
)
def test_map_is_that_of_pycocotools_whatever_the_size_of_a_batch(
    seed: int, how: dict[str, Any], expected: tuple[float, float]
) -> None:
    predictions, targets = images(seed, 61, **how)
    for size in (7, 61):
        assert scored(predictions, targets, size) == dict(zip(("map", "map_50"), expected, strict=True))


def test_map_by_hand() -> None:
    one = {"boxes": torch.tensor([[0.0, 0, 10, 10]]), "labels": torch.tensor([1])}
    two = {"boxes": torch.tensor([[0.0, 0, 10, 10], [20, 20, 30, 30]]), "labels": torch.tensor([1, 1])}
    sure = {**one, "scores": torch.tensor([0.9])}
    assert scored([sure], [one], 1) == {"map": 1.0, "map_50": 1.0}
    half = 51 / 101  # recalls 0, 0.01 … 0.5 are reached
    assert scored([sure], [two], 1) == {"map": half, "map_50": half}
    shifted = {**sure, "boxes": torch.tensor([[0.0, 0, 10, 7.5]])}  # IoU 0.75: six of ten thresholds
    assert scored([shifted], [one], 1) == {"map": 0.6, "map_50": 1.0}
    crowd = {**two, "iscrowd": torch.tensor([0, 1])}
    assert scored([sure], [crowd], 1) == {"map": 1.0, "map_50": 1.0}
    other = {**sure, "labels": torch.tensor([0])}  # a class that occurs among no targets
    assert scored([other], [one], 1) == {"map": 0.0, "map_50": 0.0}


def test_map_without_any_box_is_no_figure() -> None:
    nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0).long()}
    metric = MeanAveragePrecision()
    metric.update([{**nothing, "scores": torch.zeros(0)}], [nothing])
    with pytest.raises(ModelError, match="whether the samples hold what it measures"):
        score_of(metric, "map")


@pytest.mark.parametrize(
    ("predictions", "message"),
    [
        (torch.zeros(1, 4), "predictions are a tensor"),
        ([{"boxes": torch.zeros(1, 4)}], "hold boxes; expected boxes"),
        ([{"boxes": torch.zeros(2, 4), "scores": torch.zeros(1), "labels": torch.zeros(2)}], r"of shapes \[2, 4\]"),
        ([], "predictions of 0 images for targets of 1"),
    ],
)
def test_predictions_that_are_no_boxes_are_told(predictions: Any, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        MeanAveragePrecision().update(predictions, [{"boxes": torch.zeros(1, 4), "labels": torch.zeros(1)}])


def test_boxes_are_packed_and_unpacked() -> None:
    _, targets = images(3, 5, crowd=True, most=6, copies=1)
    packed = pack_boxes(targets)
    assert packed.shape == (5, max(len(one["labels"]) for one in targets), 6)
    for one, found in zip(targets, unpack_boxes(packed), strict=True):
        assert all(torch.equal(one[name], found[name]) for name in one)
    task = Detection()
    parts = [pack_boxes(targets[:2]), pack_boxes(targets[2:])]
    assert torch.equal(task.join(parts), packed)
    assert pack_boxes([{"boxes": [], "labels": []}]).shape == (1, 1, 6)
    task.check_targets(packed, ("a", "b", "c", "d"))


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ({"boxes": torch.zeros(1, 4)}, "a dict of boxes; expected of each image"),
        (torch.zeros(1, 5), r"a tensor \[1, 5\]"),
        ({"boxes": torch.zeros(2, 4), "labels": torch.zeros(1)}, r"boxes \[2, 4\] and labels \[1\]"),
        ({"boxes": torch.tensor([[5.0, 0, 5, 9]]), "labels": torch.zeros(1)}, r"a box is \[5.0, 0.0, 5.0, 9.0\]"),
        ({"boxes": torch.tensor([[0.0, 0, 5, 9]]), "labels": torch.tensor([3])}, r"lie in \[3, 3\], expected \[0, 1\]"),
    ],
)
def test_targets_that_are_no_boxes_are_told(target: Any, message: str) -> None:
    task = Detection()
    with pytest.raises(DataError, match=message):
        task.check_targets(task.unpack((torch.zeros(1, 3, 9, 9), [target]))[1], ("a", "b"))


def test_images_come_as_a_list_or_as_a_tensor_with_boxes_in_any_place() -> None:
    box = {"boxes": torch.tensor([[0.0, 0, 5, 9]]), "labels": torch.tensor([1])}
    task = Detection()
    for batch in (
        task.collate([(torch.ones(3, 8, 8), box), (torch.ones(3, 8, 8), box)]),
        (torch.ones(2, 3, 8, 8), (box, box)),
        task.collate([{"image": torch.ones(3, 8, 8), "target": box}] * 2),
        task.collate([{"image": torch.ones(3, 8, 8), **box}] * 2),
    ):
        inputs, targets = task.unpack(batch)
        assert torch.equal(inputs, torch.ones(2, 3, 8, 8))
        assert torch.equal(targets, pack_boxes([box, box]))
    ragged = task.collate([(torch.ones(3, 8, 8), box), (torch.ones(3, 6, 9), box)])
    with pytest.raises(
        DataError, match=r"\[3, 6, 9\], \[3, 8, 8\]; resize them in the data set, or set task.kwargs.si"
    ):
        task.unpack(ragged)
    inputs, _ = Detection(size=(8, 10)).unpack(ragged)
    assert inputs.shape == (2, 3, 8, 10)
    assert inputs.sum() == 3 * (64 + 54)
    with pytest.raises(
        DataError, match=r"an image is \[3, 8, 8\]; expected \[C, H, W\] within task.kwargs.size \[7, 9"
    ):
        Detection(size=(7, 9)).unpack(ragged)


class Drawing(Detector):
    """Moves its images at random on the way, as some detectors resize them."""

    def forward(self, images: Tensor, targets: Boxes | None = None) -> Any:
        return super().forward(images + 0.1 * torch.rand(()), targets)


@pytest.fixture(params=[Detector, Drawing])
def detectors(request: pytest.FixtureRequest) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    model = request.param(width=8)
    return model, up_to_heads(copy.deepcopy(model))


def batch() -> tuple[Tensor, Tensor]:
    task = Detection()
    return task.unpack(task.collate([Scenes(5, 6, empty=0)[i] for i in range(6)]))


@pytest.mark.parametrize("training", [True, False])
def test_losses_by_heads_are_the_models_own(detectors: tuple[nn.Module, nn.Module], training: bool) -> None:
    model, adapted = detectors
    task, (inputs, targets) = Detection(), batch()
    model.train(training)
    model.training = True  # else it returns no losses
    adapted.train(training)
    torch.manual_seed(1)
    expected = sum(model(inputs, unpack_boxes(targets)).values())
    torch.manual_seed(1)
    outputs = adapted(inputs)
    state = torch.get_rng_state()
    found = task(outputs, targets)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(found, expected)
    torch.autograd.backward([expected])
    torch.autograd.backward([found])
    for (name, one), (other, two) in zip(model.named_parameters(), adapted.named_parameters(), strict=True):
        assert name == other
        assert one.grad is not None
        assert two.grad is not None
        assert torch.equal(one.grad, two.grad)
    assert all(torch.equal(one, two) for one, two in zip(model.buffers(), adapted.buffers(), strict=True))


def test_boxes_by_heads_are_the_models_own(detectors: tuple[nn.Module, nn.Module]) -> None:
    model, adapted = (one.eval() for one in detectors)
    task, (inputs, _) = Detection(least_score=0.06), batch()
    torch.manual_seed(1)
    with torch.no_grad():
        expected = model(inputs)
        torch.manual_seed(1)
        outputs = adapted(inputs)
        found = task.predict(outputs)
    for one, two in zip(expected, found, strict=True):
        assert all(torch.equal(one[name], two[name]) for name in ("boxes", "scores", "labels"))
    answers = unpack_boxes(task.answers(outputs))
    assert [len(one["labels"]) for one in answers] == [int((one["scores"] >= 0.06).sum()) for one in expected]
    assert list(outputs) == ["logits", "sides"]


def test_losses_of_each_image_are_those_of_it_alone() -> None:
    model, task, (inputs, targets) = up_to_heads(Detector(width=8)).eval(), Detection(), batch()
    with torch.no_grad():
        found = losses_of_each(task, model(inputs), targets)
        alone = [float(task(model(inputs[i : i + 1]), targets[i : i + 1])) for i in range(len(inputs))]
    assert found.tolist() == pytest.approx(alone, rel=1e-5)


def test_an_adapted_model_is_copied_called_as_before_and_adapted_once() -> None:
    model = Detector(width=8)
    names = list(model.state_dict())
    adapted = up_to_heads(model)
    other = copy.deepcopy(adapted)
    assert type(other) is type(adapted) is type(up_to_heads(adapted))
    assert isinstance(other, Detector)
    assert type(adapted).__name__ == "Detector"
    assert list(other.state_dict()) == names
    inputs, targets = batch()
    assert set(other.train()(inputs, unpack_boxes(targets))) == {"classes", "boxes"}
    assert isinstance(other(inputs), RawHeads)
    plain = nn.Conv2d(3, 4, 3)
    assert up_to_heads(plain) is plain
    assert type(plain) is nn.Conv2d


def test_distillation_compares_what_the_heads_give() -> None:
    student, teacher = (up_to_heads(Detector(width=8)).eval() for _ in range(2))
    task, (inputs, _) = Detection(), batch()
    with torch.no_grad():
        answers = teacher(inputs)
    assert task.distillation(teacher(inputs), answers, 2.0) == 0
    found = student(inputs)
    value = task.distillation(found, answers, 2.0)
    expected = sum(float((found[name].detach() - answers[name]).square().mean()) for name in ("logits", "sides")) / 2
    assert float(value.detach()) == pytest.approx(expected, rel=1e-5)
    torch.autograd.backward([value])
    assert all(parameter.grad is not None for parameter in student.parameters())
    with pytest.raises(ModelError, match="set distillation to 0"):
        task.distillation(task.predict(found), task.predict(answers), 2.0)


@pytest.mark.thorough
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_detector_learns_boxes_batch_by_batch(precision: Any) -> None:
    torch.manual_seed(0)
    task = Detection()
    samples = DatasetBatches(Scenes(1, 32), task.unpack, collate_fn=task.collate)
    recipe = Recipe(name="short", epochs=3, batch_size=8, learning_rate=0.003, optimizer="adamw", precision=precision)
    history = finetune(up_to_heads(Detector(width=8)), samples, recipe, loss=task, seed=0)
    assert history.losses[-1] < 0.7 * history.losses[0]


class TwoStages(Detector):
    def forward(self, images: Tensor, targets: Boxes | None = None) -> Any:
        found = super().forward(images, targets)
        self.head(self.backbone(images[:, :, ::2, ::2]))
        return found


class Early(Detector):
    def forward(self, images: Tensor, targets: Boxes | None = None) -> Any:
        return super().forward(images, targets) if images.sum() > 1e9 else self.backbone(images)


class NeedsTargets(Detector):
    def forward(self, images: Tensor, targets: Boxes | None = None) -> Any:
        if self.backbone.training:
            assert targets is not None, "targets should not be none"
        return super().forward(images, targets)


class NoLosses(Detector):
    def losses(self, *_args: Any) -> Any:
        return torch.zeros(())


@pytest.mark.parametrize(
    ("kind", "call", "message"),
    [
        (TwoStages, lambda task, model, x, y: task(model(x), y), "'backbone' again after its heads|'head' again after"),
        (
            TwoStages,
            lambda task, model, x, _: task.predict(model.eval()(x)),
            "a detector of two stages needs a task of",
        ),
        (Early, lambda _task, model, x, _y: model(x), "returned before its part 'head' had run"),
        (
            NeedsTargets,
            lambda _task, model, x, _y: model(x),
            r"without targets where its parts are in training mode .targets should",
        ),
        (
            NoLosses,
            lambda task, model, x, y: task(model(x), y),
            "in training mode, given targets, the model, a NoLosses",
        ),
    ],
)
def test_detectors_that_dont_keep_to_the_convention_are_told(
    kind: type[Detector], call: Callable[..., Any], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        call(Detection(), up_to_heads(kind(width=8)), *batch())


def test_heads_that_arent_parts_of_the_model_are_told() -> None:
    with pytest.raises(
        SettingsError, match="heads 'tail': Detector has the parts backbone, head; name those that run l"
    ):
        Detection(heads=("tail",)).adapt(Detector(width=8))


def test_a_model_of_raw_outputs_needs_a_loss_and_a_prediction() -> None:
    task, outputs = Detection(), torch.zeros(2, 5)
    with pytest.raises(ModelError, match="its forward takes no `targets`"):
        task(outputs, batch()[1])
    with pytest.raises(ModelError, match=r"a subclass of pruning\.detection\.Detection has to say in `predict`"):
        task.predict(outputs)

    def own(found: Tensor, targets: Boxes) -> Tensor:
        return found.sum() + sum(len(one["labels"]) for one in targets)

    _, targets = batch()
    changed = task.with_loss(own)
    assert changed(torch.zeros(6, 5), targets) == (targets[..., 4] >= 0).sum()
    assert losses_of_each(changed, torch.zeros(6, 5), targets).sum() == (targets[..., 4] >= 0).sum()


def test_the_key_of_the_metric_chooses_its_figure_and_name() -> None:
    task = Detection()
    for key, name in ((None, "mAP"), ("map_50", "mAP50")):
        assert Scorer(task.metric(), task.predict, key, task.wanted).measure("it").name == name
