"""Diffusion models: denoisers, autoencoders, adapters."""

from __future__ import annotations

from collections.abc import Callable

import torch

from tests.architectures.describe import (
    Architecture,
    Inputs,
    Settings,
    fixed,
    floats,
    from_path,
    integers,
    merge,
    noise,
)

DENOISER: Settings = {
    "sample_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": 4,
}
CODER: Settings = {
    "block_out_channels": (8, 16),
    "norm_num_groups": 4,
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
}
TRANSFORMER: Settings = {"num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 16}

picture = floats(sample=(2, 3, 16, 16))
prompt = floats(encoder_hidden_states=(2, 6, 16))


def timestep(value: float) -> Callable[[], Inputs]:
    """Return a function that returns the timestep of two samples."""
    return fixed(timestep=torch.tensor([value, value]))


def encoded() -> Inputs:
    """Return two encoded scores and the timesteps of the decoder."""
    return {
        "encodings_and_masks": [(noise(2, 6, 16), torch.ones(2, 6))],
        "decoder_noise_time": torch.tensor([0.5, 0.5]),
    }


# The formatter would put each setting on its own line, and the table would be unreadable.
# fmt: off
DIFFUSION: tuple[Architecture, ...] = (
    from_path("autoencoder-dc", "diffusers:AutoencoderDC", picture, latent_channels=4, attention_head_dim=4,
        encoder_block_types=("ResBlock", "EfficientViTBlock"), decoder_block_types=("ResBlock", "EfficientViTBlock"),
        encoder_block_out_channels=(8, 16), decoder_block_out_channels=(8, 16), encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1), encoder_qkv_multiscales=((), (5,)), decoder_qkv_multiscales=((), (5,)),
        decoder_norm_types=("batch_norm", "rms_norm"), decoder_act_fns=("relu", "silu")),
    from_path("autoencoder-kl", "diffusers:AutoencoderKL", picture, **CODER),
    from_path("cogvideox", "diffusers:CogVideoXTransformer3DModel",
        merge(merge(floats(hidden_states=(2, 2, 4, 8, 8)), timestep(7)), prompt), **TRANSFORMER, in_channels=4,
        out_channels=4, time_embed_dim=8, text_embed_dim=16, sample_width=8, sample_height=8, sample_frames=5,
        max_text_seq_length=6, dropout=0.1),
    from_path("controlnet", "diffusers:ControlNetModel",
        merge(merge(floats(sample=(2, 4, 8, 8)), timestep(7)), prompt, floats(controlnet_cond=(2, 3, 64, 64))),
        in_channels=4,
        block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, cross_attention_dim=16, attention_head_dim=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), conditioning_embedding_out_channels=(8, 8, 8, 8)),
    from_path("dit", "diffusers:DiTTransformer2DModel",
        merge(merge(floats(hidden_states=(2, 4, 8, 8)), timestep(7)), fixed(class_labels=torch.tensor([1, 2]))),
        **TRANSFORMER, sample_size=8, num_embeds_ada_norm=8, dropout=0.1),
    from_path("flux", "diffusers:FluxTransformer2DModel",
        merge(floats(hidden_states=(2, 16, 4), pooled_projections=(2, 8), img_ids=(16, 3), txt_ids=(6, 3)), prompt,
            timestep(0.5)), in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=16, pooled_projection_dim=8, axes_dims_rope=(4, 4, 8)),
    from_path("sana", "diffusers:SanaTransformer2DModel",
        merge(merge(floats(hidden_states=(2, 4, 8, 8)), timestep(7)), prompt), in_channels=4, out_channels=4,
        num_attention_heads=2, attention_head_dim=16, num_layers=2,
        num_cross_attention_heads=2, cross_attention_head_dim=16, cross_attention_dim=32, caption_channels=16,
        sample_size=8, dropout=0.1),
    from_path("stable-audio", "diffusers:StableAudioDiTModel",
        merge(merge(floats(hidden_states=(2, 4, 8)), timestep(7)), prompt, floats(global_hidden_states=(2, 1, 16)),
            fixed(rotary_embedding=(torch.ones(9, 8), torch.zeros(9, 8)))), sample_size=8, in_channels=4, num_layers=2,
        attention_head_dim=16, num_attention_heads=2, num_key_value_attention_heads=1, out_channels=4,
        cross_attention_dim=32, time_proj_dim=8, global_states_input_dim=16, cross_attention_input_dim=16),
    from_path("stable-cascade", "diffusers:StableCascadeUNet",
        merge(floats(sample=(2, 4, 8, 8), clip_text_pooled=(2, 1, 8)), fixed(timestep_ratio=torch.tensor([0.5, 0.5]))),
        in_channels=4, out_channels=4, timestep_ratio_embedding_dim=8, conditioning_dim=16, block_out_channels=(16, 16),
        num_attention_heads=(2, 2), down_num_layers_per_block=(1, 1), up_num_layers_per_block=(1, 1),
        clip_text_pooled_in_channels=8),
    from_path("stable-diffusion-3", "diffusers:SD3Transformer2DModel",
        merge(merge(floats(hidden_states=(2, 4, 8, 8)), timestep(7)), prompt, floats(pooled_projections=(2, 8))),
        **TRANSFORMER, sample_size=8, in_channels=4, out_channels=4, joint_attention_dim=16, caption_projection_dim=32,
        pooled_projection_dim=8, pos_embed_max_size=8, qk_norm="rms_norm"),
    from_path("t2i-adapter", "diffusers:T2IAdapter", floats(x=(2, 3, 32, 32)), channels=[8, 8, 16, 16],
        num_res_blocks=1),
    from_path("t5-film", "diffusers:T5FilmDecoder", merge(floats(decoder_input_tokens=(2, 8, 4)), encoded),
        input_dims=4, targets_length=8, d_model=16, num_layers=1, num_heads=2, d_kv=8, d_ff=24),
    from_path("unet-2d", "diffusers:UNet2DModel", merge(floats(sample=(2, 4, 8, 8)), timestep(7)), **DENOISER,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        dropout=0.1),
    from_path("unet-2d-condition", "diffusers:UNet2DConditionModel",
        merge(merge(floats(sample=(2, 4, 8, 8)), timestep(7)), prompt), **DENOISER, cross_attention_dim=16,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        dropout=0.1),
    from_path("unet-3d-condition", "diffusers:UNet3DConditionModel",
        merge(merge(floats(sample=(2, 4, 2, 8, 8)), timestep(7)), prompt), **DENOISER, cross_attention_dim=16,
        down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"), up_block_types=("UpBlock3D", "CrossAttnUpBlock3D")),
    from_path("uvit", "diffusers:UVit2DModel",
        merge(integers(16, input_ids=(2, 8, 8)), prompt, floats(pooled_text_emb=(2, 8), micro_conds=(2, 5))),
        hidden_size=32, cond_embed_dim=8, micro_cond_encode_dim=4, micro_cond_embed_dim=20, encoder_hidden_size=16,
        vocab_size=16, codebook_size=12, in_channels=16, block_out_channels=16, num_res_blocks=1, block_num_heads=2,
        num_hidden_layers=2, num_attention_heads=2, intermediate_size=40, sample_size=8, hidden_dropout=0.1),
    from_path("vq", "diffusers:VQModel", picture, **CODER, num_vq_embeddings=16),
    from_path("wan", "diffusers:WanTransformer3DModel",
        merge(merge(floats(hidden_states=(2, 4, 2, 8, 8)), timestep(7)), prompt),
        **TRANSFORMER, in_channels=4, out_channels=4, text_dim=16, freq_dim=8, ffn_dim=40, rope_max_seq_len=16),
)
# fmt: on
