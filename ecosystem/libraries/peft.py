"""The adapters of PEFT around a small BERT: added, merged, switched off and frozen."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from ecosystem.architectures import Architecture
from ecosystem.inputs import tokens

REQUIREMENTS = ("torch==2.13.0", "transformers==5.24.0", "peft==0.21.2")

TARGETS = {"target_modules": ["query", "value"]}
ADAPTERS: dict[str, dict[str, Any]] = {
    "LoraConfig": TARGETS | {"r": 2, "lora_dropout": 0.1},
    "LoraConfig-dora": TARGETS | {"r": 2, "use_dora": True},
    "LoraConfig-rslora": TARGETS | {"r": 2, "use_rslora": True},
    "AdaLoraConfig": TARGETS | {"init_r": 2, "total_step": 10},
    "IA3Config": TARGETS | {"feedforward_modules": []},
    "LoHaConfig": TARGETS | {"r": 2},
    "LoKrConfig": TARGETS | {"r": 2},
    "OFTConfig": TARGETS | {"oft_block_size": 4},
    "BOFTConfig": TARGETS | {"boft_block_size": 4},
    "VeraConfig": TARGETS | {"r": 2},
    "FourierFTConfig": TARGETS | {"n_frequency": 4},
    "HRAConfig": TARGETS | {"r": 2},
    "LNTuningConfig": {"target_modules": ["LayerNorm"]},
    "VBLoRAConfig": TARGETS | {"r": 2, "num_vectors": 4, "vector_length": 4, "topk": 2},
    "PrefixTuningConfig": {"num_virtual_tokens": 2, "task_type": "SEQ_CLS"},
    "PromptTuningConfig": {"num_virtual_tokens": 2, "task_type": "SEQ_CLS"},
    "PromptEncoderConfig": {"num_virtual_tokens": 2, "task_type": "SEQ_CLS", "encoder_hidden_size": 8},
}


def architectures() -> Iterator[Architecture]:
    """Yield each adapter, and the forms that can be merged."""
    forms: dict[str, Callable[[Any], Any]] = {
        "": lambda model: model,
        ", merged": lambda model: model.merge_and_unload(),
        ", unloaded": lambda model: model.unload(),
    }
    for name, settings in ADAPTERS.items():
        for form, change in forms.items():
            if not form or "target_modules" in settings:
                yield Architecture(f"{name}{form}", partial(_build, name, settings, change), _inputs)


def _build(name: str, settings: dict[str, Any], change: Callable[[Any], Any]) -> Any:
    import peft
    import transformers

    config = transformers.BertConfig(
        vocab_size=99,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=40,
        max_position_embeddings=32,
    )
    model = transformers.BertForSequenceClassification(config)
    return change(peft.get_peft_model(model, getattr(peft, name.partition("-")[0])(**settings)))


def _inputs() -> dict[str, Any]:
    return {"input_ids": tokens(2, 7)}
