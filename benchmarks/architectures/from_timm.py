"""Image classifiers of timm; those that can be made small are."""

from __future__ import annotations

from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.architectures.architecture import Architecture
from benchmarks.architectures.from_torchvision import declare_operators

_SMALL_VIT = {"img_size": 32, "embed_dim": 48, "depth": 2, "num_heads": 3}
_AT_32 = {"img_size": 32}
_AT_64 = {"img_size": 64}

MODELS: dict[str, dict[str, Any]] = {
    "beit_base_patch16_224": _SMALL_VIT,
    "beitv2_base_patch16_224": _SMALL_VIT,
    "cait_xxs24_224": {"depth": 3, **_AT_64},
    "caformer_s18": {},
    "coat_tiny": _AT_64,
    "coatnet_nano_rw_224": {"img_size": 224},
    "convformer_s18": {},
    "convmixer_768_32": {},
    "convnext_atto": {},
    "convnextv2_atto": {},
    "crossvit_tiny_240": {"img_size": 240},
    "cspdarknet53": {},
    "cspresnet50": {},
    "darknet53": {},
    "davit_tiny": {},
    "deit3_small_patch16_224": {**_SMALL_VIT},
    "deit_tiny_distilled_patch16_224": _SMALL_VIT,
    "dla34": {},
    "dm_nfnet_f0": {},
    "dpn48b": {},
    "ecaresnet26t": {},
    "edgenext_xx_small": {},
    "efficientformer_l1": {"img_size": 224},
    "efficientformerv2_s0": {"img_size": 224},
    "efficientnet_b0": {},
    "efficientvit_b0": {},
    "efficientvit_m0": {"img_size": 224},
    "ese_vovnet19b_dw": {},
    "eva02_tiny_patch14_224": {"img_size": 28, "embed_dim": 48, "depth": 2, "num_heads": 3},
    "fasternet_t0": {},
    "fastvit_t8": {},
    "fbnetc_100": {},
    "focalnet_tiny_srf": {},
    "gcvit_xxtiny": {"img_size": 224},
    "gernet_s": {},
    "ghostnet_100": {},
    "gmlp_s16_224": {"img_size": 224},
    "hardcorenas_a": {},
    "hgnetv2_b0": {},
    "hiera_tiny_224": {"img_size": 224},
    "hrnet_w18_small": {},
    "inception_next_atto": {},
    "inception_resnet_v2": {"img_size": 96},
    "inception_v4": {"img_size": 96},
    "lcnet_050": {},
    "legacy_xception": {},
    "levit_128s": {"img_size": 224},
    "mambaout_femto": {},
    "maxxvit_rmlp_nano_rw_256": {"img_size": 256},
    "mixer_s32_224": {"img_size": 224},
    "mixnet_s": {},
    "mobilenet_edgetpu_v2_xs": {},
    "mobilenetv1_100": {},
    "mobilenetv4_conv_small": {},
    "mobilenetv4_hybrid_medium": {},
    "mobileone_s0": {},
    "mobilevit_xxs": {},
    "mobilevitv2_050": {},
    "nest_tiny": {"img_size": 224},
    "nf_resnet26": {},
    "nfnet_l0": {},
    "pit_ti_224": {"img_size": 224},
    "pnasnet5large": {},
    "poolformer_s12": {},
    "poolformerv2_s12": {},
    "pvt_v2_b0": {},
    "rdnet_tiny": {},
    "regnetz_b16": {},
    "repvgg_a0": {},
    "repvit_m0_9": {},
    "res2net50_14w_8s": {},
    "resmlp_12_224": {"img_size": 224},
    "resnest14d": {},
    "resnetv2_50": {},
    "rexnet_100": {},
    "selecsls42b": {},
    "semnasnet_075": {},
    "sequencer2d_s": {"img_size": 224},
    "seresnext26d_32x4d": {},
    "skresnet18": {},
    "spnasnet_100": {},
    "starnet_s1": {},
    "swiftformer_xs": {},
    "swin_tiny_patch4_window7_224": {"img_size": 224},
    "tf_efficientnetv2_b0": {},
    "tiny_vit_5m_224": {"img_size": 224},
    "tnt_s_legacy_patch16_224": {"img_size": 224, "depth": 2},
    "tresnet_m": {},
    "twins_svt_small": {"img_size": 224},
    "vgg11_bn": {},
    "visformer_tiny": {"img_size": 224},
    "vit_base_patch16_rope_224": _SMALL_VIT,
    "vit_relpos_small_patch16_224": _SMALL_VIT,
    "vit_small_patch14_dinov2": {**_SMALL_VIT, "img_size": 28},
    "vit_small_patch16_dinov3": _SMALL_VIT,
    "vit_so150m_patch16_reg4_gap_256": _SMALL_VIT,
    "vit_tiny_patch16_224": _SMALL_VIT,
    "volo_d1_224": {"img_size": 224},
    "xception41": {},
    "xcit_nano_12_p16_224": {"img_size": 224, "depth": 2},
}


def architectures() -> list[Architecture]:
    """Return all rows of this package."""
    return [
        Architecture(
            f"timm/{name}", partial(_build, name, options), partial(_image, options.get("img_size", 64)), "timm"
        )
        for name, options in MODELS.items()
    ]


def _build(name: str, options: dict[str, Any]) -> nn.Module:
    declare_operators()
    timm = import_module("timm")
    try:
        model: nn.Module = timm.create_model(name, pretrained=False, num_classes=10, **options)
    except TypeError:  # it works at any size and takes none
        model = timm.create_model(
            name, pretrained=False, num_classes=10, **{k: v for k, v in options.items() if k != "img_size"}
        )
    return model


def _image(pixels: int, generator: torch.Generator) -> Tensor:
    return torch.randn(1, 3, pixels, pixels, generator=generator)
