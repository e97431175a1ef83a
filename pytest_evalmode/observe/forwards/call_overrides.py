"""Observation of classes that override `nn.Module.__call__`.

Their calls are forwards too, but do not reach the patched method.  Such a class is found when a window opens, or when
one of its modules is initialized, and its `__call__` is wrapped until the last window closes.
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
_BASES = {nn.Module, object}


class CallOverrides:
    """The classes whose own `__call__` is wrapped, shared by all windows."""

    def __init__(self) -> None:
        self._open_windows = 0
        self._initialized: WeakSet[type] = WeakSet()
        """Classes of which a module was initialized since a window opened; weak, as a test may define and drop them."""
        self._wrapped: dict[type, tuple[Method, Method]] = {}
        """The wrapper and the original method, by class."""
        self._lock = threading.RLock()

    def start(self) -> None:
        with self._lock:
            self._open_windows += 1
            classes: list[type] = [nn.Module]
            for cls in classes:
                classes += type.__subclasses__(cls)  # hundreds, for each window: keep this fast
            mixins = chain.from_iterable(cls.__mro__ for cls in classes if len(cls.__bases__) > 1)
            self._wrap({*classes, *mixins})
            init_patch.start(self)

    def observe_class(self, cls: type[nn.Module]) -> None:
        """Wrap the `__call__` of a class and of its bases, where they override that of `nn.Module`."""
        if cls not in self._initialized:
            with self._lock:
                self._initialized.add(cls)
                self._wrap(cls.__mro__)

    def stop(self) -> None:
        with self._lock:
            self._open_windows -= 1
            init_patch.stop(self)
            if self._open_windows == 0:
                self._initialized.clear()
                for cls, (wrapper, original) in self._wrapped.items():
                    if vars(cls).get(_NAME) is wrapper:
                        setattr(cls, _NAME, original)
                self._wrapped.clear()

    def _wrap(self, classes: Iterable[type]) -> None:
        for cls in [cls for cls in classes if _NAME in cls.__dict__]:
            original = vars(cls)[_NAME]
            if cls in _BASES or cls in self._wrapped or modules.python_module(cls).startswith("torch."):
                continue
            # A class may also name torch's own method: `__call__ = nn.Module.__call__` refers to the unpatched one.
            if original is call_patch.original or forward_code.bypasses_module_call(original):
                wrapper = wrap_call(original)
                setattr(cls, _NAME, wrapper)
                self._wrapped[cls] = wrapper, original


call_overrides = CallOverrides()
init_patch: Patch[CallOverrides] = Patch("__init__")


@init_patch.replace_with
def _observed(self: nn.Module, *args: Any, **kwargs: Any) -> None:
    call_overrides.observe_class(type(self))
    init_patch.original(self, *args, **kwargs)
