"""Lines of user code on the call stack."""

from __future__ import annotations

import linecache
from functools import cache, partial
from pathlib import Path, PurePath
from threading import get_ident
from types import CodeType, FrameType
from typing import NamedTuple

from pytest_evalmode.observe.private_api import current_frames
from pytest_evalmode.observe.source.thread_pools import FramePosition, current_work
from pytest_evalmode.observe.source.user_code import user_path
from pytest_evalmode.trace import Site

# Python modules that run a forward to make something else: a graph (jit.trace runs it again to check the result, when
# torch.jit.is_tracing() is false), a parametrized weight, a probe's comparison with training mode.
_BUILDERS = (
    "torch.jit._trace",
    "torch.onnx.",
    "torch.export.",
    "torch._export.",
    "torch.ao.quantization.",
    "torch.nn.utils.parametrize",
    "pytest_evalmode.probes.training_run",
)
_FUNCTIONAL_CALL = "torch.nn.utils.stateless"
# Runs a forward again in backward(), to compute what it did not keep.
_CHECKPOINT, _BACKWARD = "torch.utils.checkpoint", "torch.autograd"


class Caller(NamedTuple):
    """The code that called a model."""

    frame: FrameType | FramePosition | None
    """The user's frame, or the line that submitted the call to a pool of threads."""
    test_frame: FrameType | None = None
    """The innermost frame in a test file, if `frame` is in another file, such as a library in the same repository."""
    by_tracer: bool = False
    """The call computes something else: a graph, a parametrized weight, a forward in `backward()`, a probe's training
    run."""
    by_functional_call: bool = False
    """`functional_call` made it, with other tensors in place of the model's own."""

    @property
    def line(self) -> tuple[CodeType, int] | None:
        """The code object and number of the line to report: that in the test file, if there is one."""
        frame = self.test_frame or self.frame
        return (frame.f_code, frame.f_lineno) if frame is not None else None


class UserLines:
    """Finds the user's lines on the stack of the current thread, or of the thread that opened the window.

    Code below `root` is the user's. A line in one of the `test_files` (glob patterns) is preferred.
    """

    def __init__(self, root: Path | None = None, test_files: tuple[str, ...] = ()) -> None:
        resolved = root.resolve() if root else None
        self._path = cache(partial(user_path, root=resolved))
        """The path of a file as it is reported, or None if it is not the user's."""
        self._is_test_file = cache(lambda file: bool(self._path(file)) and any(map(PurePath(file).match, test_files)))
        self._has_test_files = bool(test_files)
        self._thread = get_ident()
        self._worker_threads: set[int] = set()
        """Other threads that have run a model."""

    def find_caller(self, frame: FrameType | None) -> Caller:
        """Find the innermost user frame from a frame outwards, and the functions of torch in between.

        A worker thread may run no user code. Then the line counts that submitted its work, else the line at which the
        thread that opened the window is.
        """
        if self.is_worker_thread():
            self._worker_threads.add(get_ident())
        found: FrameType | FramePosition | None = frame
        by_functional_call = by_checkpoint = False
        while frame is not None and not self._path(frame.f_code.co_filename):
            name = frame.f_globals.get("__name__", "")
            # A checkpoint runs a part of a forward that was observed already.
            if name.startswith(_BUILDERS) or (by_checkpoint and name == _BACKWARD):
                return Caller(None, by_tracer=True)
            by_functional_call |= name == _FUNCTIONAL_CALL
            by_checkpoint |= name == _CHECKPOINT
            found = frame = frame.f_back
        if frame is None and self.is_worker_thread():
            if by_checkpoint:  # autograd runs backward() on a device in a thread of its own
                return Caller(None, by_tracer=True)
            found = current_work.position
            if found is None or not self._path(found.f_code.co_filename):
                found = frame = self._user_frame(current_frames().get(self._thread))
        return Caller(found, self._test_frame(frame), by_functional_call=by_functional_call)

    def _test_frame(self, caller: FrameType | None) -> FrameType | None:
        """Return the innermost frame in a test file from a frame outwards, or None if it is that frame itself."""
        frame = caller if self._has_test_files else None
        while frame is not None and not self._is_test_file(frame.f_code.co_filename):
            frame = frame.f_back
        return None if frame is caller else frame

    def find_line(self, frame: FrameType | None, end: FrameType | None = None) -> Site | None:
        """Return the innermost user line from a frame outwards, before `end` is reached.

        If a model's forward began in `end`, this is a line in the model's own code.
        """
        frame = self._user_frame(frame, end)
        return None if frame is None else self.site(frame.f_code, frame.f_lineno)

    def _user_frame(self, frame: FrameType | None, end: FrameType | None = None) -> FrameType | None:
        while frame is not None and frame is not end:
            if self._path(frame.f_code.co_filename):
                return frame
            frame = frame.f_back
        return None

    def is_worker_thread(self) -> bool:
        """Return whether the current thread is not the one that opened the window."""
        return get_ident() != self._thread

    def has_other_active_threads(self) -> bool:
        """Return whether another thread runs user code, or has run a model and still exists."""
        stacks = current_frames()
        stacks.pop(get_ident(), None)
        return any(t in self._worker_threads or self._user_frame(frame) for t, frame in stacks.items())

    def is_user_code(self, code: CodeType) -> bool:
        """Return whether a code object comes from a file of the user."""
        return self._path(code.co_filename) is not None

    def site(self, code: CodeType, line: int) -> Site | None:
        """Return a line of a code object with its path relative to the root, or None if it is not user code."""
        file = self._path(code.co_filename)
        return Site(file, line, linecache.getline(code.co_filename, line).strip()) if file else None
