"""The networks of MONAI, small, on images of 64 or volumes of 32 to a side."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from torch import Tensor

from ecosystem.architectures import Architecture
from ecosystem.inputs import rand, tokens

REQUIREMENTS = ("torch==2.13.0", "monai==1.6.1", "einops==0.8.2")

PLANAR = {"spatial_dims": 2, "in_channels": 1, "out_channels": 2}
STEPS = {"channels": (8, 16, 32), "strides": (2, 2)}
SMALL_BLOCKS = {"channels": (8, 16), "attention_levels": (False, True), "num_res_blocks": 1, "norm_num_groups": 8}
TRANSFORMER = {"hidden_size": 48, "mlp_dim": 64, "num_heads": 4}
IMAGE = rand(2, 1, 64, 64)
VOLUME = rand(1, 1, 32, 32, 32)
LABELS = {"x": IMAGE, "seg": rand(2, 3, 64, 64)}
TIMES = {"x": IMAGE, "timesteps": tokens(2)}

NETWORKS: dict[str, tuple[dict[str, Any], Tensor | dict[str, Tensor]]] = {
    "AHNet": (
        {"layers": (1, 1, 1, 1), "spatial_dims": 2, "upsample_mode": "bilinear", "psp_block_num": 0},
        rand(1, 1, 128, 128),
    ),
    "AttentionUnet": (PLANAR | STEPS | {"dropout": 0.1}, IMAGE),
    "AutoEncoder": (PLANAR | STEPS | {"channels": (8, 16)} | {"dropout": 0.1}, IMAGE),
    "AutoencoderKL": (PLANAR | SMALL_BLOCKS, IMAGE),
    "BasicUNet": (PLANAR | {"features": (8, 8, 16, 16, 16, 8), "dropout": 0.1}, IMAGE),
    "BasicUNetPlusPlus": (PLANAR | {"features": (8, 8, 16, 16, 16, 8)}, IMAGE),
    "Classifier": ({"in_shape": (1, 64, 64), "classes": 3} | STEPS | {"dropout": 0.1}, IMAGE),
    "Critic": ({"in_shape": (1, 64, 64)} | STEPS, IMAGE),
    "Discriminator": ({"in_shape": (1, 64, 64)} | STEPS, IMAGE),
    "ControlNet": (
        {"spatial_dims": 2, "in_channels": 1, "conditioning_embedding_num_channels": (8,)} | SMALL_BLOCKS,
        TIMES | {"controlnet_cond": IMAGE},
    ),
    "DenseNet121": (PLANAR | {"dropout_prob": 0.1}, IMAGE),
    "DenseNet169": (PLANAR, IMAGE),
    "DiffusionModelUNet": (PLANAR | SMALL_BLOCKS, TIMES),
    "DynUNet": (PLANAR | {"kernel_size": [3, 3, 3], "strides": [1, 2, 2], "upsample_kernel_size": [2, 2]}, IMAGE),
    "EfficientNetBN": ({"model_name": "efficientnet-b0", "pretrained": False, "in_channels": 1}, IMAGE),
    "FlexibleUNet": ({"in_channels": 1, "out_channels": 2, "backbone": "efficientnet-b0"}, IMAGE),
    "FullyConnectedNet": (
        {"in_channels": 8, "out_channels": 2, "hidden_channels": [8, 8], "dropout": 0.1},
        rand(4, 8),
    ),
    "Generator": ({"latent_shape": (8,), "start_shape": (8, 4, 4), "channels": (8, 1), "strides": (2, 2)}, rand(2, 8)),
    "HighResNet": ({"spatial_dims": 2, "in_channels": 1, "out_channels": 2, "dropout_prob": 0.1}, IMAGE),
    "MaskedAutoEncoderViT": (
        {
            "in_channels": 1,
            "img_size": 64,
            "patch_size": 16,
            "spatial_dims": 2,
            "num_layers": 2,
            "decoder_num_layers": 1,
        }
        | {"decoder_hidden_size": 48, "decoder_mlp_dim": 64, "decoder_num_heads": 4}
        | TRANSFORMER,
        IMAGE,
    ),
    "MedNeXt": (PLANAR | {"init_filters": 8, "kernel_size": 3}, IMAGE),
    "MILModel": ({"num_classes": 2, "pretrained": False, "backbone": None, "mil_mode": "att"}, rand(1, 4, 3, 64, 64)),
    "PatchDiscriminator": (PLANAR | {"channels": 8}, IMAGE),
    "MultiScalePatchDiscriminator": (
        {"num_d": 2, "num_layers_d": 1, "spatial_dims": 2, "channels": 8, "in_channels": 1, "minimum_size_im": 64},
        IMAGE,
    ),
    "Quicknat": ({"num_classes": 3, "num_filters": 8, "drop_out": 0.1}, IMAGE),
    "Regressor": ({"in_shape": (1, 64, 64), "out_shape": (2,)} | STEPS, IMAGE),
    "GlobalNet": (
        {"image_size": (64, 64), "spatial_dims": 2, "in_channels": 1, "num_channel_initial": 8, "depth": 2},
        IMAGE,
    ),
    "LocalNet": (
        {"spatial_dims": 2, "in_channels": 1, "num_channel_initial": 8, "extract_levels": (0, 1, 2), "out_channels": 2},
        IMAGE,
    ),
    "RegUNet": ({"spatial_dims": 2, "in_channels": 1, "num_channel_initial": 8, "depth": 2, "out_channels": 2}, IMAGE),
    "SegResNet": (PLANAR | {"dropout_prob": 0.1}, IMAGE),
    "SegResNetVAE": (PLANAR | {"input_image_size": (64, 64), "vae_nz": 16}, IMAGE),
    "SegResNetDS": (PLANAR | {"init_filters": 8}, IMAGE),
    "SegResNetDS2": (PLANAR | {"init_filters": 8}, IMAGE),
    "SEResNet50": ({"spatial_dims": 2, "in_channels": 1}, IMAGE),
    "SPADEAutoencoderKL": (PLANAR | {"label_nc": 3} | SMALL_BLOCKS, LABELS),
    "SPADEDiffusionModelUNet": (PLANAR | {"label_nc": 3} | SMALL_BLOCKS, LABELS | TIMES),
    "SPADENet": (
        PLANAR | {"label_nc": 3, "input_shape": [64, 64], "channels": [8, 8], "z_dim": 8},
        {"x": IMAGE, "seg": rand(2, 3, 64, 64)},
    ),
    "SwinUNETR": ({"in_channels": 1, "out_channels": 2, "feature_size": 12, "spatial_dims": 2}, IMAGE),
    "DecoderOnlyTransformer": (
        {"num_tokens": 99, "max_seq_len": 16, "attn_layers_dim": 32, "attn_layers_depth": 2, "attn_layers_heads": 2},
        tokens(2, 9),
    ),
    "UNet": (PLANAR | STEPS | {"num_res_units": 1, "dropout": 0.1}, IMAGE),
    "UNet-batch-norm": (PLANAR | STEPS | {"norm": "batch"}, IMAGE),
    "UNETR": ({"in_channels": 1, "out_channels": 2, "img_size": 64, "spatial_dims": 2} | TRANSFORMER, IMAGE),
    "VarAutoEncoder": (
        {"spatial_dims": 2, "in_shape": (1, 64, 64), "out_channels": 1, "latent_size": 4} | STEPS,
        IMAGE,
    ),
    "VarFullyConnectedNet": (
        {"in_channels": 8, "out_channels": 8, "latent_size": 2, "encode_channels": [8], "decode_channels": [8]},
        rand(4, 8),
    ),
    "ViT": (
        {"in_channels": 1, "img_size": 64, "patch_size": 16, "spatial_dims": 2, "dropout_rate": 0.1} | TRANSFORMER,
        IMAGE,
    ),
    "ViTAutoEnc": ({"in_channels": 1, "img_size": 64, "patch_size": 16, "spatial_dims": 2} | TRANSFORMER, IMAGE),
    "VNet": ({"spatial_dims": 2}, IMAGE),
    "VoxelMorphUNet": (
        {"spatial_dims": 2, "in_channels": 2, "unet_out_channels": 8, "channels": (8, 8, 8, 8)}
        | {"final_conv_channels": (8, 8)},
        {"concatenated_pairs": rand(1, 2, 64, 64)},
    ),
    "VQVAE": (
        {"spatial_dims": 2, "in_channels": 1, "out_channels": 1, "channels": (8, 8), "num_res_channels": (8, 8)}
        | {"num_res_layers": 1, "downsample_parameters": ((2, 4, 1, 1),) * 2}
        | {"upsample_parameters": ((2, 4, 1, 1, 0),) * 2, "embedding_dim": 8},
        IMAGE,
    ),
    "BasicUNet-3d": ({"features": (8, 8, 16, 16, 16, 8)}, VOLUME),
    "SegResNet-3d": ({}, VOLUME),
    "VNet-3d": ({}, VOLUME),
}


def architectures() -> Iterator[Architecture]:
    """Yield each network."""
    for name, (settings, inputs) in NETWORKS.items():
        yield Architecture(
            name, partial(_build, name.partition("-")[0], settings), partial(_inputs, inputs), _positional
        )


def _build(name: str, settings: dict[str, Any]) -> Any:
    import monai.networks.nets

    return getattr(monai.networks.nets, name)(**settings)


def _inputs(inputs: Tensor | dict[str, Tensor]) -> dict[str, Any]:
    return {"first": inputs} if isinstance(inputs, Tensor) else inputs


def _positional(model: Any, first: Tensor | None = None, **inputs: Any) -> object:
    return model(**inputs) if first is None else model(first)
