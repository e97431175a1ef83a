"""Speech and sound."""

from __future__ import annotations

from tests.architectures.describe import (
    BLOCKS,
    SIZE,
    SPECIAL,
    WAV2VEC2,
    Architecture,
    audio,
    both,
    decoded,
    floats,
    hf,
    mono,
    text,
)

# Formatted, most rows would take a line per setting, and the table would no longer read as one.
# fmt: off
AUDIO: tuple[Architecture, ...] = (
    hf("audio-spectrogram-transformer", "AST", floats(input_values=(2, 32, 16)), **SIZE, patch_size=4, max_length=32,
        num_mel_bins=16, time_stride=4, frequency_stride=4),
    hf("dac", "Dac", mono, encoder_hidden_size=8, downsampling_ratios=(2, 4), decoder_hidden_size=32,
        n_codebooks=2, codebook_size=16, codebook_dim=4),
    hf("data2vec-audio", "Data2VecAudio", audio, **WAV2VEC2),
    hf("encodec", "Encodec", mono, hidden_size=16, num_filters=4, upsampling_ratios=(4, 2), codebook_size=16,
        num_lstm_layers=1),
    hf("hubert", "Hubert", audio, **WAV2VEC2),
    hf("mimi", "Mimi", mono, **SIZE, num_filters=4, upsampling_ratios=[4, 2], codebook_size=16, codebook_dim=16,
        num_quantizers=3, vector_quantization_hidden_dimension=16, upsample_groups=32, num_key_value_heads=4),
    hf("moonshine", "Moonshine", both(audio, decoded), vocab_size=99, hidden_size=32, intermediate_size=40,
        encoder_num_hidden_layers=1, decoder_num_hidden_layers=1, encoder_num_attention_heads=4,
        decoder_num_attention_heads=4),
    hf("sew", "SEW", audio, **WAV2VEC2),
    hf("sew-d", "SEWD", audio, **WAV2VEC2),
    hf("speech_to_text", "Speech2Text", both(floats(input_features=(2, 64, 16)), decoded), **BLOCKS, vocab_size=99,
        input_feat_per_channel=16, conv_channels=16, max_source_positions=64, max_target_positions=64),
    hf("speecht5", "SpeechT5", both(text, floats(decoder_input_values=(2, 8, 16))), head="ForTextToSpeech",
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
    hf("whisper", "Whisper", both(floats(input_features=(2, 16, 64)), decoded), **BLOCKS, **SPECIAL,
        vocab_size=99, decoder_start_token_id=1, num_mel_bins=16, max_source_positions=32, max_target_positions=64),
)
# fmt: on
