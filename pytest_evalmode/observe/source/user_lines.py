"""The stack -> the user's line.

User code lies under the root (pytest's rootdir; for a script, anywhere) and is neither installed nor of the standard
library.
"""

from __future__ import annotations

import linecache
import os
import sys
import sysconfig
from os import getcwd
from pathlib import Path, PurePath
from threading import get_ident
from types import CodeType, FrameType
from typing import NamedTuple

from pytest_evalmode.observe.source import thread_pools
from pytest_evalmode.observe.source.thread_pools import FramePosition
from pytest_evalmode.trace import Site

_INSTALLED = ("site-packages", "dist-packages")
_LIBRARIES = (str(Path(sysconfig.get_paths()["stdlib"]).resolve()), f"{Path(__file__).resolve().parents[2]}{os.sep}")
# Where torch runs a forward to make another model of it; jit.trace does so once more, outside tracing, to check.
_TRACERS = ("torch.jit._trace", "torch.onnx.", "torch.export.", "torch._export.", "torch.ao.quantization.")
# What a parametrization computes when it is registered or a weight is read.
_PARAMETRIZERS = ("torch.nn.utils.parametrize",)


_BORROWERS = ("torch.nn.utils.stateless",)


class Caller(NamedTuple):
    """Who called a model."""

    frame: FrameType | FramePosition | None
    """Or where it was submitted to a pool of threads that ran it."""
    test_frame: FrameType | None = None
    """Whose line that was in a test's file, if `frame` is in another: a library under test lies below the root, too."""
    by_tracer: bool = False
    """torch called it, to make something else of it: a graph, or a weight."""
    by_functional_call: bool = False
    """`functional_call` did, with other tensors in the place of the model's own."""


class UserLines:
    """Finds the user's lines on the stack of the thread that asks, or of the thread that opened the window."""

    def __init__(self, root: Path | None = None, tests: tuple[str, ...] = ()) -> None:
        self._root = root.resolve() if root else None
        self._tests = tests
        self._thread = get_ident()
        self._workers: set[int] = set()
        """Other threads that have run a model."""
        self._files: dict[str, str | None] = {}
        self._test_files: dict[str, bool] = {}

    def find_caller(self, frame: FrameType | None) -> Caller:
        """The innermost user frame from here outwards, and what of torch's lies in between.

        A worker thread may hold no user code at all: then the line counts that submitted what it runs, else the one at
        which its opener stands.
        """
        if self.is_worker_thread():
            self._workers.add(get_ident())
        borrowed = False
        while frame is not None:
            if self._file(frame.f_code):
                return Caller(frame, self._test(frame), by_functional_call=borrowed)
            name = frame.f_globals.get("__name__", "")
            if name.startswith(_TRACERS) or name in _PARAMETRIZERS:
                return Caller(None, by_tracer=True)
            borrowed |= name in _BORROWERS
            frame = frame.f_back
        if not self.is_worker_thread():
            return Caller(None, by_functional_call=borrowed)
        submitted = thread_pools.submission_position()
        if submitted is not None and self._file(submitted.f_code):
            return Caller(submitted, by_functional_call=borrowed)
        opener: FrameType | None = sys._current_frames().get(self._thread)
        while opener is not None and not self._file(opener.f_code):
            opener = opener.f_back
        return Caller(opener, self._test(opener), by_functional_call=borrowed)

    def _test(self, caller: FrameType | None) -> FrameType | None:
        """The innermost frame of a test's file from here outwards; None where that is the caller's."""
        frame = caller if self._tests else None
        while frame is not None and not self._is_test(frame.f_code):
            frame = frame.f_back
        return None if frame is caller else frame

    def _is_test(self, code: CodeType) -> bool:
        name = code.co_filename
        try:
            return self._test_files[name]
        except KeyError:
            found = self.is_user_code(code) and any(map(PurePath(name).match, self._tests))
            self._test_files[name] = found
            return found

    def find_line(self, frame: FrameType | None) -> Site | None:
        """The innermost user line from here outwards."""
        while frame is not None and not self._file(frame.f_code):
            frame = frame.f_back
        return None if frame is None else self.site(frame.f_code, frame.f_lineno)

    def find_line_inside(self, frame: FrameType | None, model: FrameType | None) -> Site | None:
        """The innermost user line between a frame and the call of the model, its own code included."""
        while frame is not None and frame is not model:
            if self._file(frame.f_code):
                return self.site(frame.f_code, frame.f_lineno)
            frame = frame.f_back
        return None

    def is_worker_thread(self) -> bool:
        """Whether the thread that asks is another than the one that opened the window."""
        return get_ident() != self._thread

    def has_other_active_threads(self) -> bool:
        """Whether another thread runs user code, or is a worker that ran a model, and may have until just now."""
        stacks = sys._current_frames()
        stacks.pop(get_ident(), None)
        for thread, frame in stacks.items():
            if thread in self._workers:
                return True
            inner: FrameType | None = frame
            while inner is not None:
                if self.is_user_code(inner.f_code):
                    return True
                inner = inner.f_back
        return False

    def is_user_code(self, code: CodeType) -> bool:
        return self._file(code) is not None

    def site(self, code: CodeType, line: int) -> Site | None:
        """A line of this code as the user knows it; None if it is not the user's."""
        file = self._file(code)
        return Site(file, line, linecache.getline(code.co_filename, line).strip()) if file else None

    def _file(self, code: CodeType) -> str | None:
        name = code.co_filename
        try:
            return self._files[name]
        except KeyError:
            file = self._files[name] = self._relative(name)
            return file

    def _relative(self, name: str) -> str | None:
        if name.startswith("<"):
            return None
        path = Path(name).resolve()
        if any(part in _INSTALLED for part in path.parts) or str(path).startswith(_LIBRARIES):
            return None
        base = self._root or Path(getcwd())
        if path.is_relative_to(base):
            return path.relative_to(base).as_posix()
        return None if self._root else str(path)
