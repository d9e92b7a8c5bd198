"""Classifiers of images."""

from __future__ import annotations

from benchmarks.architectures.from_transformers.inputs import IMAGE, IMAGE64, Row
from benchmarks.architectures.from_transformers.sizes import STAGES, VISION, WINDOWS

MODELS: dict[str, Row] = {
    "vit": ("ViTForImageClassification", VISION, IMAGE),
    "vit-eager": ("ViTForImageClassification", {**VISION, "attn_implementation": "eager"}, IMAGE),
    "deit": ("DeiTForImageClassificationWithTeacher", VISION, IMAGE),
    "beit": ("BeitForImageClassification", {**VISION, "use_relative_position_bias": True}, IMAGE),
    "data2vec-vision": ("Data2VecVisionForImageClassification", VISION, IMAGE),
    "dinov2": ("Dinov2ForImageClassification", {**VISION, "mlp_ratio": 2}, IMAGE),
    "dinov2-swiglu": ("Dinov2ForImageClassification", {**VISION, "use_swiglu_ffn": True}, IMAGE),
    "dinov3_vit": ("DINOv3ViTModel", VISION, IMAGE),
    "vit_mae": ("ViTMAEModel", {**VISION, "mask_ratio": 0.0}, IMAGE),
    "ijepa": ("IJepaForImageClassification", VISION, IMAGE),
    "swin": ("SwinForImageClassification", WINDOWS, IMAGE64),
    "swinv2": ("Swinv2ForImageClassification", WINDOWS, IMAGE64),
    "donut-swin": ("DonutSwinForImageClassification", WINDOWS, IMAGE64),
    "convnext": ("ConvNextForImageClassification", STAGES, IMAGE64),
    "convnextv2": ("ConvNextV2ForImageClassification", STAGES, IMAGE64),
    "poolformer": (
        "PoolFormerForImageClassification",
        {"hidden_sizes": [12, 20, 28, 36], "depths": [1, 1, 2, 1]},
        IMAGE64,
    ),
    "pvt": (
        "PvtForImageClassification",
        {
            "image_size": 64,
            "hidden_sizes": [12, 20, 28, 36],
            "depths": [1, 1, 1, 1],
            "num_attention_heads": [1, 2, 2, 3],
            "sequence_reduction_ratios": [8, 4, 2, 1],
        },
        IMAGE64,
    ),
    "pvt_v2": (
        "PvtV2ForImageClassification",
        {
            "image_size": 64,
            "hidden_sizes": [12, 20, 28, 36],
            "depths": [1, 1, 1, 1],
            "num_attention_heads": [1, 2, 2, 3],
        },
        IMAGE64,
    ),
    "cvt": (
        "CvtForImageClassification",
        {"embed_dim": [12, 20, 36], "num_heads": [1, 2, 3], "depth": [1, 2, 3]},
        IMAGE64,
    ),
    "levit": (
        "LevitForImageClassification",
        {
            "image_size": 64,
            "hidden_sizes": [24, 32, 40],
            "num_attention_heads": [2, 3, 4],
            "depths": [1, 1, 1],
            "key_dim": [8, 8, 8],
            "down_ops": [["Subsample", 8, 3, 4, 2, 2], ["Subsample", 8, 4, 4, 2, 2]],
        },
        IMAGE64,
    ),
    "mobilevit": (
        "MobileViTForImageClassification",
        {
            "image_size": 64,
            "hidden_sizes": [24, 32, 40],
            "neck_hidden_sizes": [8, 12, 16, 20, 28, 36, 60],
            "num_attention_heads": 4,
        },
        IMAGE64,
    ),
    "mobilevitv2": ("MobileViTV2ForImageClassification", {"image_size": 64, "width_multiplier": 0.5}, IMAGE64),
    "focalnet": (
        "FocalNetForImageClassification",
        {
            "image_size": 64,
            "embed_dim": 24,
            "depths": [1, 1],
            "hidden_sizes": [24, 48],
            "focal_levels": [2, 2],
            "focal_windows": [3, 3],
        },
        IMAGE64,
    ),
    "efficientnet": (
        "EfficientNetForImageClassification",
        {"image_size": 64, "width_coefficient": 0.5, "depth_coefficient": 0.5, "hidden_dim": 640},
        IMAGE64,
    ),
    "resnet": (
        "ResNetForImageClassification",
        {**STAGES, "embedding_size": 12, "hidden_sizes": [16, 32, 48, 64]},
        IMAGE64,
    ),
    "regnet": (
        "RegNetForImageClassification",
        {**STAGES, "embedding_size": 12, "hidden_sizes": [16, 32, 48, 64], "groups_width": 8},
        IMAGE64,
    ),
    "bit": (
        "BitForImageClassification",
        {**STAGES, "embedding_size": 16, "hidden_sizes": [32, 64, 96, 128], "num_groups": 8},
        IMAGE64,
    ),
    "mobilenet_v1": ("MobileNetV1ForImageClassification", {"depth_multiplier": 0.5}, IMAGE64),
    "mobilenet_v2": ("MobileNetV2ForImageClassification", {}, IMAGE64),
    "hiera": (
        "HieraForImageClassification",
        {
            "image_size": [64, 64],
            "embed_dim": 24,
            "depths": [1, 1, 1],
            "num_heads": [1, 2, 4],
            "query_stride": [2, 2],
            "num_query_pool": 2,
            "masked_unit_size": [4, 4],
        },
        IMAGE64,
    ),
}
