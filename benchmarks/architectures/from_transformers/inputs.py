"""Random inputs of each kind, and what a row of a table is."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from benchmarks.architectures.from_transformers.sizes import TOKENS, VOCABULARY, Keywords

Inputs = Callable[[torch.Generator], Keywords]
Row = tuple[str, Keywords, Inputs]


def text(generator: torch.Generator) -> Keywords:
    """Random tokens."""
    return {"input_ids": torch.randint(5, VOCABULARY - 5, (2, TOKENS), generator=generator)}


def longer_text(generator: torch.Generator) -> Keywords:
    """As many tokens as Nyströmformer can divide into landmarks."""
    return {"input_ids": torch.randint(5, VOCABULARY - 5, (2, 15), generator=generator)}


def padded_text(generator: torch.Generator) -> Keywords:
    """Tokens, the second row padded."""
    mask = torch.ones(2, TOKENS, dtype=torch.long)
    mask[1, 9:] = 0
    return {**text(generator), "attention_mask": mask}


def pair(generator: torch.Generator) -> Keywords:
    """Tokens for an encoder and for a decoder."""
    return {**text(generator), "decoder_input_ids": torch.randint(5, 90, (2, 7), generator=generator)}


def pair_with_global_attention(generator: torch.Generator) -> Keywords:
    """The same, the first token of each text attending to all others."""
    mask = torch.zeros(2, TOKENS, dtype=torch.long)
    mask[:, 0] = 1
    return {**pair(generator), "global_attention_mask": mask}


def pixels(*shape: int) -> Inputs:
    """Images or videos of a shape."""
    return partial(of_shape, "pixel_values", shape)


def of_shape(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Keywords:
    """Random numbers of a shape, as one keyword argument."""
    return {name: torch.randn(shape, generator=generator)}


IMAGE, IMAGE64, SOUND = pixels(2, 3, 32, 32), pixels(2, 3, 64, 64), partial(of_shape, "input_values", (2, 1600))


def image_text(generator: torch.Generator) -> Keywords:
    """Images and texts."""
    return {**text(generator), **IMAGE(generator)}


def spectrogram(generator: torch.Generator) -> Keywords:
    """Mel bins by time, and tokens."""
    return {
        "input_features": torch.randn(2, 20, 60, generator=generator),
        "decoder_input_ids": torch.randint(5, 90, (2, 7), generator=generator),
    }


def speech_features(generator: torch.Generator) -> Keywords:
    """Time by mel bins, and tokens."""
    return {
        "input_features": torch.randn(2, 60, 20, generator=generator),
        "decoder_input_ids": torch.randint(5, 90, (2, 7), generator=generator),
    }


def series(generator: torch.Generator) -> Keywords:
    """Three series of numbers."""
    return {"past_values": torch.randn(2, 32, 3, generator=generator)}


def layout(generator: torch.Generator) -> Keywords:
    """Tokens and where they stand on a page."""
    return {**text(generator), "bbox": torch.randint(0, 50, (2, TOKENS, 4), generator=generator).sort(-1).values}


def visual_question(generator: torch.Generator) -> Keywords:
    """Tokens and what a detector saw."""
    return {**padded_text(generator), "visual_embeds": torch.randn(2, 5, 44, generator=generator)}


def decision(generator: torch.Generator) -> Keywords:
    """A trajectory of states, actions, rewards and returns."""
    return {
        "states": torch.randn(2, 6, 17, generator=generator),
        "actions": torch.randn(2, 6, 4, generator=generator),
        "rewards": torch.randn(2, 6, 1, generator=generator),
        "returns_to_go": torch.randn(2, 6, 1, generator=generator),
        "timesteps": torch.arange(6).repeat(2, 1),
        "attention_mask": torch.ones(2, 6),
    }
