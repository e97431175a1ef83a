"""Every `train()` -> the user's line that switched a module to training mode, or to eval mode.

`nn.Module.train` is wrapped while a window is open, and in a session of tests from the first one on: a fixture may have
trained the model, or another test.  `eval()` calls it, too.
"""

from __future__ import annotations

import sys
import weakref
from types import CodeType, FrameType, FunctionType
from typing import Any

import torch
from torch import nn

from pytest_evalmode.observe import modules
from pytest_evalmode.observe.calls.timeline import Timeline
from pytest_evalmode.observe.observer_errors import ObserverErrors
from pytest_evalmode.observe.patches import Patch
from pytest_evalmode.observe.source.user_lines import UserLines
from pytest_evalmode.trace import Site


class ModeChanges:
    """Observes who switches modules: in a window, for which another may have observed what was `before` it."""

    def __init__(self, sites: UserLines, events: Timeline | None = None, before: ModeChanges | None = None) -> None:
        self.failures = ObserverErrors()
        self.change_count = 0
        """Of the times that something was switched."""
        self._sites = sites
        self._events = events
        self._before = before
        self._lines: dict[int, tuple[weakref.ref[nn.Module], Site, bool]] = {}

    def line_of_training(self, module: nn.Module) -> Site | None:
        """The line that has switched a module to training mode, in the window or before it."""
        known, *_ = self._lines.get(id(module), (None,))
        if self._before is None or (known is not None and known() is module):
            return self.line_of_mode(module)
        return self._before.line_of_mode(module)

    def line_of_mode(self, module: nn.Module, *, training: bool = True) -> Site | None:
        """The line that has switched a module to training mode, or to eval mode, unless that was before the window."""
        known, line, mode = self._lines.get(id(module), (None, None, None))
        return line if known is not None and known() is module and mode is training else None

    def reset(self) -> None:
        self.change_count += 1
        self._lines.clear()

    def note(self, module: nn.Module) -> None:
        """A `train()` has ended in the calling frame."""
        self.change_count += 1
        try:
            caller = sys._getframe(2)
            if caller.f_code is _RECURSIVE:
                return  # the module is part of one that is being switched
            line = self._line(module, caller)
            if self._events is not None:
                self._events.add_mode_change(module, line)
            for part in modules.all_modules(module):
                if line is not None:
                    self._keep(part, line)
                else:
                    self._lines.pop(id(part), None)
        except Exception as error:
            self.failures.append(error)

    def _keep(self, module: nn.Module, line: Site) -> None:
        lines, key = self._lines, id(module)

        def forget(dead: weakref.ref[nn.Module]) -> None:
            if key in lines and lines[key][0] is dead:
                del lines[key]

        lines[key] = weakref.ref(module, forget), line, bool(modules.training_flag(module))

    def _line(self, module: nn.Module, caller: FrameType) -> Site | None:
        """The user's line that called `train()`, be it overridden."""
        own = _overrides(type(module))
        frame: FrameType | None = caller
        while frame is not None and frame.f_code in own:
            frame = frame.f_back
        return self._sites.find_line_inside(frame, None)


def _overrides(kind: type[nn.Module]) -> set[CodeType]:
    methods = (vars(base).get(name) for base in kind.__mro__ for name in ("train", "eval"))
    return {method.__code__ for method in methods if isinstance(method, FunctionType)}


train_patch: Patch[ModeChanges] = Patch("train")
_RECURSIVE = getattr(train_patch.original, "__code__", None)
_is_compiling = torch.compiler.is_compiling


@train_patch.replace_with
def _observed(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
    __tracebackhide__ = True
    result = train_patch.original(self, *args, **kwargs)
    if not _is_compiling():
        for observer in train_patch.observers:
            observer.note(self)
    return result
