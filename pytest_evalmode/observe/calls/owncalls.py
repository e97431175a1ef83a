"""Classes that replace `nn.Module.__call__` -> their calls, which are forwards as well.

Such a class is found where it stands when a window opens, or when a module of it is built: its `__call__` is wrapped
until the last window closes.
"""

from __future__ import annotations

import threading
from itertools import chain
from operator import attrgetter
from typing import Any
from weakref import WeakSet

from torch import nn

from pytest_evalmode.observe.calls.forwards import calls, observing
from pytest_evalmode.observe.source import code
from pytest_evalmode.observe.wrapped import Method, Wrapped

_NAME = "__call__"
_MRO = attrgetter("__mro__")
_LAST = {nn.Module, object}


class OwnCalls:
    """The classes whose own `__call__` is observed, for all windows together."""

    def __init__(self) -> None:
        self._windows = 0
        self._known: set[type] = set()
        self._late: WeakSet[type] = WeakSet()
        """Those that were defined since a window opened: they may die before it closes."""
        self._wrapped: dict[type, tuple[Method, Method]] = {}
        """By class, what stands there now and what stood there before."""
        self._lock = threading.RLock()

    def start(self) -> None:
        with self._lock:
            self._windows += 1
            kinds: list[type[nn.Module]] = [nn.Module]
            for kind in kinds:
                kinds += type.__subclasses__(kind)  # there are hundreds, and this is done for each window
            unknown = set(chain.from_iterable(map(_MRO, kinds))) - self._known
            self._known |= unknown
            self._wrap(unknown)
            built.start(self)

    def find(self, kind: type[nn.Module]) -> None:
        """Look at a class, and at those that it inherits from."""
        if kind in self._known or kind in self._late:
            return
        with self._lock:
            self._late.add(kind)
            self._wrap(set(kind.__mro__) - self._known)

    def stop(self) -> None:
        with self._lock:
            self._windows -= 1
            built.stop(self)
            if self._windows == 0:
                self._known.clear()  # or they would not be freed
                self._late.clear()
                for kind, (ours, theirs) in self._wrapped.items():
                    if vars(kind).get(_NAME) is ours:
                        setattr(kind, _NAME, theirs)
                self._wrapped.clear()

    def _wrap(self, bases: set[type]) -> None:
        for base in bases - _LAST - self._wrapped.keys():
            if _NAME in base.__dict__ and not str(base.__module__).startswith("torch."):
                theirs = vars(base)[_NAME]
                if theirs is calls.original or code.goes_past_module(theirs):
                    ours = observing(theirs)
                    setattr(base, _NAME, ours)
                    self._wrapped[base] = ours, theirs


own_calls = OwnCalls()
built: Wrapped[OwnCalls] = Wrapped("__init__")


@built.by
def _observed(self: nn.Module, *args: Any, **kwargs: Any) -> None:
    own_calls.find(type(self))
    built.original(self, *args, **kwargs)
