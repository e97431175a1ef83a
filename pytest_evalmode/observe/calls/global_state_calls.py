"""Observer of calls that set torch's global state: the user's line that changed a flag."""

from __future__ import annotations

import sys
from dataclasses import replace
from types import FrameType
from typing import Any

from torch.compiler import is_compiling

from pytest_evalmode.observe import patches
from pytest_evalmode.observe.patches import Observer, Patch
from pytest_evalmode.observe.source.user_lines import UserLines
from pytest_evalmode.observe.state import flag_snapshots
from pytest_evalmode.observe.state.flag_snapshots import Flags
from pytest_evalmode.trace import FlagValue, Leak, Site


class GlobalStateCalls(Observer):
    """The calls of a window that changed a global flag."""

    patched = tuple(patches.SETTERS)

    def __init__(self, user_lines: UserLines) -> None:
        super().__init__()
        self._user_lines = user_lines
        self._changes: dict[str, list[Leak]] = {}
        """By flag, the changes that are still in effect with their lines: one that was reverted is removed."""

    def line_of(self, name: str, value: FlagValue) -> Site | None:
        """Return the line that set a flag to its current value, or None if that is unknown."""
        changes = self._changes.get(name)
        return changes[-1].at if changes and changes[-1].after == value else None

    def read_flags(self, names: tuple[str, ...]) -> Flags:
        """Return the values of some global flags, or none if reading them fails, for example under a test's mock."""
        with self.errors:
            return flag_snapshots.read_global_flags(names)
        return {}

    def add_call(self, before: Flags, after: Flags, frame: FrameType) -> None:
        """Record a call, made in a frame, with the flags before and after it."""
        with self.errors:
            if self._user_lines.is_worker_thread():
                return  # grad mode and the default device are per thread
            for leak in flag_snapshots.find_leaks(None, before, after):
                changes = self._changes.setdefault(leak.name, [])
                while changes and changes[-1].after != leak.before:
                    changes.pop()  # it was reverted by a call that is not patched
                if changes and changes[-1].before == leak.after:
                    changes.pop()
                else:
                    changes.append(replace(leak, at=self._user_lines.find_line(frame)))


def _define_replacement(patch: Patch, flags: tuple[str, ...]) -> None:
    @patch.replace_with
    def _observed_setter(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        frame = sys._getframe(1)
        caller = str(frame.f_globals.get("__name__"))
        # `torch` and `torch.backends` only forward calls of the user.
        is_torch = caller.startswith("torch.") and not caller.startswith("torch.backends")
        if not patch.observers or is_compiling() or is_torch:
            return patch.original(*args, **kwargs)
        before = patch.observers[0].read_flags(flags)
        result = patch.original(*args, **kwargs)
        for observer in patch.observers:
            observer.add_call(before, observer.read_flags(flags), frame)
        return result


for _patch, _flags in patches.SETTERS.items():
    _define_replacement(_patch, _flags)
