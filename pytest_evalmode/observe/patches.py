"""A method of `nn.Module`, or another function of torch's, that is wrapped while somebody observes it."""

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

_TORCHS = vars(sys.modules[nn.Module.__module__])


class Patch(Generic[Observer]):
    """Puts a function in the place of a method for the first observer, and the method back after the last.

    It is one function without a closure, ever the same: torch.compile guards on closures, and would compile again.
    """

    def __init__(self, name: str, owner: type | ModuleType = nn.Module) -> None:
        self.observers: tuple[Observer, ...] = ()
        self.original: Method = getattr(owner, name)
        self._of = owner
        self._name = name
        self._function: Method = self.original
        self._above: Method | None = None
        """A wrapper that somebody put over the function, where nothing tells what it calls: a mock's, say."""
        self._lock = threading.Lock()

    def replace_with(self, function: Method) -> Method:
        """The function to put there; it calls `original`."""
        self._function = wraps(self.original)(function)
        return self._function

    def start(self, observer: Observer) -> None:
        with self._lock:
            there = self._there()
            known = there is self.original  # what was put back last time reaches nothing of ours
            if known or (there is not self._above and not _reaches(there, self._function)):
                self.original = there
                setattr(self._of, self._name, self._function)
            self.observers = (*self.observers, observer)

    def stop(self, observer: Observer) -> None:
        """Observe no longer.  Where somebody has wrapped the function, theirs stays, and ours has nobody to tell."""
        with self._lock:
            there = self._there()
            self.observers = tuple(other for other in self.observers if other is not observer)
            if not self.observers and there is self._function:
                setattr(self._of, self._name, self.original)

    def _there(self) -> Method:
        """The method as it is now; a mock that took the function's place while it was observed will call it."""
        there: Method = getattr(self._of, self._name)
        if self.observers and there is not self.original and _is_opaque(there):
            self._above = there
        return there


def _is_opaque(method: object) -> bool:
    """Whether nothing tells what a method calls: a mock's, unlike a function's."""
    return not isinstance(method, FunctionType) or hasattr(method, "mock")


def _reaches(method: object, function: Method) -> bool:
    """Whether a method is the function, or wraps it: by `__wrapped__`, a closure or a global that it names."""
    waiting, seen = [method], set[int]()
    while waiting:
        value = waiting.pop()
        if value is function:
            return True
        if type(value) is FunctionType and id(value) not in seen and value.__globals__ is not _TORCHS:
            seen.add(id(value))
            waiting.append(getattr(value, "__wrapped__", None))
            waiting.extend(map(_content, value.__closure__ or ()))
            waiting.extend(value.__globals__.get(name) for name in value.__code__.co_names)
    return False


def _content(cell: CellType) -> object:
    try:
        return cell.cell_contents
    except ValueError:  # what it is to hold is not there yet
        return None
