"""Models that first run while the guard is paused: they are watched if parts of them must stay frozen."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from torch import nn

from pytest_evalmode.observe import modules
from pytest_evalmode.observe.models.watch import Watch
from pytest_evalmode.observe.patches import Observer, module_call
from pytest_evalmode.observe.source import callers
from pytest_evalmode.observe.source.user_lines import UserLines


class PausedModels(Observer):
    """Adds each model to a `Watch` just before its first forward; its forwards are not checked."""

    patched = (module_call,)

    def __init__(self, watch: Watch, user_lines: UserLines) -> None:
        super().__init__()
        self._watch = watch
        self._user_lines = user_lines

    def enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
        """Note that a forward starts. Its end is of no interest, so `leave` is never called."""
        with self.errors:
            frame = sys._getframe(1)
            is_new = modules.is_initialized(module) and self._watch.registry.find_part(module) is None
            if is_new and not callers.is_inside_init(frame):
                self._watch.add(callers.find_calling_model(module, frame, self._user_lines)[0])
        return False
