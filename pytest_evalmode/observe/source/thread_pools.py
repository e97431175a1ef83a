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

from pytest_evalmode.observe.patches import Wrapped


class Place(NamedTuple):
    """Where a frame stood."""

    f_code: CodeType
    f_lineno: int


class Judge(Protocol):
    """Who knows the user's code."""

    def is_user(self, code: CodeType) -> bool: ...


class _Running(threading.local):
    place: Place | None = None


_running = _Running()
_places: weakref.WeakKeyDictionary[_WorkItem[Any], Place] = weakref.WeakKeyDictionary()
_made: Wrapped[Judge] = Wrapped("__init__", _WorkItem)
_runs: Wrapped[Judge] = Wrapped("run", _WorkItem)


def start(judge: Judge) -> None:
    """Keep in mind who submits what from now on."""
    _made.start(judge)
    _runs.start(judge)


def stop(judge: Judge) -> None:
    _made.stop(judge)
    _runs.stop(judge)


def place() -> Place | None:
    """Where what this thread runs was submitted, if it was to a pool."""
    return _running.place


@_made.by
def _observed_init(self: _WorkItem[Any], *args: Any, **kwargs: Any) -> None:
    _made.original(self, *args, **kwargs)
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if any(judge.is_user(frame.f_code) for judge in _made.observers):
            _places[self] = Place(frame.f_code, frame.f_lineno)
            return
        frame = frame.f_back


@_runs.by
def _observed_run(self: _WorkItem[Any], *args: Any, **kwargs: Any) -> None:
    _running.place = _places.get(self)
    try:
        _runs.original(self, *args, **kwargs)
    finally:
        _running.place = None
