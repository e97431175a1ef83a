"""Every call that sets torch's global state -> the user's line that made it.

What is wrapped is where all names of a setter end, while a strict window is open.  What torch sets for itself, and puts
back, is nobody's line.
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
from pytest_evalmode.trace import Site


@dataclass(frozen=True, slots=True)
class Setting:
    """A flag that a call has changed, and the user's line that led to the call."""

    before: str
    after: str
    line: Site | None


class GlobalStateCalls:
    """Observes who sets the global flags of a window."""

    def __init__(self, sites: UserLines) -> None:
        self.failures = ObserverErrors()
        self._sites = sites
        self._settings: dict[str, list[Setting]] = {}
        """By name, those that hold: what is put back is none."""

    def line_of(self, name: str, value: str) -> Site | None:
        """The line that has set a flag to what it is."""
        held = self._settings.get(name)
        return held[-1].line if held and held[-1].after == value else None

    def flags(self, names: tuple[str, ...]) -> Flags:
        """How torch is set; a test may have broken what tells it."""
        try:
            return flag_snapshots.read_global_flags(names)
        except Exception as error:
            self.failures.append(error)
            return {}

    def note(self, before: Flags, now: Flags, frame: FrameType) -> None:
        """A call that somebody made in a frame has ended."""
        try:
            if self._sites.is_worker_thread():
                return  # some flags are a thread's own
            for leak in flag_snapshots.find_leaks(None, before, now):
                held = self._settings.setdefault(leak.name, [])
                while held and held[-1].after != leak.before:
                    held.pop()  # it was put back where nobody saw it
                if held and held[-1].before == leak.after:
                    held.pop()
                else:
                    held.append(Setting(leak.before, leak.after, self._sites.find_line(frame)))
        except Exception as error:
            self.failures.append(error)


# Who sets, by what, and which flags are to be read: all of them, but where a forward may well be in a `with`.
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

setters: dict[Patch[GlobalStateCalls], tuple[str, ...]] = {
    Patch(name, of): flags for of, names, flags in _SETTERS for name in names if hasattr(of, name)
}


def start(observer: GlobalStateCalls) -> None:
    for setter in setters:
        setter.start(observer)


def stop(observer: GlobalStateCalls) -> None:
    for setter in setters:
        setter.stop(observer)


def _is_torchs_own(frame: FrameType) -> bool:
    """Whether torch sets something for itself; `torch` and `torch.backends` hand on what others set."""
    name = frame.f_globals.get("__name__", "")
    return name.startswith("torch.") and not name.startswith("torch.backends")


def _observe(setter: Patch[GlobalStateCalls], flags: tuple[str, ...]) -> None:
    @setter.replace_with
    def observed(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        frame = sys._getframe(1)
        if not setter.observers or _is_compiling() or _is_torchs_own(frame):
            return setter.original(*args, **kwargs)
        before = setter.observers[0].flags(flags)
        result = setter.original(*args, **kwargs)
        for observer in setter.observers:
            observer.note(before, observer.flags(flags), frame)
        return result


for _setter, _flags in setters.items():
    _observe(_setter, _flags)
