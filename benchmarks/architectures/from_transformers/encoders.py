"""Encoders of text."""

from __future__ import annotations

import torch

from benchmarks.architectures.from_transformers.inputs import (
    Row,
    layout,
    longer_text,
    padded_text,
    text,
    visual_question,
)
from benchmarks.architectures.from_transformers.sizes import TEXT, TOKENS, VOCABULARY

MODELS: dict[str, Row] = {
    "bert": ("BertForSequenceClassification", TEXT, padded_text),
    "bert-eager": ("BertForSequenceClassification", {**TEXT, "attn_implementation": "eager"}, padded_text),
    "bert-lm": ("BertForMaskedLM", TEXT, text),
    "distilbert": (
        "DistilBertForSequenceClassification",
        {
            "vocab_size": VOCABULARY,
            "dim": 48,
            "n_layers": 2,
            "n_heads": 3,
            "hidden_dim": 80,
            "max_position_embeddings": 64,
        },
        padded_text,
    ),
    "roberta": ("RobertaForSequenceClassification", TEXT, padded_text),
    "xlm-roberta": ("XLMRobertaForTokenClassification", TEXT, text),
    "camembert": ("CamembertForSequenceClassification", TEXT, text),
    "albert": ("AlbertForSequenceClassification", {**TEXT, "embedding_size": 20}, text),
    "electra": ("ElectraForSequenceClassification", {**TEXT, "embedding_size": 20}, text),
    "ernie": ("ErnieForSequenceClassification", TEXT, text),
    "mpnet": ("MPNetForSequenceClassification", TEXT, text),
    "deberta": (
        "DebertaForSequenceClassification",
        {**TEXT, "relative_attention": True, "pos_att_type": ["c2p", "p2c"]},
        text,
    ),
    "deberta-v2": (
        "DebertaV2ForSequenceClassification",
        {**TEXT, "relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_buckets": 16},
        text,
    ),
    "mobilebert": (
        "MobileBertForSequenceClassification",
        {**TEXT, "embedding_size": 20, "intra_bottleneck_size": 30, "true_hidden_size": 30, "hidden_size": 40},
        text,
    ),
    "squeezebert": (
        "SqueezeBertForSequenceClassification",
        {
            **TEXT,
            "embedding_size": 48,
            "q_groups": 2,
            "k_groups": 2,
            "v_groups": 2,
            "intermediate_groups": 4,
            "output_groups": 4,
        },
        text,
    ),
    "convbert": (
        "ConvBertForSequenceClassification",
        {**TEXT, "num_attention_heads": 4, "embedding_size": 48, "head_ratio": 2, "conv_kernel_size": 3},
        text,
    ),
    "roformer": ("RoFormerForSequenceClassification", {**TEXT, "embedding_size": 48}, text),
    "fnet": ("FNetForSequenceClassification", TEXT, text),
    "nystromformer": (
        "NystromformerForSequenceClassification",
        {**TEXT, "num_landmarks": 5, "segment_means_seq_len": 15},
        longer_text,
    ),
    "longformer": ("LongformerForSequenceClassification", {**TEXT, "attention_window": 4}, text),
    "big_bird": ("BigBirdForSequenceClassification", {**TEXT, "attention_type": "original_full"}, text),
    "xlnet": (
        "XLNetForSequenceClassification",
        {"vocab_size": VOCABULARY, "d_model": 48, "n_layer": 2, "n_head": 3, "d_inner": 80, "pad_token_id": 0},
        text,
    ),
    "funnel": (
        "FunnelForSequenceClassification",
        {
            "vocab_size": VOCABULARY,
            "block_sizes": [1, 1],
            "d_model": 48,
            "n_head": 3,
            "d_head": 10,
            "d_inner": 80,
            "pad_token_id": 0,
        },
        text,
    ),
    "modernbert": ("ModernBertForSequenceClassification", {**TEXT, "cls_token_id": 1, "sep_token_id": 2}, text),
    "ibert": ("IBertForSequenceClassification", TEXT, text),
    "layoutlm": ("LayoutLMForTokenClassification", {**TEXT, "max_2d_position_embeddings": 64}, layout),
    "visual_bert": ("VisualBertForQuestionAnswering", {**TEXT, "visual_embedding_dim": 44}, visual_question),
    "perceiver": (
        "PerceiverForSequenceClassification",
        {
            "vocab_size": VOCABULARY,
            "num_latents": 9,
            "d_latents": 44,
            "d_model": 40,
            "num_blocks": 1,
            "num_self_attends_per_block": 2,
            "num_self_attention_heads": 4,
            "num_cross_attention_heads": 4,
            "max_position_embeddings": 64,
        },
        lambda g: {"inputs": torch.randint(5, 90, (2, TOKENS), generator=g)},
    ),
}
