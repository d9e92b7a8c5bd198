"""Classifiers, segmenters and video networks of torchvision, as they come, with ten classes."""

from __future__ import annotations

from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.architectures.architecture import Architecture

CLASSIFIERS: dict[str, dict[str, Any]] = {
    "alexnet": {},
    "vgg11": {},
    "vgg11_bn": {},
    "resnet18": {},
    "resnet50": {},
    "resnext50_32x4d": {},
    "wide_resnet50_2": {},
    "densenet121": {},
    "mobilenet_v2": {},
    "mobilenet_v3_small": {},
    "mobilenet_v3_large": {},
    "efficientnet_b0": {},
    "efficientnet_v2_s": {},
    "shufflenet_v2_x1_0": {},
    "squeezenet1_1": {},
    "googlenet": {"aux_logits": True, "init_weights": False},
    "inception_v3": {"aux_logits": True, "init_weights": False},
    "regnet_x_400mf": {},
    "regnet_y_400mf": {},
    "mnasnet1_0": {},
    "convnext_tiny": {},
    "maxvit_t": {},
    "swin_t": {},
    "swin_v2_t": {},
    "vit_b_16": {},
}
SEGMENTERS = ("fcn_resnet50", "deeplabv3_resnet50", "deeplabv3_mobilenet_v3_large", "lraspp_mobilenet_v3_large")
VIDEO = ("r3d_18", "mc3_18", "r2plus1d_18", "s3d", "mvit_v2_s", "swin3d_t")
_PIXELS = {"inception_v3": 299, "maxvit_t": 224, "vit_b_16": 224}


def declare_operators() -> None:
    """Declare torchvision's own operators empty, without which it can't be imported beside a CPU build of torch."""
    schema = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
    for name in ("torchvision::nms", "torchvision::qnms"):
        try:
            torch.library.define(name, schema)
        except RuntimeError:  # torchvision has loaded its own
            return


def architectures() -> list[Architecture]:
    """Return all rows of this package."""
    rows = [
        _row(name, "models", partial(_image, (2, 3, _PIXELS.get(name, 64), _PIXELS.get(name, 64))), **options)
        for name, options in CLASSIFIERS.items()
    ]
    rows += [
        _row(name, "models.segmentation", partial(_image, (1, 3, 64, 64)), weights_backbone=None) for name in SEGMENTERS
    ]
    for name in VIDEO:
        pixels = 224 if name in ("mvit_v2_s", "s3d") else 64
        shape = (1, 3, 16, pixels, pixels)
        rows.append(_row(name, "models.video", partial(_image, shape)))
    return rows


def _row(name: str, module: str, inputs: Any, **options: Any) -> Architecture:
    return Architecture(f"torchvision/{name}", partial(_build, module, name, options), inputs, "torchvision")


def _build(module: str, name: str, options: dict[str, Any]) -> nn.Module:
    declare_operators()
    model: nn.Module = getattr(import_module(f"torchvision.{module}"), name)(weights=None, num_classes=10, **options)
    return model


def _image(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator)
