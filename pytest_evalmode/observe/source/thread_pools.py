"""Lines of user code that submitted work to a thread pool.

A worker of `asyncio.to_thread` or a `ThreadPoolExecutor` that runs a model directly has no user code on its stack.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from types import CodeType, FrameType
from typing import TYPE_CHECKING, Any, NamedTuple

from pytest_evalmode.observe import patches
from pytest_evalmode.observe.patches import Call, Observer

if TYPE_CHECKING:
    from concurrent.futures.thread import _WorkItem


class FramePosition(NamedTuple):
    """The position of a frame, with the same attribute names as a frame."""

    f_code: CodeType
    f_lineno: int


class _CurrentWork(threading.local):
    position: FramePosition | None = None


current_work = _CurrentWork()
"""The user's line that submitted the work that a thread of a pool runs."""
_positions: weakref.WeakKeyDictionary[_WorkItem[Any], FramePosition] = weakref.WeakKeyDictionary()


class ThreadPools(Observer):
    """The work that user code submits to pools of threads in a window."""

    patched = patches.work_item_init, patches.work_item_run

    def __init__(self, is_user_code: Callable[[CodeType], bool]) -> None:
        super().__init__()
        self._is_user_code = is_user_code

    def add_work(self, call: Call) -> None:
        """Record which user code has submitted work."""
        frame: FrameType | None = call.frame
        while frame is not None and not self._is_user_code(frame.f_code):
            frame = frame.f_back
        if frame is not None:
            _positions.setdefault(call.args[0], FramePosition(frame.f_code, frame.f_lineno))


@patches.work_item_run.replace_with
def _observed_run(self: _WorkItem[Any], *args: Any, **kwargs: Any) -> None:
    current_work.position = _positions.get(self)
    try:
        patches.work_item_run.original(self, *args, **kwargs)
    finally:
        current_work.position = None
