"""The recognizers, embeddings, separators and vocoders of SpeechBrain, small."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from importlib import import_module
from typing import Any

from torch import Tensor

from ecosystem.architectures import Architecture
from ecosystem.inputs import rand, randn, tokens

REQUIREMENTS = ("torch==2.14.1", "torchaudio==2.11.1", "speechbrain==1.1.2")

TRANSFORMER = {"nhead": 2, "d_ffn": 32, "dropout": 0.1}
SPEECH = {"tgt_vocab": 9, "input_size": 16, "d_model": 16, "num_encoder_layers": 2, "num_decoder_layers": 1}

MODELS: dict[str, tuple[dict[str, Any], tuple[Tensor, ...]]] = {
    "ECAPA_TDNN.ECAPA_TDNN": (
        {"input_size": 16, "lin_neurons": 8, "channels": [16] * 5, "attention_channels": 8, "res2net_scale": 2}
        | {"se_channels": 8},
        (randn(2, 20, 16),),
    ),
    "ECAPA_TDNN.Classifier": ({"input_size": 16, "lin_neurons": 8, "out_neurons": 3}, (randn(2, 1, 16),)),
    "Xvector.Xvector": (
        {"in_channels": 16, "tdnn_blocks": 2, "tdnn_channels": [16, 16], "tdnn_kernel_sizes": [3, 1]}
        | {"tdnn_dilations": [1, 1], "lin_neurons": 8},
        (randn(2, 20, 16),),
    ),
    "CRDNN.CRDNN": (
        {"input_shape": [None, None, 16], "cnn_blocks": 1, "cnn_channels": [8], "rnn_layers": 1, "rnn_neurons": 8}
        | {"dnn_neurons": 8, "time_pooling": True, "time_pooling_size": 2},
        (randn(2, 20, 16),),
    ),
    "VanillaNN.VanillaNN": ({"input_shape": [None, None, 16], "dnn_blocks": 2, "dnn_neurons": 8}, (randn(2, 20, 16),)),
    "ContextNet.ContextNet": (
        {"input_shape": (2, 20, 16), "out_channels": 16, "conv_channels": [16], "num_blocks": 1, "num_layers": 2}
        | {"strides": [1], "inner_dim": 4},
        (randn(2, 20, 16),),
    ),
    "convolution.ConvolutionFrontEnd": (
        {"input_shape": (2, 20, 16), "num_blocks": 2, "out_channels": [8, 8], "kernel_sizes": [3, 3]}
        | {"strides": [1, 2], "residuals": [False, True]},
        (randn(2, 20, 16),),
    ),
    "transformer.TransformerASR.TransformerASR": (SPEECH | TRANSFORMER, (randn(2, 20, 16), tokens(2, 5, count=9))),
    "transformer.TransformerASR.TransformerASR-conformer": (
        SPEECH
        | TRANSFORMER
        | {"encoder_module": "conformer", "attention_type": "RelPosMHAXL", "kernel_size": 3, "normalize_before": True},
        (randn(2, 20, 16), tokens(2, 5, count=9)),
    ),
    "transformer.TransformerASR.TransformerASR-branchformer": (
        SPEECH
        | TRANSFORMER
        | {"encoder_module": "branchformer", "attention_type": "RelPosMHAXL", "normalize_before": True}
        | {"csgu_linear_units": 16, "kernel_size": 3},
        (randn(2, 20, 16), tokens(2, 5, count=9)),
    ),
    "transformer.TransformerLM.TransformerLM": (
        {"vocab": 9, "d_model": 16, "num_encoder_layers": 2} | TRANSFORMER,
        (tokens(2, 7, count=9),),
    ),
    "dual_path.Encoder": ({"kernel_size": 4, "out_channels": 16}, (randn(2, 400),)),
    "conv_tasnet.Encoder": ({"L": 4, "N": 16}, (randn(2, 400),)),
    "conv_tasnet.MaskNet": ({"N": 16, "B": 8, "H": 16, "P": 3, "X": 2, "R": 1, "C": 2}, (rand(2, 16, 20),)),
    "HifiGAN.HifiganGenerator": (
        {"in_channels": 8, "out_channels": 1, "resblock_type": "1", "resblock_dilation_sizes": [[1, 3, 5]]}
        | {"resblock_kernel_sizes": [3], "upsample_kernel_sizes": [4, 4], "upsample_initial_channel": 16}
        | {"upsample_factors": [2, 2]},
        (randn(1, 8, 10),),
    ),
    "HifiGAN.HifiganDiscriminator": ({}, (randn(1, 1, 8192),)),
}


def architectures() -> Iterator[Architecture]:
    """Yield each model."""
    for name, (settings, inputs) in MODELS.items():
        yield Architecture(name, partial(_build, name.partition("-")[0], settings), partial(dict, args=inputs), _call)


def _build(name: str, settings: dict[str, Any]) -> Any:
    module, _, model = name.rpartition(".")
    return getattr(import_module(f"speechbrain.lobes.models.{module}"), model)(**settings)


def _call(model: Any, args: tuple[Tensor, ...]) -> object:
    return model(*args)
