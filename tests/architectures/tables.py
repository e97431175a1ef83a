"""Models for tabular data."""

from __future__ import annotations

import torch

from tests.architectures.describe import Architecture, floats, from_path, integers, merge

# The formatter would put each setting on its own line, and the table would be unreadable.
# fmt: off
TABLES: tuple[Architecture, ...] = (
    from_path("ft-transformer", "rtdl_revisiting_models:FTTransformer", merge(floats(x_cont=(8, 4)), integers(3,
        x_cat=(8, 2))),
        n_cont_features=4, cat_cardinalities=[3, 3], d_out=2, n_blocks=2, d_block=16, attention_n_heads=2,
        attention_dropout=0.1, ffn_d_hidden=24, ffn_d_hidden_multiplier=None, ffn_dropout=0.1, residual_dropout=0.1),
    from_path("tabnet", "pytorch_tabnet.tab_network:TabNet", floats(x=(8, 6)), input_dim=6, output_dim=3, n_d=4, n_a=4,
        n_steps=2, cat_idxs=[], cat_dims=[], cat_emb_dim=[], group_attention_matrix=torch.eye(6)),
    from_path("tabular-mlp", "rtdl_revisiting_models:MLP", floats(x=(8, 6)), d_in=6, d_out=2, n_blocks=2, d_block=16,
        dropout=0.2),
    from_path("tabular-resnet", "rtdl_revisiting_models:ResNet", floats(x=(8, 6)), d_in=6, d_out=2, n_blocks=2,
        d_block=16, d_hidden=24, d_hidden_multiplier=None, dropout1=0.2, dropout2=0.1),
)
# fmt: on
