"""State space models, linear attention and mixtures of experts."""

from __future__ import annotations

from tests.architectures.describe import BLOCKS, LLAMA, SPECIAL, Architecture, Settings, hf, text, text_pair

HEADS: Settings = {**LLAMA, "num_key_value_heads": 4}
SPARSE: Settings = {**LLAMA, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
LOCAL: Settings = {**LLAMA, "num_local_experts": 4, "num_experts_per_tok": 2}
SSM: Settings = {**LLAMA, "mamba_n_heads": 4, "mamba_d_state": 8, "mamba_chunk_size": 8, "mamba_n_groups": 1}
LATENT: Settings = {"kv_lora_rank": 16, "qk_rope_head_dim": 8, "v_head_dim": 8, "qk_nope_head_dim": 8}

# The formatter would put each setting on its own line, and the table would be unreadable.
# fmt: off
STATE_SPACES: tuple[Architecture, ...] = (
    hf("bamba", "Bamba", text, **SSM, attn_layer_indices=[1]),
    hf("falcon_h1", "FalconH1", text, **SSM, mamba_d_ssm=32, mamba_rms_norm=True),
    hf("granitemoehybrid", "GraniteMoeHybrid", text, **SSM, layer_types=["mamba", "attention"], num_local_experts=2,
        num_experts_per_tok=1, shared_intermediate_size=16),
    hf("kimi_linear", "KimiLinear", text, **HEADS, **LATENT, q_lora_rank=None,
        moe_intermediate_size=16, num_local_experts=4, num_experts_per_tok=2, linear_head_dim=8, linear_num_heads=4,
        layer_types=["linear_attention", "full_attention"]),
    hf("lfm2", "Lfm2", text, **LLAMA, layer_types=["conv", "full_attention"]),
    hf("minimax", "MiniMax", text, **LOCAL, head_dim=8, layer_types=["linear_attention", "full_attention"],
        block_size=8),
    hf("qwen3_next", "Qwen3Next", text, **SPARSE, head_dim=8, linear_key_head_dim=8, linear_value_head_dim=8,
        linear_num_key_heads=2, linear_num_value_heads=4, shared_expert_intermediate_size=16,
        layer_types=["linear_attention", "full_attention"]),
    hf("zamba2", "Zamba2", text, **HEADS, mamba_d_state=8, n_mamba_heads=4, chunk_size=8,
        layers_block_type=["mamba", "hybrid"], adapter_rank=4, use_shared_attention_adapter=True),
)

EXPERTS: tuple[Architecture, ...] = (
    hf("deepseek_v3", "DeepseekV3", text, **HEADS, **LATENT, q_lora_rank=16, moe_intermediate_size=16,
        n_routed_experts=4, num_experts_per_tok=2, first_k_dense_replace=1, n_group=2, topk_group=1),
    hf("gpt_oss", "GptOss", text, **LOCAL, head_dim=8, sliding_window=8,
        layer_types=["sliding_attention", "full_attention"]),
    hf("jetmoe", "JetMoe", text, vocab_size=99, hidden_size=32, num_hidden_layers=2, num_key_value_heads=2,
        kv_channels=8, intermediate_size=40, max_position_embeddings=64, num_local_experts=4),
    hf("llama4_text", "Llama4Text", text, **LOCAL, intermediate_size_mlp=40, head_dim=8),
    hf("nllb-moe", "NllbMoe", text_pair, **BLOCKS, **SPECIAL, vocab_size=99, max_position_embeddings=64, num_experts=4,
        expert_capacity=8, encoder_sparse_step=2, decoder_sparse_step=2),
    hf("olmoe", "Olmoe", text, **LLAMA, num_experts=4, num_experts_per_tok=2),
    hf("phimoe", "Phimoe", text, **LOCAL, input_jitter_noise=0.1),
    hf("qwen2_moe", "Qwen2Moe", text, **SPARSE, shared_expert_intermediate_size=16),
)
# fmt: on
