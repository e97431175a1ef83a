"""Parameters of the transforms, processors and tokenizers of known libraries, read without importing these."""

from __future__ import annotations

import inspect
import json
from typing import Any

_PROCESSORS = {"ImageProcessingMixin", "BaseImageProcessor", "FeatureExtractionMixin", "ProcessorMixin"}
# Attributes of an albumentations composition that are its working state, not parameters.
_STATE = frozenset(
    """processors seed random_generator py_random save_applied_params transforms_ps is_check_args
    check_each_transform main_compose applied_transforms""".split()
)
_TOKENIZER = ("padding_side", "truncation_side", "model_max_length", "chat_template")


def read_parameters(value: Any) -> dict[str, Any] | None:
    """Return the parameters of an object of a known library; None for other objects."""
    kinds = {f"{kind.__module__.partition('.')[0]}.{kind.__name__}" for kind in type(value).__mro__}
    if "transformers.PreTrainedTokenizerBase" in kinds:
        return _tokenizer(value)
    if "tokenizers.Tokenizer" in kinds:
        return _backend(value)
    if kinds & {f"transformers.{name}" for name in _PROCESSORS}:
        saved = {key: each for key, each in value.to_dict().items() if not isinstance(each, type)}
        return saved | {name: getattr(value, name, None) for name in getattr(value, "attributes", None) or ()}
    if "albumentations.BaseCompose" in kinds:
        own = {key: each for key, each in vars(value).items() if not key.startswith("_") and key not in _STATE}
        own |= {name: each.params for name, each in value.processors.items()}
        return own | {"additional_targets": vars(value).get("_additional_targets") or {}}
    if "albumentations.BasicTransform" in kinds:
        # The functions of a `Lambda` are not among its init arguments.
        return {**value.get_transform_init_args(), "p": value.p, **getattr(value, "custom_apply_fns", {})}
    return _module(value) if "torch.Module" in kinds else None


def _module(value: Any) -> dict[str, Any]:
    """Read a module: its public attributes, parameters, buffers and submodules."""
    attributes = vars(value)
    own = {key: each for key, each in attributes.items() if not key.startswith("_")}
    own |= {**attributes["_parameters"], **attributes["_buffers"]}
    submodules = attributes["_modules"]
    if submodules and list(submodules) == [str(i) for i in range(len(submodules))]:
        return {**own, "transforms": list(submodules.values())}
    return {**own, **submodules}


def _tokenizer(value: Any) -> dict[str, Any]:
    fields = {name: getattr(value, name, None) for name in _TOKENIZER}
    fields["special_tokens"] = {key: str(each) for key, each in value.special_tokens_map.items()}
    backend = getattr(value, "backend_tokenizer", None)
    if backend is not None:
        return {**fields, **_backend(backend)}
    # Some flags are only among the arguments that it was made with, but so is where it was loaded from.
    parameters = {name for kind in type(value).__mro__ for name in inspect.signature(kind).parameters}
    made_with = {key: each for key, each in value.init_kwargs.items() if key in parameters}
    own = {key: each for key, each in vars(value).items() if not key.startswith("_")}
    flags = {key: each for key, each in {**made_with, **own}.items() if isinstance(each, bool)}
    return {**flags, **fields, "vocabulary": value.get_vocab()}


def _backend(tokenizer: Any) -> dict[str, Any]:
    """Read a fast tokenizer from the JSON that it saves."""
    saved = json.loads(tokenizer.to_str())
    # Each call of the Hugging Face tokenizer sets padding and truncation again.
    return {key: each for key, each in saved.items() if key not in ("version", "padding", "truncation")}
