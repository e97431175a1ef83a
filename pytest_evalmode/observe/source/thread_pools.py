"""What a pool of threads runs -> the user's line that submitted it.

The workers of `asyncio.to_thread` and of a `ThreadPoolExecutor` hold no code of the user's where he hands them a model.
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
    """Where a frame stood."""

    f_code: CodeType
    f_lineno: int


class Judge(Protocol):
    """Who knows the user's code."""

    def is_user_code(self, code: CodeType) -> bool: ...


class _Running(threading.local):
    place: FramePosition | None = None


_running = _Running()
_places: weakref.WeakKeyDictionary[_WorkItem[Any], FramePosition] = weakref.WeakKeyDictionary()
_made: Patch[Judge] = Patch("__init__", _WorkItem)
_runs: Patch[Judge] = Patch("run", _WorkItem)


def start(judge: Judge) -> None:
    """Keep in mind who submits what from now on."""
    _made.start(judge)
    _runs.start(judge)


def stop(judge: Judge) -> None:
    _made.stop(judge)
    _runs.stop(judge)


def submission_position() -> FramePosition | None:
    """Where what this thread runs was submitted, if it was to a pool."""
    return _running.place


@_made.replace_with
def _observed_init(self: _WorkItem[Any], *args: Any, **kwargs: Any) -> None:
    _made.original(self, *args, **kwargs)
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if any(judge.is_user_code(frame.f_code) for judge in _made.observers):
            _places[self] = FramePosition(frame.f_code, frame.f_lineno)
            return
        frame = frame.f_back


@_runs.replace_with
def _observed_run(self: _WorkItem[Any], *args: Any, **kwargs: Any) -> None:
    _running.place = _places.get(self)
    try:
        _runs.original(self, *args, **kwargs)
    finally:
        _running.place = None
