"""Processes that are forked from this one instead of started anew, so that they need not import torch."""

from __future__ import annotations

import gc
import os
import runpy
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from subprocess import CompletedProcess
from tempfile import TemporaryFile
from threading import Timer
from typing import BinaryIO
from weakref import WeakSet

import pytest
from execnet.gateway_base import ExecModel, Popen2IO
from execnet.gateway_io import popen_bootstrapline

SECONDS = 600
"""After which a forked process is killed: it can hang, if a thread of its parent held a lock of C code."""
_pipes: WeakSet[BinaryIO] = WeakSet()
"""Open ends of pipes. A child closes them, so that a pipe ends with the process that uses it."""


def fork(action: Callable[[], object], stdin: int, stdout: int, stderr: int) -> int:
    """Call a function in a forked process with these streams; return its process id.

    Its exit status is 0, or that of a `SystemExit`, or 1 after another exception.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # this process has threads
        pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        _use_streams(stdin, stdout, stderr)
        warnings.resetwarnings()
        gc.freeze()  # collections of the child skip the objects of its parent
        action()
        status = 0
    except SystemExit as exit_:
        status = int(exit_.code or 0)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        with suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def _use_streams(*streams: int) -> None:
    for fd, stream in enumerate(streams):
        os.dup2(stream, fd)
    for pipe in _pipes:
        if not pipe.closed:
            os.close(pipe.fileno())  # not close(), which would also write what is buffered
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115


def _forget_modules_below(folder: Path) -> None:
    """Remove the modules of an inner suite, not of an environment: a new process would not have imported them."""
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None) or ""  # compared as text: there are thousands of modules
        if file.startswith(f"{folder}{os.sep}") and not file.startswith(f"{sys.prefix}{os.sep}"):
            del sys.modules[name]


class Worker(Popen2IO):
    """The process of an xdist worker. Replaces `execnet.gateway_io.Popen2IOMaster`."""

    def __init__(self, args: Sequence[str], execmodel: ExecModel) -> None:
        (stdin, to_worker), (from_worker, stdout) = os.pipe(), os.pipe()
        files = open(to_worker, "wb"), open(from_worker, "rb")  # noqa: SIM115
        _pipes.update(files)
        self._pid = fork(self._work, stdin, stdout, 2)
        os.close(stdin)
        os.close(stdout)
        super().__init__(*files, execmodel=execmodel)

    def _work(self) -> None:
        _forget_modules_below(Path.cwd())
        exec(popen_bootstrapline, {"__name__": "__main__"})

    def wait(self) -> int | None:
        with suppress(ChildProcessError):
            return os.waitpid(self._pid, 0)[1]
        return None

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGKILL)


Wait = Callable[[], CompletedProcess[str]]
"""Waits until a process has ended, and returns what it has printed."""


def run_pytest(
    folder: Path, *args: str | Path, stdin: bytes = b"", env: dict[str, str] | None = None
) -> CompletedProcess[str]:
    """Run `python -m pytest` in a folder."""
    return start_pytest(folder, *args, stdin=stdin, env=env)()


def start_pytest(folder: Path, *args: str | Path, stdin: bytes = b"", env: dict[str, str] | None = None) -> Wait:
    """Start `python -m pytest` in a folder, from the main thread.

    A child destroys the state of the other threads, and a process group in there waits for threads that it lacks.
    """

    def action() -> None:
        sys.argv[:] = [pytest.__file__, *map(str, args)]
        raise SystemExit(pytest.main(list(map(str, args))))

    return _start(action, folder, stdin, env or {})


def run_script(script: Path) -> CompletedProcess[str]:
    """Run a Python script in its folder."""

    def action() -> None:
        sys.argv[:] = [str(script)]
        runpy.run_path(str(script), run_name="__main__")

    return _start(action, script.parent, b"", {})()


def _start(action: Callable[[], object], folder: Path, stdin: bytes, env: dict[str, str]) -> Wait:
    def prepared() -> None:
        os.chdir(folder)
        os.environ.update(env)
        sys.path.insert(0, str(folder))
        _forget_modules_below(folder)
        action()

    with TemporaryFile() as given, ExitStack() as stack:
        out, err = (stack.enter_context(TemporaryFile()) for _ in range(2))
        given.write(stdin)
        given.seek(0)
        pid = fork(prepared, given.fileno(), out.fileno(), err.fileno())
        outputs = stack.pop_all()
    limit = Timer(SECONDS, os.kill, (pid, signal.SIGKILL))
    limit.start()

    def wait() -> CompletedProcess[str]:
        with outputs:
            try:
                code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            finally:
                limit.cancel()
            out.seek(0)
            err.seek(0)
            return CompletedProcess([], code, out.read().decode(), err.read().decode())

    return wait
