"""The speech models of torchaudio, small."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from torch import Tensor, tensor

from ecosystem.architectures import Architecture
from ecosystem.inputs import randn, tokens

REQUIREMENTS = ("torch==2.14.1", "torchaudio==2.11.1")

WAV2VEC2 = {
    "extractor_mode": "group_norm",
    "extractor_conv_layer_config": [(8, 10, 5), (8, 3, 2)],
    "extractor_conv_bias": False,
    "encoder_embed_dim": 16,
    "encoder_projection_dropout": 0.1,
    "encoder_pos_conv_kernel": 3,
    "encoder_pos_conv_groups": 2,
    "encoder_num_layers": 2,
    "encoder_num_heads": 2,
    "encoder_attention_dropout": 0.1,
    "encoder_ff_interm_features": 32,
    "encoder_ff_interm_dropout": 0.1,
    "encoder_dropout": 0.1,
    "encoder_layer_norm_first": False,
    "encoder_layer_drop": 0.1,
    "aux_num_out": 5,
}
LENGTHS = tensor([20, 15])

MODELS: dict[str, tuple[dict[str, Any], tuple[Tensor, ...]]] = {
    "Conformer": (
        {
            "input_dim": 16,
            "num_heads": 2,
            "ffn_dim": 32,
            "num_layers": 2,
            "depthwise_conv_kernel_size": 3,
            "dropout": 0.1,
        },
        (randn(2, 20, 16), LENGTHS),
    ),
    "ConvTasNet": (
        {"num_sources": 2, "enc_num_feats": 16, "msk_num_feats": 8, "msk_num_hidden_feats": 16}
        | {"msk_num_layers": 2, "msk_num_stacks": 1},
        (randn(2, 1, 400),),
    ),
    "DeepSpeech": ({"n_feature": 16, "n_hidden": 16, "n_class": 5, "dropout": 0.1}, (randn(2, 1, 20, 16),)),
    "Emformer": (
        {"input_dim": 16, "num_heads": 2, "ffn_dim": 32, "num_layers": 2, "segment_length": 4, "dropout": 0.1},
        (randn(2, 20, 16), LENGTHS),
    ),
    "HDemucs": ({"sources": ["voice", "rest"], "channels": 8, "nfft": 256, "depth": 3}, (randn(1, 2, 4096),)),
    "Tacotron2": (
        {"n_symbol": 99, "symbol_embedding_dim": 16, "encoder_embedding_dim": 16, "attention_rnn_dim": 16}
        | {"decoder_rnn_dim": 16, "prenet_dim": 16, "postnet_embedding_dim": 16, "n_mels": 8}
        | {"attention_hidden_dim": 16, "attention_location_n_filter": 4, "attention_location_kernel_size": 3},
        (tokens(2, 9), tensor([9, 7]), randn(2, 8, 12), tensor([12, 10])),
    ),
    "Wav2Letter": ({"num_classes": 5, "input_type": "mfcc", "num_features": 8}, (randn(2, 8, 200),)),
    "WaveRNN": (
        {"upsample_scales": [2, 2], "n_classes": 8, "hop_length": 4, "n_res_block": 1, "n_rnn": 8, "n_fc": 8}
        | {"n_freq": 8, "n_hidden": 8, "n_output": 8, "kernel_size": 3},
        (randn(1, 1, 16), randn(1, 1, 8, 6)),
    ),
    "wav2vec2_model": (WAV2VEC2, (randn(2, 1000),)),
    "wav2vec2_model-layer_norm": (
        WAV2VEC2 | {"extractor_mode": "layer_norm", "encoder_layer_norm_first": True},
        (randn(2, 1000),),
    ),
    "wavlm_model": (
        {name: value for name, value in WAV2VEC2.items() if name != "aux_num_out"}
        | {"encoder_num_buckets": 8, "encoder_max_distance": 16, "aux_num_out": 5},
        (randn(2, 1000),),
    ),
}


def architectures() -> Iterator[Architecture]:
    """Yield each model."""
    for name, (settings, inputs) in MODELS.items():
        yield Architecture(name, partial(_build, name.partition("-")[0], settings), partial(dict, args=inputs), _call)


def _build(name: str, settings: dict[str, Any]) -> Any:
    import torchaudio.models

    return getattr(torchaudio.models, name)(**settings)


def _call(model: Any, args: tuple[Tensor, ...]) -> object:
    return model(*args)
