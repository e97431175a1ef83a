"""Tables: what is neither image, text nor sound."""

from __future__ import annotations

import torch

from tests.architectures.describe import Architecture, both, counts, floats, made

# Formatted, most rows would take a line per setting, and the table would no longer read as one.
# fmt: off
TABLES: tuple[Architecture, ...] = (
    made("ft-transformer", "rtdl_revisiting_models:FTTransformer", both(floats(x_cont=(8, 4)), counts(3, x_cat=(8, 2))),
        n_cont_features=4, cat_cardinalities=[3, 3], d_out=2, n_blocks=2, d_block=16, attention_n_heads=2,
        attention_dropout=0.1, ffn_d_hidden=24, ffn_d_hidden_multiplier=None, ffn_dropout=0.1, residual_dropout=0.1),
    made("tabnet", "pytorch_tabnet.tab_network:TabNet", floats(x=(8, 6)), input_dim=6, output_dim=3, n_d=4, n_a=4,
        n_steps=2, cat_idxs=[], cat_dims=[], cat_emb_dim=[], group_attention_matrix=torch.eye(6)),
    made("tabular-mlp", "rtdl_revisiting_models:MLP", floats(x=(8, 6)), d_in=6, d_out=2, n_blocks=2, d_block=16,
        dropout=0.2),
    made("tabular-resnet", "rtdl_revisiting_models:ResNet", floats(x=(8, 6)), d_in=6, d_out=2, n_blocks=2, d_block=16,
        d_hidden=24, d_hidden_multiplier=None, dropout1=0.2, dropout2=0.1),
)
# fmt: on
