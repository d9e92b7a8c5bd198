"""Sizes of small configurations: all different, so that no two agree by chance."""

from __future__ import annotations

from typing import Any

Keywords = dict[str, Any]
VOCABULARY, TOKENS = 101, 13

TEXT: Keywords = {
    "vocab_size": VOCABULARY, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3,
    "intermediate_size": 80, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
GROUPED: Keywords = {**TEXT, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 10}
GPT: Keywords = {
    "vocab_size": VOCABULARY, "n_embd": 48, "n_layer": 2, "n_head": 3, "n_positions": 64, "bos_token_id": 1,
    "eos_token_id": 2,
}  # fmt: skip
BART: Keywords = {
    "vocab_size": VOCABULARY, "d_model": 48, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 3,
    "decoder_attention_heads": 3, "encoder_ffn_dim": 80, "decoder_ffn_dim": 88, "max_position_embeddings": 64,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2,
}  # fmt: skip
T5: Keywords = {
    "vocab_size": VOCABULARY, "d_model": 48, "d_kv": 10, "d_ff": 80, "num_layers": 2, "num_heads": 3,
    "decoder_start_token_id": 0,
}  # fmt: skip
VISION: Keywords = {
    "image_size": 32, "patch_size": 8, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3,
    "intermediate_size": 80,
}  # fmt: skip
SPEECH: Keywords = {
    "vocab_size": 32, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 80,
    "conv_dim": (24, 28, 40), "conv_stride": (5, 2, 2), "conv_kernel": (10, 3, 2), "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 4, "num_feat_extract_layers": 3,
}  # fmt: skip
STAGES: Keywords = {"hidden_sizes": [12, 20, 28, 36], "depths": [1, 1, 2, 1]}
WINDOWS: Keywords = {
    "image_size": 64,
    "patch_size": 4,
    "embed_dim": 24,
    "depths": [2, 2],
    "num_heads": [3, 6],
    "window_size": 4,
}
MOE: Keywords = {
    **GROUPED,
    "num_local_experts": 4,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 36,
}
CLIP: Keywords = {
    "text_config": {**TEXT, "projection_dim": 40},
    "vision_config": {**VISION, "hidden_size": 60, "projection_dim": 40},
    "projection_dim": 40,
}  # fmt: skip
