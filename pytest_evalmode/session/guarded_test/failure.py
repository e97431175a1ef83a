"""The verdict on a test, as pytest's own kind of failure."""

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

NOTE_HEADING = "\nIts inference was not clean either."
"""So begins what is added to a test's own failure."""


class HygieneViolation(pytest.fail.Exception):  # type: ignore[name-defined, misc]
    """A guarded test's inference was not clean."""

    # pytest prints the message alone, in every --tb style: no line of the plugin's is of use to anybody.
    # In the summary it would print the module too, and little would be left of 80 columns.
    __module__ = "builtins"

    def __init__(self, violations: Sequence[Violation], marker: str = "inference") -> None:
        super().__init__(failure_text(violations, marker), pytrace=False)
        self.violations = tuple(violations)


def shorten_report(report: pytest.TestReport, error: BaseException, style: str, root: Path) -> None:
    """Let a report's last word be the headline, and its place the user's line at fault: not that of `evalmode.check()`.

    With CI set, or -vv, the short summary would print all of it.  Where annotations look for a place, pytest has none
    for a failure without a traceback.  The text is laid out, and coloured, as pytest lays out its own; in the `style`
    `line` there is none but that last word.
    """
    longrepr: Any = report.longrepr
    crash = getattr(longrepr, "reprcrash", None)
    if crash is None:
        return
    crash.message = crash.message.partition(f"\n{NOTE_HEADING}")[0]
    ours = isinstance(error, HygieneViolation | HygieneError | EvalModeWarning)
    if ours:
        crash.message = crash.message.partition("\n")[0]
    at = error.violations[0].at if isinstance(error, HygieneViolation) else None
    if at is not None:
        crash.path, crash.lineno = str(root / at.file), at.line
    if style == "line":
        for entry in longrepr.reprtraceback.reprentries:
            entry.lines = [] if ours else _without_note(entry.lines)
        return
    if not ours:
        return
    for entry in longrepr.reprtraceback.reprentries:
        if entry.style == "value":
            first, *rest = entry.lines
            entry.lines = [f"E   {line}".rstrip() for line in (f"{type(error).__name__}: {first}", *rest)]
            entry.style = "long"
            entry.reprfileloc = type(crash)(_near(crash.path), crash.lineno, type(error).__name__)


def _without_note(lines: Sequence[str]) -> list[str]:
    """What is printed of a test's own failure, up to what was added to it."""
    noted = next((n for n, line in enumerate(lines) if NOTE_HEADING.strip() in line), len(lines))
    return "\n".join(lines[:noted]).rstrip().split("\n")


def _near(path: str) -> str:
    """A path as pytest prints it: from the current folder, if there is one."""
    with suppress(OSError, ValueError):
        return min(os.path.relpath(path), path, key=len)
    return path
