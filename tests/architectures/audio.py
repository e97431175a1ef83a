"""Speech and audio."""

from __future__ import annotations

import torch

from tests.architectures.describe import (
    BERT,
    BLOCKS,
    LLAMA,
    SIZE,
    SPECIAL,
    T5,
    WAV2VEC2,
    Architecture,
    Inputs,
    Settings,
    audio,
    fixed,
    floats,
    hf,
    integers,
    merge,
    mono,
    target_ids,
    text,
)

ENCODEC: Settings = {
    "hidden_size": 16,
    "num_filters": 4,
    "upsampling_ratios": (4, 2),
    "codebook_size": 16,
    "num_lstm_layers": 1,
}
BARK: Settings = {
    "block_size": 64,
    "input_vocab_size": 99,
    "output_vocab_size": 99,
    "num_layers": 2,
    "num_heads": 4,
    "hidden_size": 32,
    "dropout": 0.1,
}
SEAMLESS: Settings = {
    **{name: value for name, value in BLOCKS.items() if name != "d_model"},
    "vocab_size": 99,
    "t2u_vocab_size": 50,
    "hidden_size": 32,
    "max_position_embeddings": 64,
    "speech_encoder_layers": 2,
    "speech_encoder_attention_heads": 4,
    "speech_encoder_intermediate_size": 40,
    "feature_projection_input_dim": 16,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 2,
    "conv_depthwise_kernel_size": 7,
}


def music() -> Inputs:
    """Return the ids that four codebooks have generated so far, for each of two prompts."""
    return {"decoder_input_ids": integers(90, codes=(8, 12))()["codes"]}


