"""Time series and trajectories."""

from __future__ import annotations

from tests.architectures.describe import (
    BLOCKS,
    SIZE,
    Architecture,
    Settings,
    fixed,
    floats,
    hf,
    noise,
    padded_series,
    series,
    trajectory,
)

FORECAST: Settings = {
    **BLOCKS,
    "prediction_length": 4,
    "context_length": 8,
    "lags_sequence": [1, 2, 3, 4, 5, 6, 7],
    "num_time_features": 1,
}

# The formatter would put each setting on its own line, and the table would be unreadable.
# fmt: off
SERIES: tuple[Architecture, ...] = (
    hf("autoformer", "Autoformer", series, **FORECAST, moving_average=3, label_length=4),
    hf("decision_transformer", "DecisionTransformer", trajectory, state_dim=5, act_dim=3, hidden_size=32,
        max_ep_len=16, n_positions=64, n_layer=2, n_head=4),
    hf("informer", "Informer", series, **FORECAST),
    hf("patchtsmixer", "PatchTSMixer", floats(past_values=(2, 32, 2)), num_input_channels=2, d_model=16),
    hf("patchtst", "PatchTST", floats(past_values=(2, 32, 2)), num_input_channels=2, patch_length=8, patch_stride=8,
        d_model=32, num_hidden_layers=2, ffn_dim=40, path_dropout=0.1),
    hf("time_series_transformer", "TimeSeriesTransformer", series, **FORECAST),
    hf("timesfm", "TimesFm", padded_series, **(SIZE | {"intermediate_size": 32}), head_dim=8,
        patch_length=8, context_length=64, horizon_length=8),
    hf("patchtst-pretraining", "PatchTST", floats(past_values=(2, 32, 2)), head="ForPretraining", num_input_channels=2,
        context_length=32, patch_length=8, patch_stride=8, d_model=32, num_hidden_layers=2, ffn_dim=40),
    hf("patchtst-prediction", "PatchTST", floats(past_values=(2, 32, 2)), head="ForPrediction", num_input_channels=2,
        context_length=32, patch_length=8, patch_stride=8, d_model=32, num_hidden_layers=2, ffn_dim=40,
        prediction_length=4, attention_dropout=0.1),
    hf("timesfm2_5", "TimesFm2_5", fixed(past_values=[noise(48), noise(48)]), head="ModelForPrediction",
        **SIZE | {"intermediate_size": 32}, num_key_value_heads=4, head_dim=8, patch_length=8, context_length=64,
        horizon_length=8, output_quantile_len=16, max_position_embeddings=64),
)
# fmt: on
