"""Models in the size in which they are used, to time the trace and the plan."""

from __future__ import annotations

from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.architectures.architecture import Architecture
from benchmarks.architectures.from_torchvision import declare_operators

_LLAMA = {
    "vocab_size": 1000, "hidden_size": 512, "intermediate_size": 1376, "num_attention_heads": 8,
    "num_key_value_heads": 4, "max_position_embeddings": 128,
}  # fmt: skip


def architectures() -> list[Architecture]:
    """Return all rows: five families, and one of them in three depths."""
    rows = [
        Architecture(f"large/{name}", partial(_classifier, name), _image, "torchvision")
        for name in ("densenet121", "swin_t", "maxvit_t", "vit_b_16", "resnet50")
    ]
    return rows + [
        Architecture(f"large/llama-{depth}-layers", partial(_llama, depth), _tokens, "transformers")
        for depth in (8, 16, 32)
    ]


def _classifier(name: str) -> nn.Module:
    declare_operators()
    model: nn.Module = getattr(import_module("torchvision.models"), name)(weights=None)
    return model


def _llama(depth: int) -> nn.Module:
    declare_operators()
    transformers = import_module("transformers")
    model: nn.Module = transformers.LlamaForCausalLM(transformers.LlamaConfig(**_LLAMA, num_hidden_layers=depth))
    return model


def _image(generator: torch.Generator) -> Tensor:
    return torch.randn(1, 3, 224, 224, generator=generator)


def _tokens(generator: torch.Generator) -> dict[str, Any]:
    return {"input_ids": torch.randint(0, 1000, (1, 32), generator=generator)}
