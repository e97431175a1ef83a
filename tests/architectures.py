"""Tiny, randomly initialised Hugging Face models, one per architecture, each with the inputs of one forward."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

Tensors = dict[str, torch.Tensor]
Settings = dict[str, Any]


@dataclass(frozen=True)
class Architecture:
    """A model type, how to build a tiny model of it, and the keyword arguments of one forward."""

    name: str
    build: Callable[[], torch.nn.Module]
    inputs: Callable[[], Tensors]


def _hf(name: str, family: str, inputs: Callable[[], Tensors], /, head: str = "Model", **settings: Any) -> Architecture:
    """Describe ``transformers.<family><head>`` configured by ``transformers.<family>Config(**settings)``."""

    def build() -> torch.nn.Module:
        import transformers

        config = getattr(transformers, f"{family}Config")(**settings)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model: torch.nn.Module = getattr(transformers, f"{family}{head}")(config)
        return model

    return Architecture(name, build, inputs)


def _ids(length: int) -> torch.Tensor:
    # Ids below 10 are left out: they are the special tokens of one configuration or another.
    return torch.randint(10, 90, (2, length), generator=torch.Generator().manual_seed(0))


def _floats(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def text(length: int = 16) -> Tensors:
    """Two sentences."""
    return {"input_ids": _ids(length)}


def text_pair(length: int = 16) -> Tensors:
    """Two sentences for an encoder, and what its decoder has written so far."""
    return {**text(length), **decoded()}


def decoded() -> Tensors:
    """What a decoder has written so far."""
    return {"decoder_input_ids": _ids(8)}


def boxes() -> Tensors:
    """A bounding box for each token of two sentences."""
    return {"bbox": torch.tensor([1, 2, 30, 40]).expand(2, 16, 4)}


def image(size: int = 32) -> Tensors:
    """Two square images."""
    return {"pixel_values": _floats(2, 3, size, size)}


def video() -> Tensors:
    """Two clips of two frames."""
    return {"pixel_values": _floats(2, 2, 3, 32, 32)}


def audio() -> Tensors:
    """Two waveforms."""
    return {"input_values": _floats(2, 1200)}


def mono() -> Tensors:
    """Two waveforms with a channel dimension."""
    return {"input_values": _floats(2, 1, 1200)}


def series() -> Tensors:
    """Two windows of a series: eight steps of context before them seven of lags, after them four to predict."""
    return {
        "past_values": _floats(2, 15),
        "past_time_features": _floats(2, 15, 1),
        "past_observed_mask": torch.ones(2, 15),
        "future_values": _floats(2, 4),
        "future_time_features": _floats(2, 4, 1),
    }


def padded_series() -> Tensors:
    """Two series with their padding and frequency."""
    return {
        "past_values": _floats(2, 64),
        "past_values_padding": torch.zeros(2, 64, dtype=torch.long),
        "freq": torch.zeros(2, 1, dtype=torch.long),
    }


def trajectory() -> Tensors:
    """Two trajectories of four steps."""
    return {
        "states": _floats(2, 4, 5),
        "actions": _floats(2, 4, 3),
        "rewards": _floats(2, 4, 1),
        "returns_to_go": _floats(2, 4, 1),
        "timesteps": torch.arange(4).expand(2, 4),
        "attention_mask": torch.ones(2, 4),
    }


def floats(**shapes: tuple[int, ...]) -> Callable[[], Tensors]:
    """Random inputs of the given shapes."""
    return lambda: {name: _floats(*shape) for name, shape in shapes.items()}


def both(*parts: Callable[[], Tensors]) -> Callable[[], Tensors]:
    """Several inputs together."""
    return lambda: {name: value for part in parts for name, value in part().items()}


_SIZE: Settings = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 40}
_BERT: Settings = {**_SIZE, "vocab_size": 99, "max_position_embeddings": 64}
_SPECIAL: Settings = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_LLAMA: Settings = {**_BERT, **_SPECIAL, "num_key_value_heads": 2}
_GPT2: Settings = {
    "vocab_size": 99,
    "n_positions": 64,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_XLM: Settings = {"vocab_size": 99, "emb_dim": 32, "n_layers": 2, "n_heads": 4, "max_position_embeddings": 64}
_MAMBA: Settings = {**_SPECIAL, "vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8}
_T5: Settings = {"vocab_size": 99, "d_model": 32, "d_kv": 8, "d_ff": 40, "num_layers": 2, "num_heads": 4}
_BLOCKS: Settings = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 40,
    "decoder_ffn_dim": 40,
}
_BART: Settings = {**_BLOCKS, **_SPECIAL, "vocab_size": 99, "max_position_embeddings": 64, "decoder_start_token_id": 2}
_VIT: Settings = {**_SIZE, "image_size": 32, "patch_size": 8}
_SWIN: Settings = {"image_size": 32, "patch_size": 2, "embed_dim": 16, "depths": (2, 2), "num_heads": (2, 4)}
_RESNET: Settings = {"embedding_size": 16, "hidden_sizes": (16, 32), "depths": (1, 2)}
_PYRAMID: Settings = {"hidden_sizes": (16, 16, 32, 32), "depths": (1, 1, 1, 1), "num_attention_heads": (1, 2, 2, 4)}
_WAV2VEC2: Settings = {
    **_SIZE,
    "conv_dim": (16, 16),
    "conv_kernel": (10, 3),
    "conv_stride": (5, 2),
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 2,
}
_FORECAST: Settings = {
    **_BLOCKS,
    "prediction_length": 4,
    "context_length": 8,
    "lags_sequence": [1, 2, 3, 4, 5, 6, 7],
    "num_time_features": 1,
}
_TOWERS: Settings = {"text_config": {**_BERT, **_SPECIAL}, "vision_config": _VIT, "projection_dim": 16}

# Formatted, most rows would take a line per setting, and the table would no longer read as one.
# fmt: off
_ENCODERS = (
    _hf("albert", "Albert", text, **_BERT, embedding_size=16),
    _hf("bert", "Bert", text, **_BERT),
    _hf("big_bird", "BigBird", partial(text, 64), **_BERT, block_size=4, num_random_blocks=2),
    _hf("camembert", "Camembert", text, **_BERT),
    _hf("canine", "Canine", text, **_SIZE, max_position_embeddings=64, num_hash_buckets=64, local_transformer_stride=8),
    _hf("convbert", "ConvBert", text, **_BERT, embedding_size=32),
    _hf("data2vec-text", "Data2VecText", text, **_BERT),
    _hf("deberta", "Deberta", text, **_BERT, relative_attention=True, pos_att_type=["p2c", "c2p"]),
    _hf("deberta-v2", "DebertaV2", text, **_BERT, relative_attention=True, pos_att_type=["p2c", "c2p"]),
    _hf("distilbert", "DistilBert", text, vocab_size=99, dim=32, n_layers=2, n_heads=4, hidden_dim=40),
    _hf("electra", "Electra", text, **_BERT, embedding_size=16),
    _hf("ernie", "Ernie", text, **_BERT),
    _hf("esm", "Esm", text, **_BERT, pad_token_id=1, mask_token_id=2),
    _hf("eurobert", "EuroBert", text, **_LLAMA, mask_token_id=3),
    _hf("flaubert", "Flaubert", text, **_XLM),
    _hf("fnet", "FNet", text, vocab_size=99, hidden_size=32, num_hidden_layers=2, intermediate_size=40),
    _hf("funnel", "Funnel", text, vocab_size=99, block_sizes=(1, 1), d_model=32, n_head=4, d_head=8, d_inner=40),
    _hf("ibert", "IBert", text, **_BERT, quant_mode=True),
    _hf("layoutlm", "LayoutLM", both(text, boxes), **_BERT),
    _hf("longformer", "Longformer", text, **_BERT, attention_window=8),
    _hf("luke", "Luke", text, **_BERT, entity_vocab_size=20, entity_emb_size=16),
    _hf("megatron-bert", "MegatronBert", text, **_BERT),
    _hf("mobilebert", "MobileBert", text, **_BERT, embedding_size=32, intra_bottleneck_size=16),
    _hf("modernbert", "ModernBert", text, **_BERT, **_SPECIAL, cls_token_id=1, sep_token_id=2),
    _hf("mpnet", "MPNet", text, **_BERT),
    _hf("nomic_bert", "NomicBert", text, **_BERT),
    _hf("nystromformer", "Nystromformer", text, **_BERT, num_landmarks=4, segment_means_seq_len=16),
    _hf("perceiver", "Perceiver", floats(inputs=(2, 16, 32)), d_model=32, num_latents=8, d_latents=32,
        num_self_attends_per_block=2, num_self_attention_heads=4, num_cross_attention_heads=4),
    _hf("reformer", "Reformer", partial(text, 64), vocab_size=99, hidden_size=32, attention_head_size=8,
        num_attention_heads=4, attn_layers=("local", "lsh"), feed_forward_size=40, axial_pos_shape=(8, 8),
        axial_pos_embds_dim=(16, 16), max_position_embeddings=64, local_attn_chunk_length=8, lsh_attn_chunk_length=8,
        num_buckets=4),
    _hf("rembert", "RemBert", text, **_BERT, **_SPECIAL, input_embedding_size=16, output_embedding_size=16),
    _hf("roberta", "Roberta", text, **_BERT),
    _hf("roberta-prelayernorm", "RobertaPreLayerNorm", text, **_BERT),
    _hf("roformer", "RoFormer", text, **_BERT),
    _hf("splinter", "Splinter", text, **_BERT, question_token_id=3),
    _hf("squeezebert", "SqueezeBert", text, **_BERT, embedding_size=32),
    _hf("xlm", "XLM", text, **_XLM),
    _hf("xlm-roberta", "XLMRoberta", text, **_BERT),
    _hf("xlnet", "XLNet", text, vocab_size=99, d_model=32, n_layer=2, n_head=4, d_inner=40),
    _hf("xmod", "Xmod", text, **_BERT, default_language="en_XX"),
    _hf("yoso", "Yoso", text, **_BERT),
)

_DECODERS = (
    _hf("biogpt", "BioGpt", text, **_BERT),
    _hf("bloom", "Bloom", text, vocab_size=99, hidden_size=32, n_layer=2, n_head=4),
    _hf("codegen", "CodeGen", text, **_GPT2, rotary_dim=4),
    _hf("cohere", "Cohere", text, **_LLAMA),
    _hf("ctrl", "CTRL", text, **_GPT2, dff=40),
    _hf("falcon", "Falcon", text, **_SPECIAL, vocab_size=99, hidden_size=32, num_hidden_layers=2,
        num_attention_heads=4),
    _hf("falcon_mamba", "FalconMamba", text, **_MAMBA),
    _hf("gemma", "Gemma", text, **_LLAMA, head_dim=8),
    _hf("gemma2", "Gemma2", text, **_LLAMA, head_dim=8),
    _hf("gpt2", "GPT2", text, **_GPT2),
    _hf("gpt_bigcode", "GPTBigCode", text, **_GPT2),
    _hf("gpt_neo", "GPTNeo", text, **_SPECIAL, vocab_size=99, hidden_size=32, num_layers=2, num_heads=4,
        max_position_embeddings=64, attention_types=[[["global", "local"], 1]]),
    _hf("gpt_neox", "GPTNeoX", text, **_BERT),
    _hf("gptj", "GPTJ", text, **_GPT2, rotary_dim=4),
    _hf("granite", "Granite", text, **_LLAMA),
    _hf("jamba", "Jamba", text, **_LLAMA, num_experts=2, attn_layer_period=2, attn_layer_offset=1),
    _hf("llama", "Llama", text, **_LLAMA),
    _hf("mamba", "Mamba", text, **_MAMBA),
    _hf("mamba2", "Mamba2", text, **_MAMBA, num_heads=4, head_dim=16, n_groups=1, chunk_size=8),
    _hf("mistral", "Mistral", text, **_LLAMA),
    _hf("mixtral", "Mixtral", text, **_LLAMA, num_local_experts=2),
    _hf("mpt", "Mpt", text, vocab_size=99, d_model=32, n_heads=4, n_layers=2, max_seq_len=64),
    _hf("olmo", "Olmo", text, **_LLAMA),
    _hf("openai-gpt", "OpenAIGPT", text, **_GPT2),
    _hf("opt", "OPT", text, vocab_size=99, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, ffn_dim=40,
        max_position_embeddings=64),
    _hf("persimmon", "Persimmon", text, **_BERT, **_SPECIAL),
    _hf("phi", "Phi", text, **_LLAMA),
    _hf("qwen2", "Qwen2", text, **_LLAMA),
    _hf("qwen3", "Qwen3", text, **_LLAMA, head_dim=8),
    _hf("recurrent_gemma", "RecurrentGemma", text, **_SIZE, vocab_size=99, block_types=("recurrent", "attention")),
    _hf("rwkv", "Rwkv", text, vocab_size=99, context_length=64, hidden_size=32, num_hidden_layers=2),
    _hf("stablelm", "StableLm", text, **_LLAMA),
    _hf("starcoder2", "Starcoder2", text, **_LLAMA),
    _hf("xglm", "XGLM", text, vocab_size=99, d_model=32, num_layers=2, attention_heads=4, ffn_dim=40,
        max_position_embeddings=64),
)

_ENCODER_DECODERS = (
    _hf("bart", "Bart", text_pair, **_BART),
    _hf("bigbird_pegasus", "BigBirdPegasus", partial(text_pair, 64), **_BART, block_size=4, num_random_blocks=2),
    _hf("blenderbot", "Blenderbot", text_pair, **_BART),
    _hf("blenderbot-small", "BlenderbotSmall", text_pair, **_BART),
    _hf("fsmt", "FSMT", text_pair, **_BLOCKS, src_vocab_size=99, tgt_vocab_size=99, max_position_embeddings=64),
    _hf("led", "LED", text_pair, **_BLOCKS, vocab_size=99, attention_window=8, max_encoder_position_embeddings=64,
        max_decoder_position_embeddings=64),
    _hf("longt5", "LongT5", text_pair, **_T5, local_radius=4),
    _hf("m2m_100", "M2M100", text_pair, **_BART),
    _hf("marian", "Marian", text_pair, **_BART),
    _hf("mbart", "MBart", text_pair, **_BART),
    _hf("mt5", "MT5", text_pair, **_T5),
    _hf("mvp", "Mvp", text_pair, **_BART),
    _hf("pegasus", "Pegasus", text_pair, **_BART),
    _hf("pegasus_x", "PegasusX", text_pair, **_BART, block_size=8, num_global_tokens=4),
    _hf("plbart", "PLBart", text_pair, **_BART),
    _hf("prophetnet", "ProphetNet", text_pair, vocab_size=99, hidden_size=32, max_position_embeddings=64,
        num_encoder_layers=2, num_encoder_attention_heads=4, encoder_ffn_dim=40,
        num_decoder_layers=2, num_decoder_attention_heads=4, decoder_ffn_dim=40),
    _hf("switch_transformers", "SwitchTransformers", text_pair, **_T5, num_experts=2, num_decoder_layers=2,
        num_sparse_encoder_layers=1, num_sparse_decoder_layers=1),
    _hf("t5", "T5", text_pair, **_T5),
    _hf("umt5", "UMT5", text_pair, **_T5),
)

_VISION = (
    _hf("beit", "Beit", image, **_VIT),
    _hf("bit", "Bit", image, **_RESNET, num_groups=4),
    _hf("convnext", "ConvNext", image, num_stages=2, hidden_sizes=(16, 32), depths=(1, 2), drop_path_rate=0.1),
    _hf("convnextv2", "ConvNextV2", image, num_stages=2, hidden_sizes=(16, 32), depths=(1, 2), drop_path_rate=0.1),
    _hf("cvt", "Cvt", image, embed_dim=(16, 16, 32), num_heads=(1, 2, 4), depth=(1, 2, 3)),
    _hf("data2vec-vision", "Data2VecVision", image, **_VIT),
    _hf("deit", "DeiT", image, **_VIT),
    _hf("detr", "Detr", image, **_BLOCKS, num_queries=4,
        backbone_config={"model_type": "resnet", **_RESNET, "out_features": ["stage2"]}),
    _hf("dinov2", "Dinov2", image, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, image_size=32,
        patch_size=8, drop_path_rate=0.1),
    _hf("dpt", "DPT", image, **_VIT),
    _hf("efficientnet", "EfficientNet", image, image_size=32, width_coefficient=0.1, depth_coefficient=0.5,
        hidden_dim=128),
    _hf("focalnet", "FocalNet", image, image_size=32, embed_dim=16, hidden_sizes=(16, 32), depths=(1, 2),
        focal_levels=(2, 2), focal_windows=(3, 3)),
    _hf("glpn", "GLPN", image, **_PYRAMID),
    _hf("hiera", "Hiera", partial(image, 64), image_size=(64, 64), embed_dim=16, depths=(1, 1, 1, 1),
        num_heads=(1, 1, 2, 2)),
    _hf("levit", "Levit", partial(image, 64), image_size=64, hidden_sizes=(16, 24, 32), num_attention_heads=(1, 2, 2),
        depths=(1, 1, 1), key_dim=(8, 8, 8)),
    _hf("mobilenet_v1", "MobileNetV1", image, image_size=32, depth_multiplier=0.25),
    _hf("mobilenet_v2", "MobileNetV2", image, image_size=32, depth_multiplier=0.25),
    _hf("mobilevit", "MobileViT", partial(image, 64), image_size=64, hidden_sizes=(16, 24, 32),
        neck_hidden_sizes=(8, 8, 16, 16, 24, 32, 32)),
    _hf("mobilevitv2", "MobileViTV2", partial(image, 64), image_size=64, width_multiplier=0.25,
        n_attn_blocks=(1, 1, 1)),
    _hf("poolformer", "PoolFormer", image, hidden_sizes=(16, 16, 32, 32), depths=(1, 1, 1, 1), drop_path_rate=0.1),
    _hf("pvt", "Pvt", image, **_PYRAMID, image_size=32),
    _hf("pvt_v2", "PvtV2", image, **_PYRAMID, image_size=32),
    _hf("regnet", "RegNet", image, **_RESNET, groups_width=8),
    _hf("resnet", "ResNet", image, **_RESNET),
    _hf("rt_detr", "RTDetr", image, d_model=32, num_queries=4, num_denoising=0, encoder_hidden_dim=32,
        encoder_in_channels=(16, 16, 32), encoder_ffn_dim=40, encoder_attention_heads=4, decoder_in_channels=(32,) * 3,
        decoder_ffn_dim=40, decoder_layers=2, decoder_attention_heads=4,
        backbone_config={"model_type": "rt_detr_resnet", "embedding_size": 16, "hidden_sizes": (16, 16, 16, 32),
                         "depths": (1, 1, 1, 1), "layer_type": "basic",
                         "out_features": ["stage2", "stage3", "stage4"]}),
    _hf("segformer", "Segformer", image, **_PYRAMID),
    _hf("swiftformer", "SwiftFormer", partial(image, 64), image_size=64, depths=(1, 1, 1, 1),
        embed_dims=(16, 16, 32, 32)),
    _hf("swin", "Swin", image, **_SWIN, window_size=4),
    _hf("swin2sr", "Swin2SR", image, image_size=32, embed_dim=16, depths=(2,), num_heads=(2,), window_size=4),
    _hf("swinv2", "Swinv2", image, **_SWIN, window_size=4),
    _hf("textnet", "TextNet", image, stem_out_channels=16, hidden_sizes=(16, 16, 16, 32, 32)),
    _hf("timesformer", "Timesformer", video, **_VIT, num_frames=2),
    _hf("videomae", "VideoMAE", video, **_VIT, num_frames=2),
    _hf("vit", "ViT", image, **_VIT, hidden_dropout_prob=0.1),
    _hf("vit_mae", "ViTMAE", image, **_VIT),
    _hf("vit_msn", "ViTMSN", image, **_VIT),
    _hf("vivit", "Vivit", video, **_SIZE, image_size=32, num_frames=2, tubelet_size=(2, 8, 8)),
    _hf("yolos", "Yolos", image, **(_VIT | {"image_size": (32, 32)}), num_detection_tokens=4),
)

_AUDIO = (
    _hf("audio-spectrogram-transformer", "AST", floats(input_values=(2, 32, 16)), **_SIZE, patch_size=4, max_length=32,
        num_mel_bins=16, time_stride=4, frequency_stride=4),
    _hf("dac", "Dac", mono, encoder_hidden_size=8, downsampling_ratios=(2, 4), decoder_hidden_size=32,
        n_codebooks=2, codebook_size=16, codebook_dim=4),
    _hf("data2vec-audio", "Data2VecAudio", audio, **_WAV2VEC2),
    _hf("encodec", "Encodec", mono, hidden_size=16, num_filters=4, upsampling_ratios=(4, 2), codebook_size=16,
        num_lstm_layers=1),
    _hf("hubert", "Hubert", audio, **_WAV2VEC2),
    _hf("mimi", "Mimi", mono, **_SIZE, num_filters=4, upsampling_ratios=[4, 2], codebook_size=16, codebook_dim=16,
        num_quantizers=3, vector_quantization_hidden_dimension=16, upsample_groups=32, num_key_value_heads=4),
    _hf("moonshine", "Moonshine", both(audio, decoded), vocab_size=99, hidden_size=32, intermediate_size=40,
        encoder_num_hidden_layers=1, decoder_num_hidden_layers=1, encoder_num_attention_heads=4,
        decoder_num_attention_heads=4),
    _hf("sew", "SEW", audio, **_WAV2VEC2),
    _hf("sew-d", "SEWD", audio, **_WAV2VEC2),
    _hf("speech_to_text", "Speech2Text", both(floats(input_features=(2, 64, 16)), decoded), **_BLOCKS, vocab_size=99,
        input_feat_per_channel=16, conv_channels=16, max_source_positions=64, max_target_positions=64),
    _hf("speecht5", "SpeechT5", both(text, floats(decoder_input_values=(2, 8, 16))), head="ForTextToSpeech",
        vocab_size=99, hidden_size=32, num_mel_bins=16, speech_decoder_prenet_units=16, speaker_embedding_dim=16,
        speech_decoder_postnet_units=16, encoder_layers=1, encoder_attention_heads=4, encoder_ffn_dim=40,
        decoder_layers=1, decoder_attention_heads=4, decoder_ffn_dim=40),
    _hf("unispeech", "UniSpeech", audio, **_WAV2VEC2),
    _hf("unispeech-sat", "UniSpeechSat", audio, **_WAV2VEC2),
    _hf("univnet", "UnivNet", floats(input_features=(2, 16, 16)), model_in_channels=8, model_hidden_channels=8,
        num_mel_bins=16, kernel_predictor_hidden_channels=8),
    _hf("vits", "Vits", text, vocab_size=99, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, ffn_dim=40,
        flow_size=16, spectrogram_bins=9, prior_encoder_num_flows=2, prior_encoder_num_wavenet_layers=2,
        posterior_encoder_num_wavenet_layers=2, upsample_initial_channel=16, upsample_rates=(4, 2),
        upsample_kernel_sizes=(8, 4), resblock_kernel_sizes=(3,), resblock_dilation_sizes=((1, 3),)),
    _hf("wav2vec2", "Wav2Vec2", audio, **_WAV2VEC2),
    _hf("wav2vec2-bert", "Wav2Vec2Bert", floats(input_features=(2, 64, 16)), **_SIZE, feature_projection_input_dim=16),
    _hf("wav2vec2-conformer", "Wav2Vec2Conformer", audio, **_WAV2VEC2),
    _hf("wavlm", "WavLM", audio, **_WAV2VEC2),
    _hf("whisper", "Whisper", both(floats(input_features=(2, 16, 64)), decoded), **_BLOCKS, **_SPECIAL,
        vocab_size=99, decoder_start_token_id=1, num_mel_bins=16, max_source_positions=32, max_target_positions=64),
)

_MULTIMODAL = (
    _hf("align", "Align", both(text, image), text_config=_BERT, projection_dim=32,
        vision_config={"image_size": 32, "width_coefficient": 0.1, "depth_coefficient": 0.5, "hidden_dim": 128,
                       "initializer_range": 0.2}),
    _hf("altclip", "AltCLIP", both(text, image), text_config={**_BERT, "project_dim": 32}, vision_config=_VIT,
        projection_dim=16),
    _hf("blip", "Blip", both(text, image), **_TOWERS),
    _hf("chinese_clip", "ChineseCLIP", both(text, image), **_TOWERS),
    _hf("clip", "CLIP", both(text, image), **_TOWERS),
    _hf("clipseg", "CLIPSeg", both(text, image), **_TOWERS),
    _hf("git", "Git", both(text, image), **_BERT, **_SPECIAL, vision_config=_VIT),
    _hf("layoutlmv3", "LayoutLMv3", both(text, boxes, image), **_BERT, coordinate_size=6, shape_size=4,
        input_size=32, patch_size=8),
    _hf("lxmert", "Lxmert", both(text, floats(visual_feats=(2, 4, 16), visual_pos=(2, 4, 4))), vocab_size=99,
        hidden_size=32, num_attention_heads=4, intermediate_size=40, l_layers=1, x_layers=1, r_layers=1,
        visual_feat_dim=16),
    _hf("owlvit", "OwlViT", both(text, image), **_TOWERS),
    _hf("siglip", "Siglip", both(text, image), text_config={**_BERT, **_SPECIAL}, vision_config=_VIT),
    _hf("vilt", "Vilt", both(text, image), **_VIT, vocab_size=99),
    _hf("visual_bert", "VisualBert", both(text, floats(visual_embeds=(2, 4, 16))), **_BERT, visual_embedding_dim=16),
    _hf("xclip", "XCLIP", both(text, video), text_config={**_BERT, **_SPECIAL}, projection_dim=32,
        vision_config={**_VIT, "num_frames": 2, "mit_hidden_size": 32, "mit_intermediate_size": 40,
                       "mit_num_hidden_layers": 1, "mit_num_attention_heads": 4},
        prompt_num_attention_heads=4),
)

_SERIES = (
    _hf("autoformer", "Autoformer", series, **_FORECAST, moving_average=3, label_length=4),
    _hf("decision_transformer", "DecisionTransformer", trajectory, state_dim=5, act_dim=3, hidden_size=32,
        max_ep_len=16, n_positions=64, n_layer=2, n_head=4),
    _hf("informer", "Informer", series, **_FORECAST),
    _hf("patchtsmixer", "PatchTSMixer", floats(past_values=(2, 32, 2)), num_input_channels=2, d_model=16),
    _hf("patchtst", "PatchTST", floats(past_values=(2, 32, 2)), num_input_channels=2, patch_length=8, patch_stride=8,
        d_model=32, num_hidden_layers=2, ffn_dim=40, path_dropout=0.1),
    _hf("time_series_transformer", "TimeSeriesTransformer", series, **_FORECAST),
    _hf("timesfm", "TimesFm", padded_series, **(_SIZE | {"intermediate_size": 32}), head_dim=8,
        patch_length=8, context_length=64, horizon_length=8),
)
# fmt: on

ARCHITECTURES: tuple[Architecture, ...] = (
    *_ENCODERS,
    *_DECODERS,
    *_ENCODER_DECODERS,
    *_VISION,
    *_AUDIO,
    *_MULTIMODAL,
    *_SERIES,
)
