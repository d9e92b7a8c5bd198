"""Detection: boxes as targets, the model's own losses or others, COCO's mean average precision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pruning.average_precision import MeanAveragePrecision
from pruning.containers import find_tensors, take
from pruning.errors import DataError, ModelError
from pruning.evaluation import mean_loss
from pruning.metrics import StatefulMetric, described
from pruning.raw_heads import RawHeads, up_to_heads
from pruning.task import Task

_NO_BOX = -1  # in place of a label
_EXPECTED = "of each image a dict of boxes [M, 4] (x1, y1, x2, y2, in pixels) and labels [M] of int64"


def pack_boxes(targets: Sequence[Mapping[str, Any]]) -> Tensor:
    """Return boxes of images as one tensor [N, M, 6], M that of the image with most, at least 1.

    Args:
        targets: Of each image `boxes` [M, 4] (x1, y1, x2, y2) and `labels` [M]; `iscrowd` [M], 0 where it is missing.

    Returns:
        x1, y1, x2, y2, label, iscrowd of each box; the label is −1 where an image has fewer.

    Raises:
        DataError: They are something else.
    """
    rows = []
    for number, one in enumerate(targets):
        lacking = [name for name in ("boxes", "labels") if not isinstance(one, Mapping) or name not in one]
        if lacking:
            held = f"a dict of {', '.join(map(str, one))}" if isinstance(one, Mapping) else described(one)
            raise DataError(f"the target of image {number} of a batch is {held}; expected {_EXPECTED}")
        boxes, labels = torch.as_tensor(one["boxes"]), torch.as_tensor(one["labels"])
        if not len(boxes):
            boxes = boxes.reshape(0, 4)
        if boxes.shape != (len(labels), 4) or labels.ndim != 1:
            shapes = f"boxes {list(boxes.shape)} and labels {list(labels.shape)}"
            raise DataError(f"the target of image {number} of a batch has {shapes}; expected {_EXPECTED}")
        crowds = torch.as_tensor(one.get("iscrowd", torch.zeros(len(labels))))
        rows.append(torch.cat([boxes.float(), labels.float()[:, None], crowds.float()[:, None]], 1))
    return nn.utils.rnn.pad_sequence(
        [functional.pad(row, (0, 0, 0, not len(row)), value=_NO_BOX) for row in rows],
        batch_first=True,
        padding_value=_NO_BOX,
    )


def unpack_boxes(targets: Any) -> list[dict[str, Tensor]]:
    """Return what was packed: of each image `boxes` [M, 4], `labels` [M] and `iscrowd` [M]; others as they are."""
    if not isinstance(targets, Tensor):
        return list(targets)
    found = []
    for image in targets:
        image = image[image[:, 4] != _NO_BOX]
        found.append({"boxes": image[:, :4], "labels": image[:, 4].long(), "iscrowd": image[:, 5].long()})
    return found


def _are_boxes(outputs: Any) -> bool:
    return isinstance(outputs, Sequence) and all(isinstance(one, Mapping) for one in outputs)


class Detection(Task):
    """Images and boxes: the model's own losses or yours, COCO's mAP.

    Sizes of images: a model of the pipeline is given a tensor [N, C, H, W].
    """

    targets = f"boxes: {_EXPECTED}"

    def __init__(self, heads: Sequence[str] = (), size: Sequence[int] | None = None, least_score: float = 0.5) -> None:
        """Say what only the user knows.

        Args:
            heads: Parts of the model whose outputs are classes and boxes before post-processing; see `up_to_heads`.
            size: Height and width that all images are brought to, by zeros on the right and below; None where all have
                one size.
            least_score: Boxes of the baseline with this score or more stand for targets where there are none.
        """
        self.heads, self.least_score = tuple(heads), least_score
        self.size = None if size is None else tuple(size)

    def adapt(self, model: nn.Module) -> nn.Module:
        """Let a model that computes its own losses end at its heads."""
        return up_to_heads(model, self.heads)

    def collate(self, samples: Sequence[Any]) -> Any:
        """Join samples without stacking: images of other sizes, and other numbers of boxes, lie in lists."""
        if isinstance(samples[0], Mapping):
            return {name: [one[name] for one in samples] for name in samples[0]}
        if isinstance(samples[0], Sequence):
            return tuple(list(part) for part in zip(*samples, strict=True))
        return list(samples)

    def unpack(self, batch: Any) -> tuple[Tensor, Any]:
        """Return images [N, C, H, W], and their boxes as one tensor, see `pack_boxes`.

        Raises:
            DataError: Images differ in size, or targets hold no boxes.
        """
        if isinstance(batch, Mapping) and {"boxes", "labels"} <= batch.keys():  # each a list, an entry per image
            own = [name for name in ("boxes", "labels", "iscrowd") if name in batch]
            rows = zip(*(batch[name] for name in own), strict=True)
            others = {name: one for name, one in batch.items() if name not in own}
            batch = {**others, "targets": [dict(zip(own, one, strict=True)) for one in rows]}
        images, targets = super().unpack(batch)
        if isinstance(images, Mapping) and len(images) == 1:
            (images,) = images.values()
        if isinstance(targets, Sequence):
            targets = None if all(one is None for one in targets) else pack_boxes(targets)
        return self._stacked(images), targets

    def _stacked(self, images: Any) -> Tensor:
        if isinstance(images, Tensor) and (self.size is None or images.shape[-2:] == self.size):
            return images
        some = [torch.as_tensor(image) for image in images]
        sizes = {tuple(image.shape) for image in some}
        if self.size is None:
            if len(sizes) > 1:
                raise DataError(
                    f"images of a batch have the shapes {', '.join(str(list(size)) for size in sorted(sizes))}; resize "
                    "them in the data set, or set task.kwargs.size to a height and width that all of them fit in: "
                    "zeros are put to the right and below"
                )
            return torch.stack(some)
        height, width = self.size
        for image in some:
            if image.ndim != 3 or image.shape[1] > height or image.shape[2] > width:
                raise DataError(
                    f"an image is {list(image.shape)}; expected [C, H, W] within task.kwargs.size {[height, width]}"
                )
        return torch.stack(
            [functional.pad(image, (0, width - image.shape[2], 0, height - image.shape[1])) for image in some]
        )

    def loss(self, outputs: Any, targets: Any) -> Any:
        """Return the sum of the model's own losses. In a task of your own: targets are a dict for each image.

        Raises:
            ModelError: It has none.
        """
        if isinstance(outputs, RawHeads):
            return outputs.losses(targets)
        raise ModelError(
            "the model has no losses of its own: its forward takes no `targets`. Let it take them and return a dict of "
            "losses in training mode, as torchvision's detectors do, or name training.loss, or a subclass of "
            "pruning.detection.Detection with `loss` and `predict`"
        )

    def predict(self, outputs: Any) -> Any:
        """Return of each image `boxes`, `scores` and `labels`.

        Raises:
            ModelError: It isn't known how.
        """
        if isinstance(outputs, RawHeads):
            return outputs.detections()
        if _are_boxes(outputs):
            return outputs
        raise ModelError(
            f"the model gave {described(outputs)}; a subclass of pruning.detection.Detection has to say in `predict` "
            "how a list of dicts with boxes, scores and labels is made of it"
        )

    def metric(self) -> StatefulMetric:
        """Return COCO's mean average precision."""
        return MeanAveragePrecision()

    def wanted(self, targets: Any) -> Any:
        """Return of each image `boxes`, `labels` and `iscrowd`, as metrics and losses take them."""
        return unpack_boxes(targets)

    def answers(self, outputs: Any) -> Tensor:
        """Return the boxes that are found with `least_score` or more."""
        found = self.predict(outputs)
        sure = [one["scores"] >= self.least_score for one in found]
        return pack_boxes(
            [{name: one[name][keep] for name in ("boxes", "labels")} for one, keep in zip(found, sure, strict=True)]
        )

    def join(self, targets: Sequence[Tensor]) -> Tensor:
        """Join the boxes of batches, whose images have other numbers of them."""
        most = max(one.shape[1] for one in targets)
        return torch.cat([functional.pad(one, (0, 0, 0, most - one.shape[1]), value=_NO_BOX) for one in targets])

    def distillation(self, outputs: Any, teacher_outputs: Any, temperature: float) -> Tensor:  # noqa: ARG002
        """Return the mean squared difference of what the heads gave, of each tensor by itself, then of all.

        Source: Ba and Caruana 2014, "Do deep nets really need to be deep?": logits are learned as they are.

        Raises:
            ModelError: They differ in shape, as boxes after post-processing do.
        """
        student, teacher = (() if _are_boxes(one) else find_tensors(one) for one in (outputs, teacher_outputs))
        if [one.shape for one in student] != [one.shape for one in teacher] or not student:
            raise ModelError(
                "outputs of student and teacher differ in shape, as those after post-processing do; distillation needs "
                "what the heads give: set distillation to 0, or let forward return that"
            )
        pairs = [pair for pair in zip(student, teacher, strict=True) if pair[0].is_floating_point()]
        return torch.stack([functional.mse_loss(*pair) for pair in pairs]).mean()

    def sum_and_count(self, outputs: Any, targets: Any) -> Any:
        """Return the loss of targets by image."""
        return self.loss(outputs, unpack_boxes(targets))

    def sums_of_each(self, outputs: Any, targets: Any) -> tuple[Tensor, Tensor]:
        """Return the loss of each image by itself, [N], and that each is a mean."""
        images = unpack_boxes(targets)
        found = [
            mean_loss(
                self.loss,
                outputs.of_image(at) if isinstance(outputs, RawHeads) else take(outputs, slice(at, at + 1)),
                [one],
            )
            for at, one in enumerate(images)
        ]
        sums = torch.stack(found)
        return sums, torch.ones_like(sums)

    def check_targets(self, targets: Any, classes: Sequence[str]) -> None:
        """See that boxes have a size, and labels a class."""
        if not isinstance(targets, Tensor) or targets.ndim != 3 or targets.shape[2] != 6:
            raise DataError(f"targets are {described(targets)}; expected {_EXPECTED}")
        boxes = targets[targets[..., 4] != _NO_BOX]
        if not len(boxes):
            return
        if not bool(boxes.isfinite().all()) or not bool((boxes[:, 2:4] > boxes[:, :2]).all()):
            wrong = boxes[~(boxes.isfinite().all(1) & (boxes[:, 2:4] > boxes[:, :2]).all(1))][0, :4]
            raise DataError(
                f"a box is {[round(x, 3) for x in wrong.tolist()]}; expected x1 < x2 and y1 < y2, all finite"
            )
        low, high = int(boxes[:, 4].min()), int(boxes[:, 4].max())
        if classes and (low < 0 or high >= len(classes)):
            raise DataError(
                f"labels lie in [{low}, {high}], expected [0, {len(classes) - 1}]; where label 0 is the background, it "
                "has a name among the classes too"
            )
