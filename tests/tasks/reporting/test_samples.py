"""What the report shows of a few samples, for each kind of task."""

from __future__ import annotations

import re
from base64 import b64decode
from collections.abc import Callable
from io import BytesIO
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from pruning.batches import TensorBatches
from pruning.detection import Detection, pack_boxes
from pruning.embedding import Embedding
from pruning.raw_heads import up_to_heads
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
from tasks.reporting.samples import Sample, choose_samples, render_samples
from tests.rendered import CLASSES, Detector, Scenes


class Gives(nn.Module):
    """Outputs that are looked up by the sample's number, which its first value is."""

    def __init__(self, outputs: Tensor) -> None:
        super().__init__()
        self.register_buffer("outputs", outputs)

    def forward(self, inputs: Tensor) -> Tensor:
        found: Tensor = self.get_buffer("outputs")[inputs.reshape(len(inputs), -1)[:, 0].long()]
        return found


def shown(
    task: Task,
    inputs: Tensor,
    targets: Tensor,
    before: Tensor,
    after: Tensor,
    classes: Any = ("a", "b", "c"),
    **more: Any,
) -> list[Sample]:
    numbered = inputs.clone()
    numbered.reshape(len(inputs), -1)[:, 0] = torch.arange(len(inputs)).to(inputs)
    models = {"baseline": Gives(before), "pruned": Gives(after)}
    return choose_samples(models, TensorBatches(numbered, targets), task, classes, batch_size=7, **more)


