"""Encoders with decoders: translation, summaries, speech to text."""

from __future__ import annotations

from benchmarks.architectures.from_transformers.inputs import (
    Row,
    pair,
    pair_with_global_attention,
    spectrogram,
    speech_features,
)
from benchmarks.architectures.from_transformers.sizes import BART, T5, VOCABULARY

MODELS: dict[str, Row] = {
    "t5": ("T5ForConditionalGeneration", T5, pair),
    "t5-gated": ("T5ForConditionalGeneration", {**T5, "feed_forward_proj": "gated-gelu"}, pair),
    "mt5": ("MT5ForConditionalGeneration", T5, pair),
    "longt5": ("LongT5ForConditionalGeneration", {**T5, "local_radius": 4}, pair),
    "switch_transformers": (
        "SwitchTransformersForConditionalGeneration",
        {**T5, "num_experts": 2, "num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1},
        pair,
    ),
    "bart": ("BartForConditionalGeneration", BART, pair),
    "mbart": ("MBartForConditionalGeneration", BART, pair),
    "pegasus": ("PegasusForConditionalGeneration", BART, pair),
    "marian": ("MarianMTModel", BART, pair),
    "m2m_100": ("M2M100ForConditionalGeneration", BART, pair),
    "blenderbot": ("BlenderbotForConditionalGeneration", BART, pair),
    "led": (
        "LEDForConditionalGeneration",
        {**BART, "max_encoder_position_embeddings": 64, "max_decoder_position_embeddings": 64, "attention_window": 4},
        pair_with_global_attention,
    ),
    "prophetnet": (
        "ProphetNetForConditionalGeneration",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": 48,
            "encoder_ffn_dim": 80,
            "decoder_ffn_dim": 88,
            "num_encoder_layers": 2,
            "num_decoder_layers": 2,
            "num_encoder_attention_heads": 3,
            "num_decoder_attention_heads": 3,
            "max_position_embeddings": 64,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "decoder_start_token_id": 2,
        },
        pair,
    ),
    "whisper": (
        "WhisperForConditionalGeneration",
        {**BART, "num_mel_bins": 20, "max_source_positions": 30, "max_target_positions": 24},
        spectrogram,
    ),
    "speech_to_text": (
        "Speech2TextForConditionalGeneration",
        {
            **BART,
            "input_feat_per_channel": 20,
            "conv_channels": 28,
            "max_source_positions": 64,
            "max_target_positions": 24,
        },
        speech_features,
    ),
}
