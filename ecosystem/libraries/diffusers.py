"""The networks of diffusers, with a few channels each."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from torch import tensor

from ecosystem.architectures import Architecture
from ecosystem.inputs import rand, randn, tokens

REQUIREMENTS = ("torch==2.13.0", "transformers==5.24.0", "diffusers==0.42.1")

TIME = tensor([10])
BLOCKS = {"block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4}
CROSS = {
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": 8,
    "attention_head_dim": 2,
}
CODES = {
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "norm_num_groups": 4,
    "block_out_channels": (8, 16),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
}
LATENTS = randn(1, 4, 16, 16)
TEXT = randn(1, 4, 8)
IMAGE = rand(1, 3, 32, 32)
HEADS = {"num_attention_heads": 2, "attention_head_dim": 8}
NOISE = {"sample": LATENTS, "timestep": TIME}
HIDDEN = {"hidden_states": LATENTS, "timestep": TIME}

NETWORKS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "UNet2DModel": (
        BLOCKS
        | {"sample_size": 16, "in_channels": 4, "out_channels": 4, "attention_head_dim": 4}
        | {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")},
        NOISE,
    ),
    "UNet2DConditionModel": (BLOCKS | CROSS | {"dropout": 0.1}, NOISE | {"encoder_hidden_states": TEXT}),
    "UNet3DConditionModel": (
        BLOCKS
        | {"down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"), "cross_attention_dim": 8}
        | {"up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D"), "attention_head_dim": 4},
        {"sample": randn(1, 4, 2, 16, 16), "timestep": TIME, "encoder_hidden_states": TEXT},
    ),
    "UNet1DModel": (
        {"block_out_channels": (8, 8), "in_channels": 8, "out_channels": 8, "extra_in_channels": 0}
        | {"down_block_types": ("DownResnetBlock1D",) * 2, "up_block_types": ("UpResnetBlock1D",), "act_fn": "swish"}
        | {"mid_block_type": "MidResTemporalBlock1D", "out_block_type": "OutConv1DBlock", "norm_num_groups": 4}
        | {"time_embedding_type": "positional", "use_timestep_embedding": True, "flip_sin_to_cos": False},
        {"sample": randn(1, 8, 16), "timestep": TIME},
    ),
    "ControlNetModel": (
        BLOCKS
        | {name: value for name, value in CROSS.items() if name != "up_block_types"}
        | {"conditioning_embedding_out_channels": (8, 16)},
        NOISE | {"encoder_hidden_states": TEXT, "controlnet_cond": rand(1, 3, 32, 32)},
    ),
    "AutoencoderKL": (CODES, {"sample": IMAGE}),
    "AutoencoderKL-sampling": (CODES, {"sample": IMAGE, "sample_posterior": True}),
    "AutoencoderTiny": (
        {"encoder_block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8)}
        | {"num_encoder_blocks": (1, 1), "num_decoder_blocks": (1, 1)},
        {"sample": IMAGE},
    ),
    "AutoencoderKLTemporalDecoder": (
        {"latent_channels": 4, "block_out_channels": (32, 32), "down_block_types": ("DownEncoderBlock2D",) * 2},
        {"sample": rand(2, 3, 32, 32), "num_frames": 2},
    ),
    "AutoencoderOobleck": (
        {"encoder_hidden_size": 12, "decoder_channels": 12, "decoder_input_channels": 6, "audio_channels": 2}
        | {"downsampling_ratios": [2, 4], "channel_multiples": [1, 2]},
        {"sample": randn(1, 2, 256)},
    ),
    "AutoencoderDC": (
        {"in_channels": 3, "latent_channels": 4, "attention_head_dim": 2}
        | {"encoder_block_types": ("ResBlock", "EfficientViTBlock"), "encoder_block_out_channels": (8, 8)}
        | {"decoder_block_types": ("ResBlock", "EfficientViTBlock"), "decoder_block_out_channels": (8, 8)}
        | {"encoder_qkv_multiscales": ((), (5,)), "decoder_qkv_multiscales": ((), (5,))}
        | {"encoder_layers_per_block": (1, 1), "decoder_layers_per_block": (1, 1), "downsample_block_type": "conv"},
        {"sample": IMAGE},
    ),
    "AutoencoderKLCogVideoX": (
        {"block_out_channels": (8,) * 4, "latent_channels": 4, "layers_per_block": 1, "norm_num_groups": 2}
        | {"down_block_types": ("CogVideoXDownBlock3D",) * 4, "up_block_types": ("CogVideoXUpBlock3D",) * 4},
        {"sample": rand(1, 3, 8, 16, 16)},
    ),
    "VQModel": (
        {name: value for name, value in CODES.items() if name != "latent_channels"}
        | {"latent_channels": 3, "num_vq_embeddings": 16},
        {"sample": IMAGE},
    ),
    "Transformer2DModel": (
        HEADS | {"in_channels": 4, "norm_num_groups": 2, "cross_attention_dim": 8, "dropout": 0.1},
        {"hidden_states": LATENTS, "encoder_hidden_states": TEXT},
    ),
    "DiTTransformer2DModel": (
        HEADS | {"in_channels": 4, "out_channels": 8, "num_layers": 2, "sample_size": 16, "num_embeds_ada_norm": 8},
        HIDDEN | {"timestep": TIME % 8, "class_labels": tensor([3])},
    ),
    "PixArtTransformer2DModel": (
        HEADS
        | {"num_layers": 2, "cross_attention_dim": 16, "sample_size": 16, "in_channels": 4, "out_channels": 8}
        | {"caption_channels": 8, "use_additional_conditions": False, "attention_head_dim": 8},
        HIDDEN | {"encoder_hidden_states": TEXT, "added_cond_kwargs": {"resolution": None, "aspect_ratio": None}},
    ),
    "SD3Transformer2DModel": (
        HEADS
        | {"sample_size": 16, "patch_size": 2, "in_channels": 4, "out_channels": 4, "num_layers": 2}
        | {
            "joint_attention_dim": 8,
            "caption_projection_dim": 16,
            "pooled_projection_dim": 8,
            "pos_embed_max_size": 16,
        },
        HIDDEN | {"encoder_hidden_states": TEXT, "pooled_projections": randn(1, 8)},
    ),
    "FluxTransformer2DModel": (
        HEADS
        | {"patch_size": 1, "in_channels": 4, "num_layers": 1, "num_single_layers": 1, "joint_attention_dim": 8}
        | {"pooled_projection_dim": 8, "axes_dims_rope": [2, 2, 4], "guidance_embeds": True},
        {"hidden_states": randn(1, 16, 4), "encoder_hidden_states": TEXT, "pooled_projections": randn(1, 8)}
        | {"timestep": TIME / 1000, "img_ids": rand(16, 3), "txt_ids": rand(4, 3), "guidance": tensor([3.5])},
    ),
    "PriorTransformer": (
        HEADS | {"num_layers": 2, "embedding_dim": 8, "num_embeddings": 4, "additional_embeddings": 4},
        {"hidden_states": randn(1, 8), "timestep": TIME, "proj_embedding": randn(1, 8)}
        | {"encoder_hidden_states": TEXT, "attention_mask": rand(1, 4) > 0},
    ),
    "UVit2DModel": (
        {"hidden_size": 16, "block_out_channels": 16, "block_num_heads": 2, "num_hidden_layers": 1}
        | {"num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 100, "codebook_size": 99}
        | {"cond_embed_dim": 8, "encoder_hidden_size": 8, "num_res_blocks": 1, "sample_size": 8, "in_channels": 16},
        {"input_ids": tokens(1, 8, 8, count=98), "encoder_hidden_states": TEXT, "pooled_text_emb": randn(1, 8)}
        | {"micro_conds": rand(1, 5)},
    ),
    "CogVideoXTransformer3DModel": (
        HEADS
        | {"in_channels": 4, "out_channels": 4, "time_embed_dim": 2, "text_embed_dim": 8, "num_layers": 1}
        | {"sample_width": 8, "sample_height": 8, "sample_frames": 8, "patch_size": 2, "max_text_seq_length": 4},
        {"hidden_states": randn(1, 2, 4, 8, 8), "timestep": TIME, "encoder_hidden_states": TEXT},
    ),
    "AuraFlowTransformer2DModel": (
        {"sample_size": 16, "patch_size": 2, "in_channels": 4, "num_mmdit_layers": 1, "num_single_dit_layers": 1}
        | HEADS
        | {"caption_projection_dim": 16, "joint_attention_dim": 8, "out_channels": 4, "pos_embed_max_size": 256},
        HIDDEN | {"encoder_hidden_states": TEXT},
    ),
    "SanaTransformer2DModel": (
        {"patch_size": 1, "in_channels": 4, "out_channels": 4, "num_layers": 1, "attention_head_dim": 4}
        | {"num_attention_heads": 2, "num_cross_attention_heads": 2, "cross_attention_head_dim": 4}
        | {"cross_attention_dim": 8, "caption_channels": 8, "sample_size": 16},
        HIDDEN | {"encoder_hidden_states": TEXT},
    ),
    "MochiTransformer3DModel": (
        HEADS
        | {"patch_size": 2, "num_layers": 2, "pooled_projection_dim": 16, "in_channels": 4, "text_embed_dim": 8}
        | {"time_embed_dim": 4, "max_sequence_length": 16},
        {"hidden_states": randn(1, 4, 2, 16, 16), "timestep": TIME, "encoder_hidden_states": TEXT}
        | {"encoder_attention_mask": rand(1, 4) > 0},
    ),
}


def architectures() -> Iterator[Architecture]:
    """Yield each network."""
    for name, (settings, inputs) in NETWORKS.items():
        yield Architecture(name, partial(_build, name.partition("-")[0], settings), partial(dict, inputs))


def _build(name: str, settings: dict[str, Any]) -> Any:
    import diffusers

    return getattr(diffusers, name)(**settings)
