"""Classes that replace `nn.Module.__call__` -> their calls, which are forwards as well.

Such a class is found where it stands when a window opens, or when a module of it is built: its `__call__` is wrapped
until the last window closes.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from itertools import chain
from operator import attrgetter
from typing import Any

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
        self._wrapped: dict[type, tuple[Method, Method]] = {}
        """By class, what stands there now and what stood there before."""
        self._lock = threading.RLock()

    def start(self) -> None:
        with self._lock:
            self._windows += 1
            kinds: list[type[nn.Module]] = [nn.Module]
            for kind in kinds:
                kinds += type.__subclasses__(kind)  # there are hundreds, and this is done for each window
            self._look(chain.from_iterable(map(_MRO, kinds)))
            built.start(self)

    def find(self, kind: type[nn.Module]) -> None:
        """Look at a class, and at those that it inherits from."""
        if kind in self._known:
            return
        with self._lock:
            self._look(kind.__mro__)

    def stop(self) -> None:
        with self._lock:
            self._windows -= 1
            built.stop(self)
            if self._windows == 0:
                self._known.clear()  # or they would not be freed
                for kind, (ours, theirs) in self._wrapped.items():
                    if vars(kind).get(_NAME) is ours:
                        setattr(kind, _NAME, theirs)
                self._wrapped.clear()

    def _look(self, bases: Iterable[type]) -> None:
        unknown = set(bases) - self._known - _LAST
        self._known |= unknown
        for base in unknown:
            if _NAME in base.__dict__ and not str(base.__module__).startswith("torch."):
                self._wrap(base)

    def _wrap(self, kind: type) -> None:
        theirs = vars(kind)[_NAME]
        if theirs is calls.original or code.goes_past_module(theirs):
            ours = observing(theirs)
            setattr(kind, _NAME, ours)
            self._wrapped[kind] = ours, theirs


own_calls = OwnCalls()
built: Wrapped[OwnCalls] = Wrapped("__init__")


@built.by
def _observed(self: nn.Module, *args: Any, **kwargs: Any) -> None:
    own_calls.find(type(self))
    built.original(self, *args, **kwargs)
