"""The architecture of a model: the type and the settings of each module.

Settings are the plain public attributes of a module, and what its `extra_repr()` prints besides. An attribute that the
forward assigns is state, such as a counter or a cache, and not a setting.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from functools import partial
from numbers import Real

from torch import nn
from torch.fx import GraphModule
from torch.jit import ScriptModule

from pytest_evalmode.lock.preprocessing.changed_names import changed_attributes
from pytest_evalmode.observe import modules

_NOT_SETTINGS = frozenset("training inplace name_or_path gradient_checkpointing dtype".split())
_POSITION = re.compile(r"(layer|block|stage|depth)_?(idx|id|index|number)?")
"""Attributes that count the layers of a stack; they would make each layer differ from the next."""
_TEXT = re.compile(r"[\w .+-]{0,40}")
_LINE = re.compile(r"([^()]*)\((.*)\)", re.DOTALL)
_SETTING = re.compile(r"(\w+)=((?:[^,()]|\([^()]*(?:\([^()]*\)[^()]*)*\))*)(?:, |$)")


@dataclass(frozen=True, slots=True)
class ModuleChange:
    """One difference between two architectures.

    `setting` is the name of a setting, or "" if the type changed; `was` or `now` is None if it is on one side only.
    """

    path: str
    type: str
    setting: str
    was: str | None
    now: str | None


def describe_architecture(model: nn.Module) -> dict[str, str]:
    """Return the type and settings of each module, by path: `{"layer.0.norm": "LayerNorm(eps=1e-12)"}`.

    The result is empty for a scripted, traced or exported model: its modules are not those that the user wrote.
    """
    if isinstance(model, ScriptModule | GraphModule):
        return {}
    return {path: _describe(part) for path, part in modules.walk(model)}


def find_module_changes(old: Mapping[str, str], new: Mapping[str, str]) -> list[ModuleChange]:
    """Return how two architectures differ; nothing if one is empty, that is unknown."""
    if not old or not new:
        return []
    changes = []
    for path in [*old, *(path for path in new if path not in old)]:
        if path not in new or path not in old:
            name, _ = _parse(old.get(path) or new[path])
            changes.append(ModuleChange(path, name, "", *(name if path in side else None for side in (old, new))))
        elif old[path] != new[path]:
            changes.extend(_compare(path, old[path], new[path]))
    return changes


def _compare(path: str, was: str, now: str) -> Iterator[ModuleChange]:
    (old_type, old), (new_type, new) = _parse(was), _parse(now)
    if old_type != new_type:
        yield ModuleChange(path, old_type, "", old_type, new_type)
        return
    # A version of torch may add or remove a setting of its own modules.
    both = old.keys() & new.keys() if hasattr(nn, new_type) or not old or not new else old.keys() | new.keys()
    for setting in sorted(both):
        if old.get(setting) != new.get(setting):
            yield ModuleChange(path, new_type, setting, old.get(setting), new.get(setting))


def _parse(line: str) -> tuple[str, dict[str, str]]:
    match = _LINE.fullmatch(line)
    return (line, {}) if match is None else (match[1], dict(_SETTING.findall(match[2])))


def _describe(module: nn.Module) -> str:
    name = modules.type_name(module)
    if isinstance(module, ScriptModule | GraphModule):
        return name
    settings = _read_settings(module)
    if not modules.python_module(type(module).extra_repr).startswith("torch."):  # torch prints attributes only
        with suppress(Exception):  # the user's own code
            settings = dict(_SETTING.findall(module.extra_repr())) | settings
    return f"{name}({', '.join(f'{setting}={value}' for setting, value in sorted(settings.items()))})"


def _read_settings(module: nn.Module) -> dict[str, str]:
    skip = _NOT_SETTINGS
    if not modules.python_module(type(module)).startswith("torch.nn."):
        skip = skip | changed_attributes(type(module))
    names = [name for name in vars(module) if not name.startswith("_") and name not in skip]
    shown = {name: _show(vars(module)[name]) for name in names if not _POSITION.fullmatch(name)}
    return {name: value for name, value in shown.items() if value is not None}


def _show(value: object) -> str | None:
    """Return a setting as text; None if the value is not a setting, for example a tensor or a path."""
    if value is None or isinstance(value, bool):
        return str(value)
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, Real):
        return f"{value:.6g}" if not isinstance(value, int) else str(value)
    if isinstance(value, str):
        return repr(value) if _TEXT.fullmatch(value) and os.sep not in value else None
    if isinstance(value, list | tuple):
        parts = [_show(each) for each in value[:17]]
        return (
            None if len(parts) > 16 or None in parts else f"({', '.join(filter(None, parts))}{',' * (len(parts) == 1)})"
        )
    if isinstance(value, partial):
        return f"{_show(value.func)}{_show([*value.args, *sorted(value.keywords.items())])}"
    name = getattr(value, "__name__", None) if callable(value) else None
    return name if isinstance(name, str) and name.isidentifier() else None
