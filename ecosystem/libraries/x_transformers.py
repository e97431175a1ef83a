"""Decoders and encoders of x-transformers, one for each option that changes the layers."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from ecosystem.architectures import Architecture

REQUIREMENTS = ("torch==2.13.0", "x-transformers==2.31.10")
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "dropout": {"attn_dropout": 0.1, "ff_dropout": 0.1},
    "layer-dropout": {"layer_dropout": 0.2},
    "memory": {"attn_num_mem_kv": 4},
    "rms-norm": {"use_rmsnorm": True},
    "scale-norm": {"use_scalenorm": True},
    "glu": {"ff_glu": True, "ff_swish": True},
    "relu-squared": {"ff_relu_squared": True},
    "rotary": {"rotary_pos_emb": True},
    "alibi": {"alibi_pos_bias": True},
    "t5-bias": {"rel_pos_bias": True},
    "talking-heads": {"attn_pre_talking_heads": True},
    "sparse": {"attn_sparse_topk": 4},
    "one-kv-head": {"attn_one_kv_head": True},
    "grouped": {"attn_kv_heads": 1},
    "qk-norm": {"attn_qk_norm": True},
    "sandwich": {"sandwich_norm": True},
    "residual-attention": {"residual_attn": True},
    "gate-residual": {"gate_residual": True},
    "macaron": {"macaron": True},
    "shift-tokens": {"shift_tokens": 1},
    "flash": {"attn_flash": True},
}


def architectures() -> Iterator[Architecture]:
    """Yield decoders, encoders and a generating wrapper."""
    for option, settings in OPTIONS.items():
        yield Architecture(f"decoder-{option}", partial(_build, "Decoder", settings), _inputs)
        yield Architecture(f"encoder-{option}", partial(_build, "Encoder", settings), _inputs)
    yield Architecture("autoregressive.generate", _autoregressive, _inputs, _generate)
    yield Architecture("autoregressive.loss", _autoregressive, _inputs)


def _build(kind: str, settings: dict[str, Any]) -> Any:
    import x_transformers

    layers = getattr(x_transformers, kind)(dim=32, depth=2, heads=2, attn_dim_head=16, **settings)
    return x_transformers.TransformerWrapper(num_tokens=99, max_seq_len=32, attn_layers=layers)


def _autoregressive() -> Any:
    import x_transformers

    return x_transformers.AutoregressiveWrapper(_build("Decoder", {}))


def _inputs() -> dict[str, Any]:
    import torch

    return {"x": torch.randint(0, 99, (2, 9), generator=torch.Generator().manual_seed(0))}


def _generate(model: Any, x: Any) -> object:
    return model.generate(x, 4, temperature=0.0)