def text(html: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", html)).strip()


def pictures(html: str) -> list[Image.Image]:
    return [Image.open(BytesIO(b64decode(found))) for found in re.findall(r"base64,([^\"]+)\"", html)]


def test_samples_are_spread_and_those_that_changed_most() -> None:
    logits = torch.zeros(100, 3)
    changed = logits.clone()
    changed[[7, 50, 93], 0] = torch.tensor([1.0, 3.0, 2.0])
    found = shown(Classification(), torch.rand(100, 3, 8, 8), torch.zeros(100).long(), logits, changed)
    assert [(one.number, one.changed) for one in found] == [
        *((0, False), (25, False), (50, False), (75, False)),
        *((93, True), (7, True)),
    ]
    same = shown(Classification(), torch.rand(3, 3, 8, 8), torch.zeros(3).long(), logits[:3], logits[:3])
    assert [one.number for one in same] == [0, 1, 2]


def test_classes_are_shown_with_probabilities_and_names_escaped() -> None:
    before, after = torch.tensor([[0.0, 3, 0]]), torch.tensor([[3.0, 0, 0]])
    names = ("<b>", "fine", "c")
    (one,) = shown(Classification(), torch.rand(1, 1, 8, 8), torch.tensor([1]), before, after, names)
    html = render_samples([one], names)
    assert [heading for heading, _ in one.parts] == ["target: fine", "baseline", "pruned"]
    share = before.softmax(1).max()
    assert f'<span class="better">fine</span><span>{share:.1%}</span>' in one.parts[1][1]
    assert f'<span class="worse">&lt;b&gt;</span><span>{share:.1%}</span>' in one.parts[2][1]
    assert "<b>&lt;b&gt;" not in html
    assert pictures(html)[0].size == (8, 8)
    (bare,) = shown(Classification(), torch.rand(1, 5), torch.tensor([1]), before, after, names, labelled=False)
    assert bare.parts[0][0] == "input"
    assert "better" not in bare.parts[1][1]
    assert len(bare.parts[0][1].split(",")) == 5


def test_labels_that_are_predicted_are_shown() -> None:
    found = shown(
        MultiLabel(),
        torch.rand(1, 3, 8, 8),
        torch.tensor([[1.0, 0, 1]]),
        torch.tensor([[2.0, -2, 2]]),
        torch.tensor([[2.0, 2, -2]]),
    )
    ((heading, _), (_, before), (_, after)) = found[0].parts
    assert heading == "target: a, c"
    assert (before.count("better"), before.count("worse")) == (3, 0)
    assert (after.count("better"), after.count("worse")) == (1, 2)


def test_masks_lie_over_the_image_and_the_ground_has_no_colour() -> None:
    masks = torch.zeros(1, 16, 16).long()
    masks[:, 4:8, 4:8], masks[:, 0] = 2, 255
    logits = nn.functional.one_hot(masks.clamp(max=2) * (masks < 255), 3).movedim(-1, 1).float()
    names = ("background", "disc", "square")
    (one,) = shown(Segmentation(255), torch.ones(1, 3, 16, 16), masks, logits, logits, names)
    html = render_samples([one], names)
    assert [heading for heading, _ in one.parts] == ["input", "target", "baseline", "pruned"]
    assert one.legend == {2}
    assert text(html).startswith("square input target baseline pruned")
    _, target, before, _ = pictures(html)
    assert target.getpixel((5, 5)) == before.getpixel((5, 5)) != target.getpixel((9, 9))
    grey, ground = (torch.tensor(target.getpixel(at)) for at in ((3, 0), (9, 9)))
    assert len(grey.unique()) == 1  # type: ignore[no-untyped-call]
    assert not torch.equal(grey, ground)


def test_boxes_are_drawn_where_they_are() -> None:
    torch.manual_seed(0)
    scenes = Scenes(0, 3, empty=0)
    targets = pack_boxes(scenes.boxes)
    model = up_to_heads(Detector(width=8))
    nn.init.constant_(model.get_parameter("head.logits.bias"), -0.5)  # scores of 0.4, which are drawn
    models = {"baseline": model, "pruned": model}
    found = choose_samples(models, TensorBatches(scenes.images, targets), Detection(), CLASSES)
    html = render_samples(found, CLASSES)
    first = scenes.boxes[0]
    assert [heading for heading, _ in found[0].parts] == ["target", "baseline", "pruned"]
    target = found[0].parts[0][1]
    for x, y, right, low in first["boxes"].tolist():
        assert f'<rect x="{x:.1f}" y="{y:.1f}" width="{right - x:.1f}" height="{low - y:.1f}"' in target
    assert target.count("<rect") == 2 * len(first["labels"])
    assert text(target).split() == [CLASSES[label] for label in first["labels"].tolist()]
    assert "%" in text(found[0].parts[1][1])
    assert " more" in found[0].parts[1][1]
    assert len(pictures(html)) == 9


@pytest.mark.parametrize("size", [16, 600])
def test_images_for_images_have_one_scale(size: int) -> None:
    target = torch.rand(1, 1, size, size)
    found = shown(ImageToImage(), torch.rand(1, 3, size, size), target, target, target * 0.5)
    pictured = pictures("".join(html for _, html in found[0].parts))
    assert [one.size for one in pictured] == [(min(size, 256),) * 2] * 4
    brightest: list[Any] = [one.convert("L").getextrema()[1] for one in pictured[1:]]
    assert brightest[0] == pytest.approx(brightest[1], abs=2)
    assert brightest[2] < 0.6 * brightest[1]


def test_values_are_shown() -> None:
    ones = torch.ones(1)
    found = shown(Regression(), torch.rand(1, 9), ones, ones[:, None] * 1.25, ones[:, None] * 1.5)
    assert [text(html) for _, html in found[0].parts][1:] == ["target 1 baseline 1.25 pruned 1.5"]
    assert found[0].parts[0][1].endswith("… (9 values)</p>")


def test_tokens_have_their_answers_below_them() -> None:
    ids = torch.tensor([[0, 2, 1, 2]])
    wanted = torch.tensor([[0, 2, -100, 1]])
    logits = nn.functional.one_hot(torch.tensor([[0, 1, 2, 1]]), 3).float()
    (one,) = shown(TokenClassification(), ids, wanted, logits, logits)
    assert text(one.parts[0][1]) == "token 0 2 1 2 target a c – b baseline a b – b pruned a b – b"
    assert one.parts[0][1].count("worse") == 2  # one for each model; what is ignored is not wrong
    (one,) = shown(CausalLM(), ids, ids, logits, logits)
    assert text(one.parts[0][1]) == "token a c b c baseline – a b c pruned – a b c"
    assert one.parts[0][1].count("worse") == 2


def test_tokens_are_shown_by_their_texts() -> None:
    ids, texts = torch.tensor([[0, 2, 1, 2]]), ("[CLS]", "good", "<bad>")
    logits = nn.functional.one_hot(torch.tensor([[0, 1, 2, 1]]), 3).float()
    (one,) = shown(TokenClassification(), ids, ids, logits, logits, texts=texts)
    assert text(one.parts[0][1]).startswith("token [CLS] &lt;bad&gt; good &lt;bad&gt; target a c b c")
    models = {"baseline": Gives(torch.ones(2, 3)), "pruned": Gives(torch.ones(2, 3))}
    (one, _) = choose_samples(
        models,
        TensorBatches(torch.tensor([[0, 1], [1, 2]]), torch.tensor([0, 1])),
        Classification(),
        "abc",
        texts=texts,
    )
    assert one.parts[0][1] == "<p>[CLS] good …</p>"


def test_token_ids_are_told_from_masks() -> None:
    inputs = {"mask": torch.ones(1, 4).long(), "ids": torch.tensor([[3, 0, 1, 2]]), "kinds": torch.zeros(1, 4).long()}

    class Sums(nn.Module):
        def forward(self, mask: Tensor, ids: Tensor, kinds: Tensor) -> Tensor:
            return (mask * ids + kinds)[:, :3].float()

    models = {"baseline": Sums(), "pruned": Sums()}
    (one,) = choose_samples(models, TensorBatches(inputs, torch.zeros(1).long()), Classification(), "abc")
    assert one.parts[0][1] == "<p>3 0 1 2 …</p>"


def test_embeddings_are_compared() -> None:
    before, after = torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([[1.0, 1.0], [2.0, 0.0]])
    found = shown(Embedding(), torch.rand(2, 5), before, before, after)
    assert [one.parts[1][1] for one in found] == ["<p>0.7071</p>", "<p>1.0000</p>"]
    several = shown(Embedding(), torch.rand(1, 5), before[None], before[None], after[None])
    assert several[0].parts[1][1] == "<p>0.8536, at least 0.7071</p>"


@pytest.mark.parametrize(
    ("task", "outputs"),
    [
        (Task(), torch.rand(1, 4)),
        (Classification(), torch.rand(1, 4, 2)),
        (Segmentation(), torch.rand(1, 4, 2, 2)),
    ],
)
def test_what_cant_be_shown_is_left_out(task: Task, outputs: Tensor) -> None:
    assert shown(task, torch.rand(1, 3, 8, 8), torch.zeros(1, 8, 8).long(), outputs, outputs) == []


def test_what_runs_is_left_as_it_was() -> None:
    model: Callable[..., nn.Module] = lambda: nn.Sequential(nn.Flatten(), nn.Linear(12, 3), nn.BatchNorm1d(3))  # noqa: E731
    models = {"baseline": model().train(), "pruned": model().train()}
    before = {name: [buffer.clone() for buffer in one.buffers()] for name, one in models.items()}
    choose_samples(models, TensorBatches(torch.rand(9, 3, 2, 2), torch.zeros(9).long()), Classification(), "abc")
    for name, one in models.items():
        assert one.training
        assert all(torch.equal(a, b) for a, b in zip(before[name], one.buffers(), strict=True))
