"""Sound and series of numbers."""

from __future__ import annotations

import torch

from benchmarks.architectures.from_transformers.inputs import SOUND, Row, decision, series
from benchmarks.architectures.from_transformers.sizes import SPEECH, VISION

MODELS: dict[str, Row] = {
    "wav2vec2": ("Wav2Vec2ForCTC", SPEECH, SOUND),
    "wav2vec2-layer-norm": (
        "Wav2Vec2ForCTC",
        {**SPEECH, "feat_extract_norm": "layer", "do_stable_layer_norm": True},
        SOUND,
    ),
    "wav2vec2-conformer": ("Wav2Vec2ConformerForCTC", {**SPEECH, "conv_depthwise_kernel_size": 5}, SOUND),
    "hubert": ("HubertForCTC", SPEECH, SOUND),
    "wavlm": ("WavLMForCTC", SPEECH, SOUND),
    "unispeech-sat": ("UniSpeechSatForCTC", SPEECH, SOUND),
    "sew": ("SEWForCTC", SPEECH, SOUND),
    "data2vec-audio": ("Data2VecAudioForCTC", SPEECH, SOUND),
    "audio-spectrogram-transformer": (
        "ASTForAudioClassification",
        {**VISION, "max_length": 40, "num_mel_bins": 20, "frequency_stride": 4, "time_stride": 4},
        lambda g: {"input_values": torch.randn(2, 40, 20, generator=g)},
    ),
    "encodec": (
        "EncodecModel",
        {
            "num_filters": 4,
            "upsampling_ratios": [4, 2],
            "codebook_size": 32,
            "codebook_dim": 16,
            "hidden_size": 16,
            "num_lstm_layers": 1,
        },
        lambda g: {"input_values": torch.randn(1, 1, 640, generator=g)},
    ),
    "dac": (
        "DacModel",
        {
            "encoder_hidden_size": 6,
            "downsampling_ratios": [2, 4],
            "decoder_hidden_size": 24,
            "n_codebooks": 2,
            "codebook_size": 32,
            "codebook_dim": 4,
        },
        lambda g: {"input_values": torch.randn(1, 1, 320, generator=g)},
    ),
    "patchtst": (
        "PatchTSTForPrediction",
        {
            "num_input_channels": 3,
            "context_length": 32,
            "patch_length": 4,
            "patch_stride": 4,
            "d_model": 48,
            "num_attention_heads": 3,
            "num_hidden_layers": 2,
            "ffn_dim": 80,
            "prediction_length": 6,
        },
        series,
    ),
    "patchtsmixer": (
        "PatchTSMixerForPrediction",
        {
            "num_input_channels": 3,
            "context_length": 32,
            "patch_length": 4,
            "patch_stride": 4,
            "d_model": 24,
            "num_layers": 2,
            "prediction_length": 6,
        },
        series,
    ),
    "decision_transformer": (
        "DecisionTransformerModel",
        {"state_dim": 17, "act_dim": 4, "hidden_size": 48, "n_layer": 2, "n_head": 3, "max_ep_len": 32},
        decision,
    ),
}
