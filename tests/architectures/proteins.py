"""Protein language models and protein folding."""

from __future__ import annotations

from tests.architectures.describe import LLAMA, SIZE, Architecture, Settings, hf, integers, text

STRUCTURE: Settings = {
    "sequence_dim": 16,
    "pairwise_dim": 8,
    "ipa_dim": 4,
    "resnet_dim": 8,
    "num_heads_ipa": 2,
    "num_qk_points": 2,
    "num_v_points": 2,
    "num_blocks": 1,
}
TRUNK: Settings = {
    "num_blocks": 1,
    "sequence_state_dim": 32,
    "pairwise_state_dim": 16,
    "sequence_head_width": 8,
    "pairwise_head_width": 8,
    "position_bins": 4,
    "max_recycles": 1,
    "chunk_size": 8,
    "dropout": 0.1,
    "structure_module": STRUCTURE,
}

# The formatter would put each setting on its own line, and the table would be unreadable.
# fmt: off
PROTEINS: tuple[Architecture, ...] = (
    hf("esmc", "Esmc", text, **{**LLAMA, "num_key_value_heads": 4}),
    hf("esmfold", "Esm", integers(20, input_ids=(1, 6)), head="ForProteinFolding", **SIZE, max_position_embeddings=64,
        pad_token_id=1, mask_token_id=32, vocab_size=33, is_folding_model=True,
        esmfold_config={"trunk": TRUNK, "lddt_head_hid_dim": 8, "fp16_esm": False}),
)
# fmt: on
