"""Parameters of the transforms, processors and tokenizers of known libraries, read without importing these."""

from __future__ import annotations

import json
from typing import Any

from pytest_evalmode.lock.preprocessing.user_code import digest

_PROCESSORS = {"ImageProcessingMixin", "BaseImageProcessor", "FeatureExtractionMixin", "ProcessorMixin"}
# Attributes of an albumentations composition that are its working state, not parameters.
_STATE = frozenset(
    """processors seed random_generator py_random save_applied_params transforms_ps check_each_transform replay_mode
    is_check_args main_compose applied_transforms""".split()
)
# Parameters of slow tokenizers, which normalize text in Python.
_SLOW = ("do_lower_case", "do_basic_tokenize", "strip_accents", "tokenize_chinese_chars", "add_prefix_space")


def read_parameters(value: Any) -> dict[str, Any] | None:
    """Return the parameters of an object of a known library; None for other objects."""
    kinds = {f"{kind.__module__.partition('.')[0]}.{kind.__name__}" for kind in type(value).__mro__}
    if "transformers.PreTrainedTokenizerBase" in kinds:
        return _tokenizer(value)
    if kinds & {"tokenizers.Tokenizer"}:
        return _backend(value)
    if kinds & {f"transformers.{name}" for name in _PROCESSORS}:
        return _processor(value)
    if "albumentations.BaseCompose" in kinds:
        return _composition(value)
    if "albumentations.BasicTransform" in kinds:
        # The functions of a `Lambda` are not among its init arguments.
        return {**value.get_transform_init_args(), "p": value.p, **getattr(value, "custom_apply_fns", {})}
    return _module(value) if "torch.Module" in kinds else None


def _composition(value: Any) -> dict[str, Any]:
    """Read an albumentations composition: its steps, how many it applies, and its box and keypoint parameters."""
    own = {key: each for key, each in vars(value).items() if not key.startswith("_") and key not in _STATE}
    own |= {name: each.params for name, each in value.processors.items()}
    targets = vars(value).get("_additional_targets")
    return {**own, **({"additional_targets": targets} if targets else {}), "transforms": list(value.transforms)}


def _module(value: Any) -> dict[str, Any]:
    """Read a module: its public attributes, parameters, buffers and submodules."""
    attributes = vars(value)
    own = {key: each for key, each in attributes.items() if not key.startswith("_")}
    own |= {**attributes["_parameters"], **attributes["_buffers"]}
    submodules = attributes["_modules"]
    if submodules and list(submodules) == [str(i) for i in range(len(submodules))]:
        return {**own, "transforms": list(submodules.values())}
    return {**own, **submodules}


def _processor(value: Any) -> dict[str, Any]:
    """Read a Hugging Face processor: the fields that it saves, and its parts."""
    saved = {key: each for key, each in value.to_dict().items() if not isinstance(each, type)}
    attributes = getattr(value, "attributes", None) or ()
    return {**saved, **{name: getattr(value, name, None) for name in attributes}}


def _tokenizer(value: Any) -> dict[str, Any]:
    fields = {
        "special_tokens": {key: str(each) for key, each in value.special_tokens_map.items()},
        "padding_side": value.padding_side,
        "truncation_side": value.truncation_side,
        "model_max_length": value.model_max_length,
        "chat_template": getattr(value, "chat_template", None),
    }
    fields |= {name: getattr(value, name) for name in _SLOW if hasattr(value, name)}
    backend = getattr(value, "backend_tokenizer", None)
    if backend is None:
        flags = {key: each for key, each in vars(value).items() if isinstance(each, bool) and not key.startswith("_")}
        return {**flags, **fields, "vocabulary": _vocabulary(value.get_vocab())}
    return {**fields, **_backend(backend)}


def _backend(tokenizer: Any) -> dict[str, Any]:
    """Read a fast tokenizer from the JSON that it saves; the vocabulary as its size and a digest.

    Padding and truncation are omitted, because each call of the Hugging Face tokenizer sets them again.
    """
    saved = json.loads(tokenizer.to_str())
    model = saved["model"]
    return {
        **{key: saved[key] for key in ("normalizer", "pre_tokenizer", "post_processor", "decoder")},
        "model": {key: each for key, each in model.items() if key not in ("vocab", "merges")},
        "added_tokens": [[each["id"], each["content"]] for each in saved["added_tokens"]],
        "vocabulary": _vocabulary(model["vocab"]),
        "merges": digest(json.dumps(model["merges"]).encode()) if model.get("merges") else None,
    }


def _vocabulary(vocabulary: Any) -> dict[str, Any]:
    items = sorted(vocabulary.items()) if isinstance(vocabulary, dict) else vocabulary
    return {"size": len(vocabulary), "digest": digest(json.dumps(items).encode())}
