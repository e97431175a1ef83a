"""Attributes that code outside of any forward set on a module."""

from __future__ import annotations

import inspect
import sys
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType, MethodType
from typing import Any

import torch
from torch import nn
from torch.compiler import is_compiling

from pytest_evalmode.observe import modules, patches
from pytest_evalmode.observe.models.watch import Watch
from pytest_evalmode.observe.patches import Observer
from pytest_evalmode.observe.source import callers
from pytest_evalmode.observe.source.user_lines import UserLines
from pytest_evalmode.observe.state.fingerprint import is_tensor
from pytest_evalmode.trace import FlagValue, Leak, Part, Site

_ABSENT = object()
_MAX_LENGTH = 120
_PLAIN_TYPES = (bool, int, float, complex, str, tuple, list, dict)
_RESTORED_BY = "_pytest.monkeypatch"
"""The module of pytest that restores what it sets, after the window."""


@dataclass(slots=True)
class _Write:
    """An attribute that code outside of any forward has set."""

    module: weakref.ref[nn.Module]
    name: str
    before: object
    at: Site | None


class AttributeWrites(Observer):
    """Strict observer of what is set on a module outside its forwards: a submodule, a `forward`, a plain attribute."""

    patched = (patches.module_setattr, patches.add_module)

    def __init__(self, watch: Watch, user_lines: UserLines) -> None:
        super().__init__()
        self._watch = watch
        self._user_lines = user_lines
        self._writes: dict[tuple[int, str], _Write] = {}

    def start(self, *, strict: bool = False) -> None:
        """Start if a model is shared, as patching `__setattr__` updates every subclass; call it again once one is."""
        if not self.is_running and any(model.flags is not None for model in self._watch.registry.models):
            super().start(strict=strict)

    def add_write(self, module: nn.Module, name: str, value: object, frame: FrameType) -> None:
        """Record that the code of a frame is about to set an attribute."""
        with self.errors:
            if frame.f_code.co_name == "__init__" or name in modules.TORCH_ATTRIBUTES:
                return
            if frame.f_globals.get("__name__") == _RESTORED_BY:
                return
            is_part = name == "forward" or isinstance(value, nn.Module)
            if not is_part and not (value is None or is_tensor(value) or isinstance(value, _PLAIN_TYPES)):
                return
            # A library may replace a part or a forward; a plain attribute counts if the test's own code sets it.
            is_users = self._user_lines.is_user_code(frame.f_code) and not callers.is_in_module_method(frame)
            if (is_part or is_users) and not callers.is_inside_forward(frame):
                at, key = self._user_lines.find_line(frame), (id(module), name)
                known = self._writes.get(key)
                if known is not None and known.module() is module:
                    known.at = at
                else:
                    self._writes[key] = _Write(weakref.ref(module), name, _value(module, name), at)

    def pop_leaks(self) -> Iterator[Leak]:
        """Yield what was set on shared models since the last call and has another value now."""
        writes, self._writes = self._writes, {}
        for write in writes.values():
            module = write.module()
            owner = None if module is None else self._watch.registry.find_model(module)
            if module is None or owner is None or owner[0].flags is None:
                continue
            now = _value(module, write.name)
            if not _is_equal(_looked_up(module, write.name, now), _looked_up(module, write.name, write.before)):
                path = ".".join(filter(None, (owner[1], write.name)))
                yield Leak(owner[0].name, path, _describe(write.before), _describe(now), write.at)

    def reset(self) -> None:
        """Forget what was set so far."""
        self._writes.clear()


def _value(module: nn.Module, name: str) -> object:
    """Return what is stored on a module itself under a name; the class is not asked."""
    return vars(module).get(name, module._modules.get(name, _ABSENT))


def _looked_up(module: nn.Module, name: str, value: object) -> object:
    """Return a value or, where none is stored, the class's; a function for a method of the module."""
    value = inspect.getattr_static(type(module), name, _ABSENT) if value is _ABSENT else value
    return value.__func__ if isinstance(value, MethodType) and value.__self__ is module else value


def _is_equal(one: object, other: object) -> bool:
    try:
        if is_tensor(one) and is_tensor(other):
            return one is other or torch.equal(one, other)
        return one is other or (type(one) is type(other) and bool(one == other))
    except Exception:  # tensors in a tuple
        return False


def _describe(value: object) -> FlagValue:
    if value is _ABSENT:
        return "(absent)"
    if isinstance(value, nn.Module):
        return Part(id(value), modules.type_name(value))
    if is_tensor(value):
        return Part(id(value), f"tensor of shape {tuple(value.shape)}")
    text = getattr(value, "__qualname__", None)
    return text if isinstance(text, str) else repr(value)[:_MAX_LENGTH]


@patches.module_setattr.replace_with
def _observed_setattr(self: nn.Module, name: str, value: Any) -> None:
    if not is_compiling():
        for observer in patches.module_setattr.observers:
            observer.add_write(self, name, value, sys._getframe(1))
    patches.module_setattr.original(self, name, value)


@patches.add_module.replace_with
def _observed_add_module(self: nn.Module, name: str, module: nn.Module | None) -> None:
    if not is_compiling():
        for observer in patches.add_module.observers:
            observer.add_write(self, name, module, sys._getframe(1))
    patches.add_module.original(self, name, module)
