"""Observer of calls that set torch's global state: the user's line that changed a flag.

Torch offers each setter under several names. The functions that all of these call are patched while a strict window is
open. Calls that torch makes for its own purposes are ignored.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
from torch.autograd.anomaly_mode import set_detect_anomaly
from torch.autograd.grad_mode import set_grad_enabled
from torch.backends import ContextProp
from torch.backends.cuda import cuBLASModule
from torch.utils._device import DeviceContext

from pytest_evalmode.observe.observer_errors import ObserverErrors
from pytest_evalmode.observe.patches import Patch
from pytest_evalmode.observe.source.user_lines import UserLines
from pytest_evalmode.observe.state import flag_snapshots
from pytest_evalmode.observe.state.flag_snapshots import Flags
from pytest_evalmode.trace import FlagValue, Site


@dataclass(frozen=True, slots=True)
class FlagChange:
    """A flag that a call has changed, and the user's line that led to the call."""

    before: FlagValue
    after: FlagValue
    line: Site | None


class GlobalStateCalls:
    """The calls of a window that changed a global flag."""

    def __init__(self, user_lines: UserLines) -> None:
        self.failures = ObserverErrors()
        self._user_lines = user_lines
        self._changes: dict[str, list[FlagChange]] = {}
        """By flag, the changes that are still in effect: one that was reverted is removed."""

    def line_of(self, name: str, value: FlagValue) -> Site | None:
        """Return the line that set a flag to its current value, or None if that is unknown."""
        changes = self._changes.get(name)
        return changes[-1].line if changes and changes[-1].after == value else None

    def read_flags(self, names: tuple[str, ...]) -> Flags:
        """Return the values of some global flags, or none if reading them fails, for example under a test's mock."""
        try:
            return flag_snapshots.read_global_flags(names)
        except Exception as error:
            self.failures.append(error)
            return {}

    def add_call(self, before: Flags, after: Flags, frame: FrameType) -> None:
        """Record a call, made in a frame, with the flags before and after it."""
        try:
            if self._user_lines.is_worker_thread():
                return  # grad mode and the default device are per thread
            for leak in flag_snapshots.find_leaks(None, before, after):
                changes = self._changes.setdefault(leak.name, [])
                while changes and changes[-1].after != leak.before:
                    changes.pop()  # it was reverted by a call that is not patched
                if changes and changes[-1].before == leak.after:
                    changes.pop()
                else:
                    changes.append(FlagChange(leak.before, leak.after, self._user_lines.find_line(frame)))
        except Exception as error:
            self.failures.append(error)


# Owner, its functions, and the flags to read before and after: () reads all. Functions that a forward may call often
# name the one flag that they set.
_SETTERS: tuple[tuple[Any, tuple[str, ...], tuple[str, ...]], ...] = (
    (torch._C, ("_set_default_dtype", "_set_default_tensor_type"), ()),
    (torch._C, ("_set_deterministic_algorithms", "_set_float32_matmul_precision"), ()),
    (torch, ("set_num_threads",), ()),
    (ContextProp, ("__set__",), ()),
    (cuBLASModule, ("__setattr__",), ()),
    (set_grad_enabled, ("__init__", "__exit__"), ("grad_mode",)),
    (set_detect_anomaly, ("__init__", "__exit__"), ("anomaly_mode",)),
    (DeviceContext, ("__enter__", "__exit__"), ("default_device",)),
)
_is_compiling = torch.compiler.is_compiling

setter_patches: dict[Patch[GlobalStateCalls], tuple[str, ...]] = {
    Patch(name, owner): flags for owner, names, flags in _SETTERS for name in names if hasattr(owner, name)
}


def start(observer: GlobalStateCalls) -> None:
    for patch in setter_patches:
        patch.start(observer)


def stop(observer: GlobalStateCalls) -> None:
    for patch in setter_patches:
        patch.stop(observer)


def _is_internal_to_torch(frame: FrameType) -> bool:
    """Return whether torch itself makes a call; `torch` and `torch.backends` only forward calls of the user."""
    name = frame.f_globals.get("__name__", "")
    return name.startswith("torch.") and not name.startswith("torch.backends")


def _define_replacement(patch: Patch[GlobalStateCalls], flags: tuple[str, ...]) -> None:
    @patch.replace_with
    def _observed_setter(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        frame = sys._getframe(1)
        if not patch.observers or _is_compiling() or _is_internal_to_torch(frame):
            return patch.original(*args, **kwargs)
        before = patch.observers[0].read_flags(flags)
        result = patch.original(*args, **kwargs)
        for observer in patch.observers:
            observer.add_call(before, observer.read_flags(flags), frame)
        return result


for _patch, _flags in setter_patches.items():
    _define_replacement(_patch, _flags)
