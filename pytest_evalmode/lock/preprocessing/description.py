"""Description of a preprocessing pipeline by its structure, as a JSON value."""

from __future__ import annotations

import dataclasses
import enum
import functools
import inspect
import math
import re
import sys
from collections.abc import Mapping
from pathlib import PurePath
from types import ModuleType
from typing import Any

import numpy as np

from pytest_evalmode.lock.preprocessing import libraries, user_code
from pytest_evalmode.lock.preprocessing.output_probe import probe

_ADDRESS = re.compile(r"\b0x[0-9a-fA-F]{6,}")
_MAX_DEPTH = 12
# Attributes that do not change the output: where an object came from, versions, caches.
_INCIDENTAL = frozenset(
    """training name_or_path _name_or_path tokenizer_file vocab_file merges_file special_tokens_map_file processor_class
    transformers_version _processor_class image_processor_type feature_extractor_type tokenizer_class available_keys
    deprecation_warnings verbose save_key replay_mode applied_in_replay
    """.split()
)


def describe(transform: object) -> Any:
    """Return the steps of a pipeline and their parameters as a JSON value.

    Args:
        transform: A transform, processor, tokenizer, function or module, or a dict or list of them or of parameters.

    Raises:
        TypeError: If an object has no readable parameters and no output that could be compared.
    """
    return _describe(transform, ())


def _describe(value: Any, above: tuple[int, ...]) -> Any:
    plain = _plain(value)
    if plain is not _NOT_PLAIN:
        return plain
    if id(value) in above or len(above) > _MAX_DEPTH:
        return "..."
    above = (*above, id(value))
    if isinstance(value, Mapping):
        return _mapping(value, above)
    if isinstance(value, (list, tuple)):
        if hasattr(value, "_fields"):
            return _step(value, dict(zip(value._fields, value, strict=True)), above)
        return [_describe(each, above) for each in value]
    if isinstance(value, (set, frozenset)):
        return sorted((_describe(each, above) for each in value), key=str)
    value = user_code.unwrap(value)
    if isinstance(value, functools.partial):
        bound: dict[Any, Any] = {**dict(enumerate(value.args)), **value.keywords}
        return {"partial": _describe(value.func, above), **_mapping(bound, above)}
    owner = getattr(value, "__self__", None)
    if inspect.isroutine(value) and owner is not None and not isinstance(owner, (type, ModuleType)):
        return {"method": value.__name__, "of": _describe(owner, above)}
    if inspect.isfunction(value):
        code = user_code.Code()
        code.add(value)
        return {"function": user_code.qualified_name(value), **code.description(), **_mapping(code.variables, above)}
    if inspect.isroutine(value) or isinstance(value, (type, np.ufunc)):
        return user_code.qualified_name(value)
    return _object(value, above)


_NOT_PLAIN = object()
_NAMED = ("dtype", "device", "memory_format", "layout", "Size")  # types of torch whose str() is their value


def _plain(value: Any) -> Any:
    """Return a plain value as JSON; `_NOT_PLAIN` for other objects."""
    if isinstance(value, enum.Enum):
        return f"{type(value).__name__}.{value.name}"
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, (float, np.floating)):
        number = float(str(value))  # the float32 0.485 becomes 0.485, not 0.48500001430511475
        return number if math.isfinite(number) else repr(number)
    if isinstance(value, np.generic):
        return _plain(value.item()) if not isinstance(value.item(), np.generic) else str(value)
    if isinstance(value, bytes):
        return {"bytes": user_code.digest(value)}
    if isinstance(value, PurePath):
        return value.name
    if isinstance(value, re.Pattern):
        return value.pattern
    if isinstance(value, (range, slice, complex)):
        return repr(value)
    array = _array(value)
    if array is not None:
        if array.size > 64:
            return {"shape": list(array.shape), "digest": user_code.digest(array.tobytes())}
        return (array.astype(str).astype(float) if array.dtype == np.float32 else array).tolist()
    if type(value).__module__ == "torch" and type(value).__name__ in _NAMED:
        return str(value)
    return str(value) if isinstance(value, np.dtype) else _NOT_PLAIN


def _array(value: Any) -> Any:
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        value = (value.float() if value.dtype == torch.bfloat16 else value).numpy()
    return value if isinstance(value, np.ndarray) and value.dtype != object else None


def _mapping(value: Mapping[Any, Any], above: tuple[int, ...]) -> dict[str, Any]:
    return {str(key): _describe(each, above) for key, each in sorted(value.items(), key=lambda item: str(item[0]))}


def _step(value: Any, fields: Mapping[str, Any], above: tuple[int, ...]) -> dict[str, Any]:
    """Return a step of a pipeline: the name of its type, then its parameters."""
    parameters = {key.removeprefix("_"): each for key, each in fields.items() if key not in _INCIDENTAL}
    return {"step": type(value).__name__, **_mapping(parameters, above)}


def _object(value: Any, above: tuple[int, ...]) -> Any:
    kind = type(value)
    code = user_code.Code()
    code.add(kind)
    fields = libraries.read_parameters(value)
    if fields is None and dataclasses.is_dataclass(value):
        fields = {each.name: getattr(value, each.name) for each in dataclasses.fields(value)}
    if fields is None:
        fields = _fields(value)
    state = user_code.changed_attributes(kind)
    fields = {name: each for name, each in (code.variables | fields).items() if name not in state}
    if fields or code.digests:
        return {**_step(value, fields, above), **code.description()}
    if not _ADDRESS.search(repr(value)):
        return {"step": kind.__name__, "repr": repr(value)}
    if not callable(value) and len(above) > 1:
        return {"step": kind.__name__}  # for example a generator or a lock, which have no parameters
    return {"step": kind.__name__, "probe": probe(value)}


def _fields(value: Any) -> dict[str, Any]:
    """Return the slots and attributes of an object."""
    slots: dict[str, Any] = {}
    for kind in type(value).__mro__:
        names = vars(kind).get("__slots__", ())
        for name in (names,) if isinstance(names, str) else names:
            if not name.startswith("__") and hasattr(value, name):
                slots[name] = getattr(value, name)
    return {**slots, **getattr(value, "__dict__", {})}
