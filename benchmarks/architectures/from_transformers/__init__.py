"""Models of transformers, from small random configurations made here."""

from __future__ import annotations

from functools import partial
from importlib import import_module
from typing import Any

from torch import nn

from benchmarks.architectures.architecture import Architecture
from benchmarks.architectures.from_torchvision import declare_operators
from benchmarks.architectures.from_transformers import decoders, encoders, images, pairs, scenes, signals
from benchmarks.architectures.from_transformers.sizes import STAGES, VISION, Keywords

MODELS = {
    name: row for table in (encoders, decoders, pairs, images, scenes, signals) for name, row in table.MODELS.items()
}


def architectures() -> list[Architecture]:
    """Return all rows of this package."""
    return [
        Architecture(f"transformers/{name}", partial(_build, model, options), inputs, "transformers")
        for name, (model, options, inputs) in MODELS.items()
    ]


def _build(name: str, options: Keywords) -> nn.Module:
    declare_operators()
    transformers = import_module("transformers")
    model = getattr(transformers, name)
    options = {key: _copied(value) for key, value in options.items()}
    attention = options.pop("attn_implementation", None)
    if options.get("backbone_config") is not None:
        options["backbone_config"] = _backbone(transformers, options["backbone_config"])
        options["use_timm_backbone"] = False
        options["use_pretrained_backbone"] = False
        options["backbone"] = None
    config = model.config_class(**options)
    if attention:
        config._attn_implementation = attention
    made: nn.Module = model(config)
    for module in made.modules():  # a cache that is returned is an output, and outputs stay whole
        own: Any = getattr(module, "config", None)
        if getattr(own, "use_cache", None):
            own.use_cache = False
    return made


def _copied(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copied(inner) for key, inner in value.items()}
    return list(value) if isinstance(value, list) else value


def _backbone(transformers: Any, kind: str) -> Any:
    stages = {"embedding_size": 12, "hidden_sizes": [16, 20, 28, 36], "depths": [1, 1, 1, 1]}
    match kind:
        case "resnet":
            return transformers.ResNetConfig(**stages, out_features=["stage4"])
        case "resnet2":
            return transformers.ResNetConfig(**stages, out_features=["stage3", "stage4"])
        case "convnext":
            return transformers.ConvNextConfig(**STAGES, out_features=["stage1", "stage2", "stage3", "stage4"])
        case _:
            return transformers.Dinov2Config(
                **{**VISION, "num_hidden_layers": 4, "mlp_ratio": 2},
                out_indices=[1, 2, 3, 4], reshape_hidden_states=False, apply_layernorm=True,
            )  # fmt: skip