# The formatter would put each setting on its own line, and the table would be unreadable.
# fmt: off
AUDIO: tuple[Architecture, ...] = (
    hf("audio-spectrogram-transformer", "AST", floats(input_values=(2, 32, 16)), **SIZE, patch_size=4, max_length=32,
        num_mel_bins=16, time_stride=4, frequency_stride=4),
    hf("dac", "Dac", mono, encoder_hidden_size=8, downsampling_ratios=(2, 4), decoder_hidden_size=32,
        n_codebooks=2, codebook_size=16, codebook_dim=4),
    hf("data2vec-audio", "Data2VecAudio", audio, **WAV2VEC2),
    hf("encodec", "Encodec", mono, **ENCODEC),
    hf("hubert", "Hubert", audio, **WAV2VEC2),
    hf("mimi", "Mimi", mono, **SIZE, num_filters=4, upsampling_ratios=[4, 2], codebook_size=16, codebook_dim=16,
        num_quantizers=3, vector_quantization_hidden_dimension=16, upsample_groups=32, num_key_value_heads=4),
    hf("moonshine", "Moonshine", merge(audio, target_ids), vocab_size=99, hidden_size=32, intermediate_size=40,
        encoder_num_hidden_layers=1, decoder_num_hidden_layers=1, encoder_num_attention_heads=4,
        decoder_num_attention_heads=4),
    hf("sew", "SEW", audio, **WAV2VEC2),
    hf("sew-d", "SEWD", audio, **WAV2VEC2),
    hf("speech_to_text", "Speech2Text", merge(floats(input_features=(2, 64, 16)), target_ids), **BLOCKS, vocab_size=99,
        input_feat_per_channel=16, conv_channels=16, max_source_positions=64, max_target_positions=64),
    hf("speecht5", "SpeechT5", merge(text, floats(decoder_input_values=(2, 8, 16))), head="ForTextToSpeech",
        vocab_size=99, hidden_size=32, num_mel_bins=16, speech_decoder_prenet_units=16, speaker_embedding_dim=16,
        speech_decoder_postnet_units=16, encoder_layers=1, encoder_attention_heads=4, encoder_ffn_dim=40,
        decoder_layers=1, decoder_attention_heads=4, decoder_ffn_dim=40),
    hf("unispeech", "UniSpeech", audio, **WAV2VEC2),
    hf("unispeech-sat", "UniSpeechSat", audio, **WAV2VEC2),
    hf("univnet", "UnivNet", floats(input_features=(2, 16, 16)), model_in_channels=8, model_hidden_channels=8,
        num_mel_bins=16, kernel_predictor_hidden_channels=8),
    hf("vits", "Vits", text, vocab_size=99, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, ffn_dim=40,
        flow_size=16, spectrogram_bins=9, prior_encoder_num_flows=2, prior_encoder_num_wavenet_layers=2,
        posterior_encoder_num_wavenet_layers=2, upsample_initial_channel=16, upsample_rates=(4, 2),
        upsample_kernel_sizes=(8, 4), resblock_kernel_sizes=(3,), resblock_dilation_sizes=((1, 3),)),
    hf("wav2vec2", "Wav2Vec2", audio, **WAV2VEC2),
    hf("wav2vec2-bert", "Wav2Vec2Bert", floats(input_features=(2, 64, 16)), **SIZE, feature_projection_input_dim=16),
    hf("wav2vec2-conformer", "Wav2Vec2Conformer", audio, **WAV2VEC2),
    hf("wavlm", "WavLM", audio, **WAV2VEC2),
    hf("whisper", "Whisper", merge(floats(input_features=(2, 16, 64)), target_ids), **BLOCKS, **SPECIAL,
        vocab_size=99, decoder_start_token_id=1, num_mel_bins=16, max_source_positions=32, max_target_positions=64),
    hf("bark-fine", "BarkFine", merge(integers(90, input_ids=(2, 16, 4)), fixed(codebook_idx=2)), **BARK,
        n_codes_total=4),
    hf("bark-semantic", "BarkSemantic", text, **BARK),
    hf("clap", "Clap",
        merge(text, floats(input_features=(2, 1, 64, 16)), fixed(is_longer=torch.zeros(2, 1, dtype=torch.bool))),
        text_config={**BERT, "projection_dim": 16}, projection_dim=16,
        audio_config={"hidden_size": 32, "spec_size": 64, "num_mel_bins": 16, "window_size": 2, "depths": [1, 1],
            "num_attention_heads": [2, 4], "num_hidden_layers": 2, "patch_embeds_hidden_size": 16,
            "projection_dim": 16}),
    hf("csm-depth", "CsmDepthDecoder",
        merge(integers(90, input_ids=(2, 6)), floats(backbone_last_hidden_state=(2, 32))),
        head="ForCausalLM", **{**LLAMA, "max_position_embeddings": 33}, num_codebooks=8, backbone_hidden_size=32),
    hf("hifigan", "SpeechT5HifiGan", floats(spectrogram=(2, 16, 16)), head="", model_in_dim=16,
        upsample_initial_channel=16, upsample_rates=[4, 2], upsample_kernel_sizes=[8, 4], resblock_kernel_sizes=[3],
        resblock_dilation_sizes=[[1, 3]]),
    hf("pop2piano", "Pop2Piano", merge(floats(input_features=(2, 16, 32)), target_ids), head="ForConditionalGeneration",
        **T5),
    hf("musicgen", "Musicgen", merge(text, music), head="ForConditionalGeneration",
        text_encoder={"model_type": "t5", **T5}, audio_encoder={"model_type": "encodec", **ENCODEC},
        decoder={"vocab_size": 99, "max_position_embeddings": 64, "num_hidden_layers": 2, "ffn_dim": 40,
                 "num_attention_heads": 4, "hidden_size": 32, "pad_token_id": 98, "bos_token_id": 98}),
    hf("parakeet", "ParakeetEncoder", floats(input_features=(2, 64, 16)), head="", **SIZE,
        subsampling_conv_channels=8, num_mel_bins=16, conv_kernel_size=5),
    hf("seamless_m4t", "SeamlessM4T", merge(floats(input_features=(2, 32, 16)), target_ids), head="ForSpeechToText",
        **SEAMLESS),
    hf("seamless_m4t_v2", "SeamlessM4Tv2", merge(floats(input_features=(2, 32, 16)), target_ids),
        head="ForSpeechToText", **SEAMLESS),
    hf("wavlm-xvector", "WavLM", audio, head="ForXVector", **WAV2VEC2, tdnn_dim=(16, 16, 32),
        tdnn_kernel=(3, 3, 1), tdnn_dilation=(1, 2, 1), xvector_output_dim=16),
)
# fmt: on
