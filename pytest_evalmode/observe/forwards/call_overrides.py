"""Classes that replace `nn.Module.__call__` -> their calls, which are forwards as well.

Such a class is found where it stands when a window opens, or when a module of it is built: its `__call__` is wrapped
until the last window closes.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from itertools import chain
from typing import Any
from weakref import WeakSet

from torch import nn

from pytest_evalmode.observe import modules
from pytest_evalmode.observe.forwards.observer import call_patch, wrap_call
from pytest_evalmode.observe.patches import Method, Patch
from pytest_evalmode.observe.source import forward_code

_NAME = "__call__"
_LAST = {nn.Module, object}


class CallOverrides:
    """The classes whose own `__call__` is observed, for all windows together."""

    def __init__(self) -> None:
        self._windows = 0
        self._built: WeakSet[type] = WeakSet()
        """Those of modules that were built since a window opened, which may have been defined since: they may die."""
        self._wrapped: dict[type, tuple[Method, Method]] = {}
        """By class, what stands there now and what stood there before."""
        self._lock = threading.RLock()

    def start(self) -> None:
        with self._lock:
            self._windows += 1
            kinds: list[type] = [nn.Module]
            for kind in kinds:
                kinds += type.__subclasses__(kind)  # there are hundreds, and this is done for each window
            others = chain.from_iterable(kind.__mro__ for kind in kinds if len(kind.__bases__) > 1)
            self._wrap({*kinds, *others})
            init_patch.start(self)

    def find(self, kind: type[nn.Module]) -> None:
        """Look at a class, and at those that it inherits from."""
        if kind not in self._built:
            with self._lock:
                self._built.add(kind)
                self._wrap(kind.__mro__)

    def stop(self) -> None:
        with self._lock:
            self._windows -= 1
            init_patch.stop(self)
            if self._windows == 0:
                self._built.clear()
                for kind, (ours, theirs) in self._wrapped.items():
                    if vars(kind).get(_NAME) is ours:
                        setattr(kind, _NAME, theirs)
                self._wrapped.clear()

    def _wrap(self, kinds: Iterable[type]) -> None:
        for kind in [kind for kind in kinds if _NAME in kind.__dict__]:
            theirs = vars(kind)[_NAME]
            if kind in _LAST or kind in self._wrapped or modules.python_module(kind).startswith("torch."):
                continue
            if theirs is call_patch.original or forward_code.bypasses_module_call(theirs):
                ours = wrap_call(theirs)
                setattr(kind, _NAME, ours)
                self._wrapped[kind] = ours, theirs


call_overrides = CallOverrides()
init_patch: Patch[CallOverrides] = Patch("__init__")


@init_patch.replace_with
def _observed(self: nn.Module, *args: Any, **kwargs: Any) -> None:
    call_overrides.find(type(self))
    init_patch.original(self, *args, **kwargs)
