"""Patches of methods of `nn.Module` and of other functions of torch, in place while they have observers."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from functools import wraps
from types import CellType, FunctionType, ModuleType
from typing import Any, Generic, TypeVar

from torch import nn

Observer = TypeVar("Observer")
Method = Callable[..., Any]

_TORCH_GLOBALS = vars(sys.modules[nn.Module.__module__])


class Patch(Generic[Observer]):
    """Replaces a function when the first observer starts, and restores it when the last one stops.

    The replacement is always the same function without a closure: torch.compile guards on closures, so a new one would
    cause a recompilation.
    """

    def __init__(self, name: str, owner: type | ModuleType = nn.Module) -> None:
        self.observers: tuple[Observer, ...] = ()
        self.original: Method = getattr(owner, name)
        self._owner = owner
        self._name = name
        self._replacement: Method = self.original
        self._opaque_wrapper: Method | None = None
        """Another wrapper around the replacement that hides what it calls, such as a mock."""
        self._lock = threading.Lock()

    def replace_with(self, function: Method) -> Method:
        """Set the replacement, which calls `original`. Usable as a decorator."""
        self._replacement = wraps(self.original)(function)
        return self._replacement

    def start(self, observer: Observer) -> None:
        """Add an observer, and install the replacement unless the function in place already calls it."""
        with self._lock:
            current = self._current()
            # The original, which the last stop() restored, never calls the replacement: no need to search it.
            is_original = current is self.original
            if is_original or (current is not self._opaque_wrapper and not _reaches(current, self._replacement)):
                self.original = current
                setattr(self._owner, self._name, self._replacement)
            self.observers = (*self.observers, observer)

    def stop(self, observer: Observer) -> None:
        """Remove an observer, and restore the original after the last one.

        If other code has wrapped the replacement, its wrapper stays, and the replacement only calls the original.
        """
        with self._lock:
            current = self._current()
            self.observers = tuple(other for other in self.observers if other is not observer)
            if not self.observers and current is self._replacement:
                setattr(self._owner, self._name, self.original)

    def _current(self) -> Method:
        """Return the function that is in place now, and note if it is a mock that wraps the replacement."""
        current: Method = getattr(self._owner, self._name)
        if self.observers and current is not self.original and _is_opaque(current):
            self._opaque_wrapper = current
        return current


def _is_opaque(method: object) -> bool:
    """Return whether a method hides what it calls, as a mock does and a plain function does not."""
    return not isinstance(method, FunctionType) or hasattr(method, "mock")


def _reaches(method: object, function: Method) -> bool:
    """Return whether a method is a function or wraps it: by `__wrapped__`, a closure or a global that it names."""
    pending, seen = [method], set[int]()
    while pending:
        value = pending.pop()
        if value is function:
            return True
        if type(value) is FunctionType and id(value) not in seen and value.__globals__ is not _TORCH_GLOBALS:
            seen.add(id(value))
            pending.append(getattr(value, "__wrapped__", None))
            pending.extend(map(_content, value.__closure__ or ()))
            pending.extend(value.__globals__.get(name) for name in value.__code__.co_names)
    return False


def _content(cell: CellType) -> object:
    try:
        return cell.cell_contents
    except ValueError:  # the cell is still empty
        return None
