"""The models of transformers with each of their heads, shrunk to a few thousand parameters."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from functools import partial
from importlib import import_module
from typing import Any

from ecosystem.architectures import Architecture

REQUIREMENTS = ("torch==2.13.0", "transformers==5.24.0", "sentencepiece==0.2.1")
MAX_PARAMETERS = 3_000_000
SMALL = {
    **dict.fromkeys(("vocab_size", "decoder_vocab_size", "text_vocab_size"), 99),
    **dict.fromkeys(
        ("hidden_size", "d_model", "n_embd", "embed_dim", "dim", "projection_dim", "decoder_hidden_size"), 32
    ),
    **dict.fromkeys(("embedding_size", "emb_dim", "word_embed_proj_dim", "conv_dim_size"), 32),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "encoder_ffn_dim", "decoder_ffn_dim", "d_ff", "n_inner"), 40),
    **dict.fromkeys(("hidden_dim", "moe_intermediate_size", "shared_expert_intermediate_size"), 32),
    **dict.fromkeys(("num_hidden_layers", "num_layers", "n_layer", "n_layers", "encoder_layers", "decoder_layers"), 2),
    **dict.fromkeys(("num_decoder_layers", "num_encoder_layers", "depth", "decoder_num_hidden_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "num_heads", "n_head", "n_heads", "encoder_attention_heads"), 2),
    **dict.fromkeys(("decoder_attention_heads", "num_key_value_heads", "decoder_num_attention_heads"), 2),
    **dict.fromkeys(("head_dim", "d_kv", "attention_head_size", "key_value_size"), 16),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_source_positions", "max_target_positions"), 128),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
    "num_experts_per_tok": 2,
    "chunk_size": 8,
    "mamba_chunk_size": 8,
    "mamba_d_state": 8,
    "decoder_intermediate_size": 40,
    "image_size": 32,
    "patch_size": 8,
    "num_mel_bins": 16,
}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}


def architectures() -> Iterator[Architecture]:
    """Yield each model class of the automatic mappings, and `generate()` of those that have it."""
    transformers: Any = import_module("transformers")
    configuration_auto: Any = import_module("transformers.models.auto.configuration_auto")
    modeling_auto = import_module("transformers.models.auto.modeling_auto")

    transformers.logging.set_verbosity_error()
    mappings = [
        value
        for name, value in sorted(vars(modeling_auto).items())
        if name.startswith("MODEL_") and name.endswith("_NAMES")
    ]
    seen = set[str]()
    for model_type, config in configuration_auto.CONFIG_MAPPING_NAMES.items():
        for mapping in mappings:
            names = mapping.get(model_type, ())
            for name in (names,) if isinstance(names, str) else names:
                model_class: Any = getattr(transformers, name, object)  # not a model if it needs another package
                if name in seen or not issubclass(model_class, transformers.PreTrainedModel):
                    continue
                seen.add(name)
                build = partial(_build, getattr(transformers, config), model_class)
                inputs = partial(_inputs, model_class)
                yield Architecture(name, build, inputs)
                if model_class.can_generate():
                    yield Architecture(f"{name}.generate", build, partial(_prompt, model_class), _generate)


def _build(config_class: Any, model_class: Any) -> Any:
    import torch

    config = _shrunk(config_class)
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in model_class(config).parameters())
    if count > MAX_PARAMETERS:
        raise ValueError(f"{count} parameters")
    return model_class(config)


def _shrunk(config_class: Any) -> Any:
    default = config_class()
    settings = {name: value for name, value in SMALL.items() if type(getattr(default, name, None)) is int}
    settings |= {name: value for name, value in SPECIAL.items() if hasattr(default, name)}
    for name, nested in getattr(config_class, "sub_configs", {}).items():
        nested_class = type(getattr(default, name, None)) if getattr(default, name, None) is not None else nested
        settings[name] = _shrunk(nested_class).to_dict()
    return config_class(**settings)


def _tensors() -> dict[str, Any]:
    import torch

    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 90, (2, 7), generator=generator)
    return {
        "input_ids": ids,
        "decoder_input_ids": ids,
        "pixel_values": torch.randn(2, 3, 32, 32, generator=generator),
        "input_values": torch.randn(2, 1000, generator=generator),
        "input_features": torch.randn(2, 16, 64, generator=generator),
    }


def _inputs(model_class: Any) -> dict[str, Any]:
    tensors, taken = _tensors(), inspect.signature(model_class.forward).parameters
    names = {model_class.main_input_name, "decoder_input_ids"}
    if "CLIP" in model_class.__name__:  # two towers; elsewhere images need placeholders in the text
        names |= {"input_ids", "pixel_values"}
    return {name: tensors[name] for name in sorted(names) if name in taken}


def _prompt(model_class: Any) -> dict[str, Any]:
    return {model_class.main_input_name: _tensors()[model_class.main_input_name]}


def _generate(model: Any, **inputs: Any) -> object:
    return model.generate(**inputs, max_new_tokens=3, min_new_tokens=3, do_sample=False)
