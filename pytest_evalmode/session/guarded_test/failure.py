"""The failure of a test that was not clean, and how pytest reports it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from pytest_evalmode.errors import EvalModeWarning, HygieneError
from pytest_evalmode.report.message import failure_text
from pytest_evalmode.rules import Violation

NOTE_HEADING = "\nThe inference was not clean either."
"""The start of the note on a test's own failure."""


class HygieneViolation(pytest.fail.Exception):  # type: ignore[name-defined, misc]
    """The failure of a guarded test whose inference was not clean.

    Attributes:
        violations: the reported violations, a tuple of `Violation`.
    """

    # With pytrace=False, pytest prints only the message, in every --tb style, without lines of the plugin.
    # With `builtins` as its module, the short summary prints the bare class name, which leaves room in 80 columns.
    __module__ = "builtins"

    def __init__(self, violations: Sequence[Violation], marker: str = "inference") -> None:
        super().__init__(failure_text(violations, marker), pytrace=False)
        self.violations = tuple(violations)
        self._marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return _new_violation, (self.violations, self._marker), self.__dict__  # pickle would search `builtins`


def _new_violation(violations: Sequence[Violation], marker: str) -> HygieneViolation:
    return HygieneViolation(violations, marker)


def shorten_report(report: pytest.TestReport, error: BaseException, style: str, root: Path) -> None:
    """Shorten the message of a failure report to its headline, and set its location to the line at fault.

    With CI set, or -vv, the short summary would print the whole message.  Tools that annotate source lines need the
    location, which pytest does not set for a failure without a traceback.  `style` is the --tb style.
    """
    longrepr: Any = report.longrepr
    crash = getattr(longrepr, "reprcrash", None)
    if crash is None:
        return
    crash.message = crash.message.partition(f"\n{NOTE_HEADING}")[0]
    if not isinstance(error, HygieneViolation | HygieneError | EvalModeWarning):
        return
    crash.message = crash.message.partition("\n")[0]
    at = error.violations[0].at if isinstance(error, HygieneViolation) else None
    if at is not None:  # with `evalmode.check()`, pytest found the line of that call instead
        crash.path, crash.lineno = str(root / at.file), at.line
    for entry in longrepr.reprtraceback.reprentries:
        if style == "line":  # prints `crash`, and would print the whole message below it
            entry.lines = []
        elif entry.style == "value":  # lay out and color the message as for an exception with a traceback
            first, *rest = entry.lines
            entry.lines = [f"E   {line}".rstrip() for line in (f"{type(error).__name__}: {first}", *rest)]
            entry.style = "long"
            entry.reprfileloc = type(crash)(_short_path(crash.path), crash.lineno, type(error).__name__)


def _short_path(path: str) -> str:
    """Return a path relative to the current folder, as pytest prints it, if the folder exists."""
    with suppress(OSError, ValueError):
        return min(os.path.relpath(path), path, key=len)
    return path
