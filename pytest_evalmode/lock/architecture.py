"""The architecture of a model: the type and the settings of each module, one line for repeated layers.

Settings are the plain public attributes of a module, and what its `extra_repr()` prints besides. An attribute that the
forward assigns is state, such as a counter or a cache, and not a setting.
"""

from __future__ import annotations

import dis
import inspect
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import partial
from itertools import product
from numbers import Real
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn
from torch.fx import GraphModule
from torch.jit import ScriptModule

from pytest_evalmode.observe import modules

CONFIG = "config"
_MAX_MODULES = 1 << 17
_NOT_SETTINGS = frozenset("training inplace name_or_path gradient_checkpointing transformers_version dtype".split())
_POSITION = re.compile(r"(layer|block|stage|depth)_?(idx|id|index|number)?")
"""Attributes that count the layers of a stack; they would make each layer differ from the next."""
_TEXT = re.compile(r"[\w .+-]{0,40}")
_RANGE = re.compile(r"(\d{1,9})-(\d{1,9})")
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
    """Return the type and settings of each module, by path: `{"layer.0-11.norm": "LayerNorm(eps=1e-12)"}`.

    Consecutive equal layers share a line. The result is empty for a scripted, traced or exported model: its modules are
    not those that the user wrote.
    """
    if isinstance(model, ScriptModule | GraphModule):
        return {}
    lines = {path: _describe(part) for path, part in modules.walk(model)}
    children: dict[str, list[str]] = {path: [] for path in lines}
    for path in lines:
        parent, _, name = path.rpartition(".")
        if path and parent in children:
            children[parent].append(name)
    folded: dict[str, dict[str, str]] = {}
    for path in reversed(lines):  # a module comes before its submodules
        parts = [(name, folded.pop(f"{path}.{name}" if path else name)) for name in children[path]]
        folded[path] = {"": lines[path], **_fold(parts)}
    config = _describe_config(vars(model).get(CONFIG))
    return folded[""] | ({CONFIG: config} if config else {})


def _fold(parts: list[tuple[str, dict[str, str]]]) -> dict[str, str]:
    """Return the lines of the submodules of one module; those of consecutive equal ones only once."""
    runs: list[tuple[str, str, dict[str, str]]] = []
    for name, lines in parts:
        if runs and runs[-1][2] == lines and runs[-1][1].isdecimal() and name == str(int(runs[-1][1]) + 1):
            runs[-1] = (runs[-1][0], name, lines)
        else:
            runs.append((name, name, lines))
    folded = {}
    for first, last, lines in runs:
        name = first if first == last else f"{first}-{last}"
        folded |= {f"{name}.{inner}" if inner else name: line for inner, line in lines.items()}
    return folded


def expand(lines: Mapping[str, str]) -> dict[str, str]:
    """Return the lines of an architecture with one path per module; raise ValueError if there are far too many."""
    expanded: dict[str, str] = {}
    for path, line in lines.items():
        choices = [_numbers(name) for name in path.split(".")]
        count = 1
        for names in choices:
            count *= len(names)
        if count + len(expanded) > _MAX_MODULES:
            raise ValueError(path)
        expanded |= {".".join(names): line for names in product(*choices)}
    return expanded


def _numbers(name: str) -> Any:
    match = _RANGE.fullmatch(name)
    return [name] if match is None else _Numbers(int(match[1]), int(match[2]))


class _Numbers:
    """The names `first` to `last`, which take no memory until they are used."""

    def __init__(self, first: int, last: int) -> None:
        self._range = range(first, last + 1)

    def __len__(self) -> int:
        return len(self._range)

    def __iter__(self) -> Iterator[str]:
        return map(str, self._range)


def find_module_changes(was: Mapping[str, str], now: Mapping[str, str]) -> list[ModuleChange]:
    """Return how two architectures differ; nothing if one is empty, that is unknown."""
    if not was or not now or was == now:
        return []
    old, new = expand(was), expand(now)
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
    # A version of torch may add or remove a setting; a configuration leaves out those that have their default.
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
    settings = _read_settings(vars(module), _find_assigned_by_forward(type(module)))
    settings |= _read_extra_repr(module, settings)
    return f"{name}({', '.join(f'{setting}={value}' for setting, value in sorted(settings.items()))})"


def _describe_config(config: object) -> str:
    """Return the settings of a model's configuration: of one of transformers, those without their default."""
    try:
        attributes = config.to_diff_dict() if hasattr(config, "to_diff_dict") else vars(config)
    except Exception:  # no attributes, or a configuration of the user that cannot be read
        return ""
    settings = _read_settings(attributes, frozenset({"model_type", "architectures"}))
    return f"{type(config).__name__}({', '.join(f'{name}={value}' for name, value in sorted(settings.items()))})"


def _read_settings(attributes: Mapping[str, object], skip: frozenset[str]) -> dict[str, str]:
    names = [name for name in attributes if not name.startswith("_") and name not in _NOT_SETTINGS and name not in skip]
    shown = {name: _show(attributes[name]) for name in names if not _POSITION.fullmatch(name)}
    return {name: value for name, value in shown.items() if value is not None}


def _read_extra_repr(module: nn.Module, settings: Mapping[str, str]) -> dict[str, str]:
    """Return what `extra_repr()` prints as `name=value` and no attribute has; those of torch print attributes only."""
    if modules.python_module(type(module).extra_repr).startswith("torch."):
        return {}
    try:
        printed = _SETTING.findall(module.extra_repr())
    except Exception:  # the user's own code
        return {}
    return {name: value for name, value in printed if name not in settings and name not in _NOT_SETTINGS}


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
        return None if len(parts) > 16 or None in parts else f"({', '.join(filter(None, parts))})"
    if isinstance(value, partial):
        settings = _read_settings(value.keywords, frozenset())
        return f"{_show(value.func)}({', '.join(f'{name}={each}' for name, each in settings.items())})"
    name = getattr(value, "__name__", None) if callable(value) else None
    return name if isinstance(name, str) and name.isidentifier() else None


_assigned_by_forward: WeakKeyDictionary[type, frozenset[str]] = WeakKeyDictionary()


def _find_assigned_by_forward(cls: type) -> frozenset[str]:
    """Return the attributes that the forward of a class assigns, itself or in the methods that it calls."""
    if modules.python_module(cls).startswith("torch.nn."):
        return frozenset()
    if cls not in _assigned_by_forward:
        methods, assigned = ["forward"], set()
        for method in methods:
            code = getattr(inspect.unwrap(getattr(cls, method, None) or _nothing), "__code__", None)
            for step in dis.get_instructions(code) if code is not None else ():
                if step.opname == "STORE_ATTR":
                    assigned.add(str(step.argval))
                elif step.opname in ("LOAD_ATTR", "LOAD_METHOD") and step.argval not in methods:
                    is_own = not hasattr(nn.Module, step.argval) and inspect.isfunction(getattr(cls, step.argval, None))
                    methods += [step.argval] * is_own
        _assigned_by_forward[cls] = frozenset(assigned)
    return _assigned_by_forward[cls]


def _nothing() -> None:
    """Stand in for a missing forward."""
