"""Lines of user code that submitted work to a thread pool.

A worker of `asyncio.to_thread` or a `ThreadPoolExecutor` that runs a model directly has no user code on its stack.
"""

from __future__ import annotations

import sys
import threading
import weakref
from concurrent.futures.thread import _WorkItem
from types import CodeType, FrameType
from typing import Any, NamedTuple, Protocol

from pytest_evalmode.observe.patches import Patch


class FramePosition(NamedTuple):
    """The position of a frame, with the same attribute names as a frame."""

    f_code: CodeType
    f_lineno: int


class UserCodeFilter(Protocol):
    """Recognizes user code."""

    def is_user_code(self, code: CodeType) -> bool: ...


class _CurrentWork(threading.local):
    position: FramePosition | None = None


_current_work = _CurrentWork()
_positions: weakref.WeakKeyDictionary[_WorkItem[Any], FramePosition] = weakref.WeakKeyDictionary()
_init_patch: Patch[UserCodeFilter] = Patch("__init__", _WorkItem)
_run_patch: Patch[UserCodeFilter] = Patch("run", _WorkItem)


def start(user_code: UserCodeFilter) -> None:
    _init_patch.start(user_code)
    _run_patch.start(user_code)


def stop(user_code: UserCodeFilter) -> None:
    _init_patch.stop(user_code)
    _run_patch.stop(user_code)


def submission_position() -> FramePosition | None:
    """Return the user's line that submitted the work that this thread runs, or None outside of a pool."""
    return _current_work.position


@_init_patch.replace_with
def _observed_init(self: _WorkItem[Any], *args: Any, **kwargs: Any) -> None:
    _init_patch.original(self, *args, **kwargs)
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if any(user_code.is_user_code(frame.f_code) for user_code in _init_patch.observers):
            _positions[self] = FramePosition(frame.f_code, frame.f_lineno)
            return
        frame = frame.f_back


@_run_patch.replace_with
def _observed_run(self: _WorkItem[Any], *args: Any, **kwargs: Any) -> None:
    _current_work.position = _positions.get(self)
    try:
        _run_patch.original(self, *args, **kwargs)
    finally:
        _current_work.position = None
