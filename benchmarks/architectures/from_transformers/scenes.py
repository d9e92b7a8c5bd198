"""Images with texts, detectors, segmenters, depth, super-resolution, videos."""

from __future__ import annotations

from benchmarks.architectures.from_transformers.inputs import IMAGE, IMAGE64, Row, image_text, pixels
from benchmarks.architectures.from_transformers.sizes import CLIP, TEXT, VISION, WINDOWS

MODELS: dict[str, Row] = {
    "clip": ("CLIPModel", CLIP, image_text),
    "clip-vision": ("CLIPVisionModel", VISION, IMAGE),
    "siglip": (
        "SiglipModel",
        {
            "text_config": {**TEXT, "projection_size": 60, "hidden_size": 44, "num_attention_heads": 4},
            "vision_config": {**VISION, "hidden_size": 60},
        },
        image_text,
    ),
    "chinese_clip": ("ChineseCLIPModel", CLIP, image_text),
    "altclip": ("AltCLIPModel", {**CLIP, "text_config": {**TEXT, "project_dim": 40}}, image_text),
    "blip": (
        "BlipForImageTextRetrieval",
        {
            "text_config": {**TEXT, "encoder_hidden_size": 60},
            "vision_config": {**VISION, "hidden_size": 60},
            "projection_dim": 40,
            "image_text_hidden_size": 36,
        },
        image_text,
    ),
    "vilt": ("ViltForQuestionAnswering", {**TEXT, **VISION, "num_labels": 7, "max_image_length": 16}, image_text),
    "segformer": (
        "SegformerForSemanticSegmentation",
        {
            "hidden_sizes": [12, 20, 28, 36],
            "depths": [1, 1, 1, 1],
            "num_attention_heads": [1, 2, 2, 3],
            "decoder_hidden_size": 44,
            "num_labels": 7,
        },
        IMAGE64,
    ),
    "swin2sr": (
        "Swin2SRForImageSuperResolution",
        {**WINDOWS, "patch_size": 1, "num_heads": [3, 3], "upscale": 2, "image_size": 16, "upsampler": "pixelshuffle"},
        pixels(1, 3, 16, 16),
    ),
    "vitdet": (
        "VitDetModel",
        {
            **VISION,
            "mlp_ratio": 2,
            "window_size": 2,
            "window_block_indices": [0],
            "use_relative_position_embeddings": True,
        },
        IMAGE,
    ),
    "yolos": ("YolosForObjectDetection", {**VISION, "image_size": [32, 32], "num_detection_tokens": 5}, IMAGE),
    "detr": (
        "DetrForObjectDetection",
        {
            "d_model": 48,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_attention_heads": 3,
            "decoder_attention_heads": 3,
            "encoder_ffn_dim": 80,
            "decoder_ffn_dim": 88,
            "num_queries": 5,
            "backbone_config": "resnet",
        },
        IMAGE64,
    ),
    "conditional_detr": (
        "ConditionalDetrForObjectDetection",
        {
            "d_model": 48,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_attention_heads": 3,
            "decoder_attention_heads": 3,
            "encoder_ffn_dim": 80,
            "decoder_ffn_dim": 88,
            "num_queries": 5,
            "backbone_config": "resnet",
        },
        IMAGE64,
    ),
    "deformable_detr": (
        "DeformableDetrForObjectDetection",
        {
            "d_model": 64,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "encoder_ffn_dim": 80,
            "decoder_ffn_dim": 88,
            "num_queries": 5,
            "num_feature_levels": 2,
            "backbone_config": "resnet2",
        },
        IMAGE64,
    ),
    "table-transformer": (
        "TableTransformerForObjectDetection",
        {
            "d_model": 48,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_attention_heads": 3,
            "decoder_attention_heads": 3,
            "encoder_ffn_dim": 80,
            "decoder_ffn_dim": 88,
            "num_queries": 5,
            "backbone_config": "resnet",
        },
        IMAGE64,
    ),
    "dpt": (
        "DPTForSemanticSegmentation",
        {
            **VISION,
            "num_hidden_layers": 4,
            "backbone_out_indices": [0, 1, 2, 3],
            "neck_hidden_sizes": [12, 20, 28, 36],
            "fusion_hidden_size": 24,
            "num_labels": 7,
            "semantic_classifier_dropout": 0.1,
        },
        IMAGE,
    ),
    "glpn": (
        "GLPNForDepthEstimation",
        {
            "hidden_sizes": [12, 20, 28, 36],
            "depths": [1, 1, 1, 1],
            "num_attention_heads": [1, 2, 2, 3],
            "decoder_hidden_size": 24,
        },
        IMAGE64,
    ),
    "depth_anything": (
        "DepthAnythingForDepthEstimation",
        {
            "backbone_config": "dinov2",
            "reassemble_hidden_size": 48,
            "patch_size": 8,
            "neck_hidden_sizes": [12, 20, 28, 36],
            "fusion_hidden_size": 24,
            "head_hidden_size": 14,
        },
        IMAGE,
    ),
    "upernet": (
        "UperNetForSemanticSegmentation",
        {
            "backbone_config": "convnext",
            "hidden_size": 24,
            "num_labels": 7,
            "auxiliary_in_channels": 28,
            "auxiliary_channels": 18,
        },
        IMAGE64,
    ),
    "videomae": (
        "VideoMAEForVideoClassification",
        {**VISION, "num_frames": 4, "tubelet_size": 2},
        pixels(1, 4, 3, 32, 32),
    ),
    "timesformer": ("TimesformerForVideoClassification", {**VISION, "num_frames": 4}, pixels(1, 4, 3, 32, 32)),
    "vivit": (
        "VivitForVideoClassification",
        {**VISION, "num_frames": 4, "tubelet_size": [2, 8, 8]},
        pixels(1, 4, 3, 32, 32),
    ),
}
