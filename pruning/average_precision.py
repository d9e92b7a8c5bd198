"""COCO's mean average precision of boxes, which adds up batch by batch: of each box found, its score and its matches.

    IoU 0.50, 0.55 … 0.95  ×  classes  ──►  precision at 101 recalls  ──►  mean

Source: T.-Y. Lin et al., "Microsoft COCO: common objects in context", 2014; the rules are those of its reference
program, pycocotools' `COCOeval`, with all areas and at most 100 boxes of a class in an image.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pruning.errors import ModelError
from pruning.metrics import described

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

IOUS = np.linspace(0.5, 0.95, 10)
_RECALLS = np.linspace(0.0, 1.0, 101)
_MOST = 100  # boxes of one class in one image
_BELOW_ONE = 1 - 1e-10  # a threshold of 1 would never be met


def box_ious(boxes: Floats, others: Floats, crowds: Flags) -> Floats:
    """Return intersection over union of each pair; over a crowd, the share of the box that lies in it.

    Args:
        boxes: [N, 4], x1, y1, x2, y2.
        others: [M, 4], likewise.
        crowds: [M], whether an other box stands for many objects.

    Returns:
        [N, M], in [0, 1].
    """
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    shared = np.clip(high - low, 0, None).prod(-1)
    own, theirs = _areas(boxes)[:, None], _areas(others)[None]
    union = np.where(crowds[None], own, own + theirs - shared)
    found: Floats = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
    return found


def _areas(boxes: Floats) -> Floats:
    found: Floats = (boxes[:, 2:] - boxes[:, :2]).prod(-1)
    return found


class MeanAveragePrecision:
    """mAP: mean over IoU thresholds 0.50 … 0.95 and classes that occur of the area under precision and recall.

    `compute` gives `map` and `map_50`, the same at IoU 0.50 alone; `map` decides unless `training.metric_key` says
    otherwise. Held are, of each box found, its score and at which thresholds it matched: some 50 bytes.
    """

    higher_is_better = True
    is_share = True
    name = "mAP"
    key = "map"
    names: ClassVar = {"map": "mAP", "map_50": "mAP50"}

    def __init__(self) -> None:
        """Begin with no image."""
        self.reset()

    def reset(self) -> None:
        """Forget all images."""
        self._scores = defaultdict[int, list[Floats]](list)
        self._matched = defaultdict[int, list[Flags]](list)
        self._ignored = defaultdict[int, list[Flags]](list)
        self._wanted = defaultdict[int, int](int)

    def update(self, predictions: Sequence[Mapping[str, Tensor]], targets: Sequence[Mapping[str, Tensor]]) -> None:
        """Add a batch.

        Args:
            predictions: Of each image `boxes` [N, 4] (x1, y1, x2, y2), `scores` [N] and `labels` [N].
            targets: Of each image `boxes` [M, 4] and `labels` [M]; `iscrowd` [M] where some stand for many objects.

        Raises:
            ModelError: They are something else, or differ in number.
        """
        for found, wanted in zip(*_checked(predictions, targets), strict=True):
            boxes, labels, scores = (_array(found[name]) for name in ("boxes", "labels", "scores"))
            own, classes = _array(wanted["boxes"]), _array(wanted["labels"])
            crowds = _array(wanted["iscrowd"]) > 0 if "iscrowd" in wanted else np.zeros(len(own), dtype=bool)
            for label in np.union1d(labels, classes).astype(int).tolist():
                here, there = labels == label, classes == label
                self._add(label, boxes[here], scores[here], own[there], crowds[there])

    def _add(self, label: int, boxes: Floats, scores: Floats, wanted: Floats, crowds: Flags) -> None:
        """Match what was found of one class in one image, the highest score first."""
        order = np.argsort(-scores, kind="stable")[:_MOST]
        first = np.argsort(crowds, kind="stable")  # what counts comes before what is ignored
        wanted, crowds = wanted[first], crowds[first]
        matched, ignored = _match(box_ious(boxes[order], wanted, crowds), crowds)
        self._scores[label].append(scores[order])
        self._matched[label].append(matched)
        self._ignored[label].append(ignored)
        self._wanted[label] += int((~crowds).sum())

    def per_class(self, key: str = "map") -> dict[int, float]:
        """Return one of the figures of each class that occurs among the targets."""
        return {label: _figures(each)[key] for label, each in self._precisions().items()}

    def _precisions(self) -> dict[int, Floats]:
        return {label: self._precision(label) for label, count in sorted(self._wanted.items()) if count}

    def _precision(self, label: int) -> Floats:
        order = np.argsort(-np.concatenate(self._scores[label]), kind="stable")
        matched, ignored = (
            np.concatenate(part, axis=1)[:, order] for part in (self._matched[label], self._ignored[label])
        )
        right = np.cumsum(matched & ~ignored, axis=1, dtype=np.float64)
        wrong = np.cumsum(~matched & ~ignored, axis=1, dtype=np.float64)
        recall = right / self._wanted[label]
        precision = right / (right + wrong + np.spacing(1))
        precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        found = np.zeros(len(IOUS))
        for at, (recalls, values) in enumerate(zip(recall, precision, strict=True)):
            places = np.searchsorted(recalls, _RECALLS, side="left")
            found[at] = values[places[places < len(values)]].sum() / len(_RECALLS)
        return found

    def compute(self) -> dict[str, float]:
        """Return the figures; NaN where no target was seen."""
        found = list(self._precisions().values())
        return _figures(np.stack(found)) if found else dict.fromkeys(self.names, math.nan)


def _figures(precisions: Floats) -> dict[str, float]:
    """Return the figures of average precisions [..., 10]."""
    return {"map": float(precisions.mean()), "map_50": float(precisions[..., 0].mean())}


def _match(ious: Floats, crowds: Flags) -> tuple[Flags, Flags]:
    """Give each box found, in its order, the free target that it overlaps most, at each threshold by itself.

    Args:
        ious: [N, M]; targets that count come first.
        crowds: [M]; a crowd is never used up, and what matches it counts neither way.

    Returns:
        Whether each box matched, and whether it doesn't count, [10, N] both.
    """
    count, num_targets = ious.shape
    matched, ignored = np.zeros((len(IOUS), count), dtype=bool), np.zeros((len(IOUS), count), dtype=bool)
    free = np.ones((len(IOUS), num_targets), dtype=bool)
    least = np.minimum(IOUS, _BELOW_ONE)
    num_single = int((~crowds).sum())
    for box, overlaps in enumerate(ious):
        rows = np.arange(len(IOUS))
        for part in (slice(0, num_single), slice(num_single, num_targets)):
            some = np.where(free[rows, part], overlaps[part], -1.0)
            if not some.size:
                continue
            best = some.shape[1] - 1 - some[:, ::-1].argmax(axis=1)  # of equal ones the last
            hit = some[np.arange(len(rows)), best] >= least[rows]
            matched[rows[hit], box] = True
            if part.start == num_single:
                ignored[rows[hit], box] = True
            else:
                free[rows[hit], best[hit]] = False
            rows = rows[~hit]
    return matched, ignored


def _checked(predictions: Any, targets: Any) -> tuple[Sequence[Any], Sequence[Any]]:
    for what, given, names in (
        ("predictions", predictions, ("boxes", "scores", "labels")),
        ("targets", targets, ("boxes", "labels")),
    ):
        if isinstance(given, Tensor | Mapping | str) or not isinstance(given, Sequence):
            raise ModelError(
                f"{what} are {described(given)}; expected a list with a dict of {', '.join(names)} per image"
            )
        for image in given:
            lacking = [name for name in names if not isinstance(image, Mapping) or name not in image]
            lengths = {} if lacking else {name: len(image[name]) for name in names}
            if lacking or len(set(lengths.values())) != 1 or image["boxes"].shape[1:] != (4,):
                held = f"{', '.join(map(str, image))}" if isinstance(image, Mapping) else described(image)
                shapes = "" if lacking else f" of shapes {', '.join(str(list(image[name].shape)) for name in names)}"
                expected = f"expected boxes [N, 4] and, as many, {', '.join(names[1:])}"
                raise ModelError(f"{what} of an image hold {held}{shapes}; {expected}")
    if len(predictions) != len(targets):
        raise ModelError(f"predictions of {len(predictions)} images for targets of {len(targets)}")
    return predictions, targets


def _array(tensor: Tensor) -> Floats:
    found: Floats = torch.as_tensor(tensor).detach().to("cpu", torch.float64).numpy()
    return found
