"""Observation of classes that override `nn.Module.__call__`.

Such a class is found when a window opens, or when it is defined, and gets a patch of its own in each window.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from types import FunctionType
from typing import Any
from weakref import ref

from torch import nn

from pytest_evalmode import forks
from pytest_evalmode.observe import modules, patches
from pytest_evalmode.observe.forwards.observer import observe_calls
from pytest_evalmode.observe.model_code import forward_code
from pytest_evalmode.observe.patches import Observer, Patch

_CALL, _INIT_SUBCLASS = "__call__", "__init_subclass__"
_patches: dict[tuple[int, str], Patch] = {}
"""The patches of classes that are in place, by `id` and name, shared by all windows."""
_candidates: list[ref[type]] = []
"""The classes that a window must look at, up to date while `patches.init_subclass` is kept in place."""
_lock = forks.new_lock(sys.modules[__name__])


class CallOverrides(Observer):
    """The classes with their own `__call__` whose modules may run in a window."""

    patched = (patches.init_subclass,)

    def start(self, *, strict: bool = False) -> None:
        are_known = patches.init_subclass.is_kept
        if not are_known:
            _candidates.clear()
        super().start(strict=strict)
        if are_known:
            classes = [cls for candidate in _candidates if (cls := candidate()) is not None]
            classes += _find_overrides(filter(_bypasses_init_subclass, classes))
        else:
            _candidates.extend(map(ref, classes := _find_overrides([nn.Module])))
        self._patch(classes)

    def add_class(self, cls: type[nn.Module]) -> None:
        """Patch a class that was just defined, if that is needed."""
        with self.errors:
            self._patch([cls])

    def stop(self) -> None:
        super().stop()
        with _lock:
            for key, patch in list(_patches.items()):
                with self.errors:
                    patch.stop(self)
                if not patch.observers:
                    del _patches[key]

    def _patch(self, classes: Iterable[type]) -> None:
        with _lock:
            for cls in classes:
                for name, needs_patch, observe in _OVERRIDES:
                    patch = _patches.get((id(cls), name))
                    if patch is None and needs_patch(cls):
                        observe(patch := Patch(cls, name))
                    if patch is not None and self not in patch.observers:
                        with suppress(Exception):  # a class may refuse attributes
                            patch.start(self)
                            _patches[id(cls), name] = patch


def _find_overrides(roots: Iterable[type]) -> list[type]:
    """Return the classes that may override `__call__`, among all below some classes and these."""
    subclasses, classes = type.__subclasses__, [*roots]
    for cls in classes:
        classes += subclasses(cls)
    return list(filter(_may_override, classes))


def _may_override(cls: Any) -> bool:
    """Return whether a class may have its own `__call__`, or an `__init_subclass__` that hides new classes."""
    own = cls.__dict__
    return _CALL in own or _INIT_SUBCLASS in own or (len(cls.__bases__) > 1 and cls.__call__ is not nn.Module.__call__)


def _bypasses_call(cls: type) -> bool:
    """Return whether the modules of a class have a `__call__` that does not call that of `nn.Module`.

    That of a base that is a class of modules too is patched there.
    """
    if modules.python_module(cls).startswith("torch."):
        return False
    definer = next(base for base in cls.__mro__ if _CALL in base.__dict__)
    if definer is not cls and (issubclass(definer, nn.Module) or modules.python_module(definer).startswith("torch.")):
        return False
    call = definer.__dict__[_CALL]
    if type(call) is not FunctionType:
        return False
    # A class may also name torch's own method: `__call__ = nn.Module.__call__` refers to the unpatched one.
    return call is patches.module_call.original or forward_code.bypasses_module_call(call)


def _bypasses_init_subclass(cls: type) -> bool:
    """Return whether a class has an `__init_subclass__` that does not call that of its bases."""
    code = getattr(getattr(cls.__dict__.get(_INIT_SUBCLASS), "__func__", None), "__code__", None)
    return cls is not nn.Module and code is not None and not {"super", _INIT_SUBCLASS} & {*code.co_names}


def _observe_subclasses(patch: Patch) -> None:
    @patch.replace_with
    def _observed(cls: type[nn.Module], **kwargs: Any) -> None:
        original = super(nn.Module, cls).__init_subclass__ if patch.is_inherited else patch.original.__get__(None, cls)
        original(**kwargs)
        with suppress(Exception):  # a metaclass may do anything
            if _may_override(cls):
                _candidates.append(ref(cls))
        for observer in patch.observers:
            observer.add_class(cls)


_observe_subclasses(patches.init_subclass)
_OVERRIDES: tuple[tuple[str, Callable[[type], bool], Callable[[Patch], None]], ...] = (
    (_CALL, _bypasses_call, observe_calls),
    (_INIT_SUBCLASS, _bypasses_init_subclass, _observe_subclasses),
)
