"""Description of a preprocessing pipeline by its structure, as a JSON value."""

from __future__ import annotations

import dataclasses
import enum
import functools
import inspect
import json
import math
import re
from collections.abc import Mapping
from pathlib import PurePath
from types import ModuleType
from typing import Any

import numpy as np
import torch

from pytest_evalmode.lock.preprocessing import libraries, user_code
from pytest_evalmode.lock.preprocessing.changed_names import changed_attributes

_ADDRESS = re.compile(r"\b0x[0-9a-fA-F]{6,}")
_MAX_DEPTH = 12
_MAX_VALUES, _MAX_ENTRIES = 64, 256  # of an array and a vocabulary; of larger ones, the description has a digest
# Attributes that do not change the output: where an object came from, versions, caches.
_INCIDENTAL = frozenset(
    """training name_or_path _name_or_path tokenizer_file vocab_file merges_file special_tokens_map_file processor_class
    transformers_version _processor_class image_processor_type feature_extractor_type tokenizer_class available_keys
    deprecation_warnings verbose save_key replay_mode applied_in_replay
    """.split()
)
_PRINTED = (torch.dtype, torch.device, torch.memory_format, torch.layout, np.dtype, range, slice, complex)


def describe(value: Any, above: tuple[int, ...] = ()) -> Any:
    """Return the steps of a pipeline and their parameters as a JSON value; raise TypeError if one is not readable.

    `above` has the ids of the objects that contain this one.
    """
    plain = _plain(value)
    if plain is not NotImplemented:
        return plain
    if id(value) in above or len(above) > _MAX_DEPTH:
        return "..."
    above = (*above, id(value))
    if isinstance(value, Mapping):
        return _shorten(_mapping(value, above))
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return _step(value, dict(zip(value._fields, value, strict=True)), above)
    if isinstance(value, list | tuple):
        return _shorten([describe(each, above) for each in value])
    if isinstance(value, set | frozenset):
        return sorted((describe(each, above) for each in value), key=str)
    value = user_code.unwrap(value)
    if isinstance(value, functools.partial):
        bound: dict[Any, Any] = {**dict(enumerate(value.args)), **value.keywords}
        return {"partial": describe(value.func, above), **_mapping(bound, above)}
    owner = getattr(value, "__self__", None)
    if inspect.isroutine(value) and owner is not None and not isinstance(owner, type | ModuleType):
        return {"method": value.__name__, "of": describe(owner, above)}
    if inspect.isfunction(value):
        code = user_code.Code()
        code.add(value)
        return {"function": user_code.qualified_name(value), **code.description(), **_mapping(code.variables, above)}
    if inspect.isroutine(value) or isinstance(value, type | np.ufunc):
        return user_code.qualified_name(value)
    return _object(value, above)


def _plain(value: Any) -> Any:
    """Return a plain value as JSON; NotImplemented for other objects."""
    if isinstance(value, enum.Enum):
        return f"{type(value).__name__}.{value.name}"
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float | np.floating):
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
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        value = (value.float() if value.dtype == torch.bfloat16 else value).numpy()
    if isinstance(value, np.ndarray) and value.dtype != object:
        if value.size > _MAX_VALUES:
            return {"shape": list(value.shape), "digest": user_code.digest(value.tobytes())}
        return (value.astype(str).astype(float) if value.dtype == np.float32 else value).tolist()
    return str(value) if isinstance(value, _PRINTED) else NotImplemented


def _shorten(described: Any) -> Any:
    """Return the number of items and a digest in place of a large vocabulary or table."""
    if len(described) <= _MAX_ENTRIES or any(isinstance(each, dict) and "step" in each for each in described):
        return described
    return {"size": len(described), "digest": user_code.digest(json.dumps(described).encode())}


def _mapping(value: Mapping[Any, Any], above: tuple[int, ...]) -> dict[str, Any]:
    return {str(key): describe(each, above) for key, each in sorted(value.items(), key=lambda item: str(item[0]))}


def _step(value: Any, fields: Mapping[str, Any], above: tuple[int, ...]) -> dict[str, Any]:
    """Return a step of a pipeline: the name of its type, then its parameters."""
    parameters = {key.removeprefix("_"): each for key, each in fields.items() if key not in _INCIDENTAL}
    return {"step": type(value).__name__, **_mapping(parameters, above)}


def _object(value: Any, above: tuple[int, ...]) -> Any:
    kind, shown = type(value), repr(value)
    code = user_code.Code()
    code.add(kind)
    fields = libraries.read_parameters(value)
    if fields is None and dataclasses.is_dataclass(value):
        fields = {each.name: getattr(value, each.name) for each in dataclasses.fields(value)}
    if fields is None:
        fields = _fields(value)
    state = changed_attributes(kind) if user_code.is_users_class(kind) else ()
    fields = {name: each for name, each in (code.variables | fields).items() if name not in state}
    if fields or code.digests:
        return {**_step(value, fields, above), **code.description()}
    if not _ADDRESS.search(shown):
        return {"step": kind.__name__, **({} if shown == f"{kind.__name__}()" else {"repr": shown})}
    if callable(value) or len(above) == 1:
        raise TypeError(
            f"{kind.__name__} has no readable parameters: add a __repr__ that shows them, or pass them as a dict"
        )
    return {"step": kind.__name__}  # for example a generator or a lock


def _fields(value: Any) -> dict[str, Any]:
    """Return the slots and attributes of an object."""
    slots = (vars(kind).get("__slots__", ()) for kind in type(value).__mro__)
    names = [name for each in slots for name in ((each,) if isinstance(each, str) else each)]
    own = {name: getattr(value, name) for name in names if not name.startswith("__") and hasattr(value, name)}
    return {**own, **getattr(value, "__dict__", {})}
