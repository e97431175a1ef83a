"""Observer of `train()` and `eval()`: the user's line that switched a module to training mode or to eval mode.

In a pytest session it runs from the first window to the end, because a fixture or another test may switch the model.
"""

from __future__ import annotations

import sys
import weakref
from types import FrameType, FunctionType
from typing import Any

from torch import nn
from torch.compiler import is_compiling

from pytest_evalmode.observe import modules, patches
from pytest_evalmode.observe.calls.timeline import Timeline
from pytest_evalmode.observe.patches import Observer
from pytest_evalmode.observe.source.user_lines import UserLines
from pytest_evalmode.trace import Site


class ModeChanges(Observer):
    """The modules that were switched in a window, with the line that switched each; `earlier` holds those before it."""

    patched = (patches.module_train,)

    def __init__(
        self, user_lines: UserLines, timeline: Timeline | None = None, earlier: ModeChanges | None = None
    ) -> None:
        super().__init__()
        self.change_count = 0
        """Number of changes so far: while it stays the same, lines found earlier are still valid."""
        self._user_lines = user_lines
        self._timeline = timeline
        self._earlier = earlier
        self._lines: dict[int, tuple[weakref.ref[nn.Module], Site, bool]] = {}
        """By `id`: the module, which removes its entry when it dies, the line that switched it last, and its mode."""

    def line_of_training(self, module: nn.Module) -> tuple[Site | None, bool]:
        """Return the line that switched a module to training mode, and whether it ran in the window or before it."""
        if self._earlier is None or id(module) in self._lines:
            line = self.line_of_mode(module)
            return line, line is not None
        return self._earlier.line_of_mode(module), False

    def line_of_mode(self, module: nn.Module, *, training: bool = True) -> Site | None:
        """Return the line in the window that switched a module to training mode, or to eval mode.

        None if the last change was to the other mode.
        """
        _, line, mode = self._lines.get(id(module), (None, None, None))
        return line if mode is training else None

    def reset(self) -> None:
        """Forget all lines."""
        self.change_count += 1
        self._lines.clear()

    def add_change(self, module: nn.Module, frame: FrameType) -> None:
        """Record a call of `train()`, which `eval()` calls too."""
        if frame.f_code is _TRAIN_CODE:  # train() of a parent calls train() of each child
            return
        self.change_count += 1
        line = self._find_line(module, frame)
        if self._timeline is not None:
            self._timeline.add_mode_change(module, line)
        for part in modules.all_modules(module):
            if line is not None:
                self._store(part, line)
            else:
                self._lines.pop(id(part), None)

    def _store(self, module: nn.Module, line: Site) -> None:
        lines, key = self._lines, id(module)

        def forget(dead: weakref.ref[nn.Module]) -> None:
            if key in lines and lines[key][0] is dead:
                del lines[key]

        lines[key] = weakref.ref(module, forget), line, bool(modules.training_flag(module))

    def _find_line(self, module: nn.Module, caller: FrameType) -> Site | None:
        """Return the user's line that called `train()`, outside the overrides of the module's class."""
        methods = (vars(base).get(name) for base in type(module).__mro__ for name in ("train", "eval"))
        overrides = {method.__code__ for method in methods if isinstance(method, FunctionType)}
        frame: FrameType | None = caller
        while frame is not None and frame.f_code in overrides:
            frame = frame.f_back
        return self._user_lines.find_line(frame)


_TRAIN_CODE = getattr(patches.module_train.original, "__code__", None)


@patches.module_train.replace_with
def _observed_train(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
    __tracebackhide__ = True
    result = patches.module_train.original(self, *args, **kwargs)
    if not is_compiling():
        for observer in patches.module_train.observers:
            with observer.errors:
                observer.add_change(self, sys._getframe(1))
    return result
