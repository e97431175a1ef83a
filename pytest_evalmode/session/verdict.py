"""The verdict on a test, as pytest's own kind of failure."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import pytest

from pytest_evalmode.errors import EvalModeWarning, HygieneError
from pytest_evalmode.report.message import explain
from pytest_evalmode.rules import Violation

NOTE = "\nIts inference was not clean either."
"""So begins what is added to a test's own failure."""


class HygieneViolation(pytest.fail.Exception):  # type: ignore[name-defined, misc]
    """A guarded test's inference was not clean."""

    # pytest prints the message alone, in every --tb style: no line of the plugin's is of use to anybody.
    # In the summary it would print the module too, and little would be left of 80 columns.
    __module__ = "builtins"

    def __init__(self, violations: Sequence[Violation], marker: str = "inference") -> None:
        super().__init__(explain(violations, marker), pytrace=False)
        self.violations = tuple(violations)


def shorten(report: pytest.TestReport, error: BaseException) -> None:
    """Let a report's last word be the headline, and its place the user's line at fault.

    With CI set, or -vv, the short summary would print all of it.  Where annotations look for a place, pytest has none
    for a failure without a traceback.  The text is laid out, and coloured, as pytest lays out its own.
    """
    longrepr: Any = report.longrepr
    crash = getattr(longrepr, "reprcrash", None)
    if crash is None:
        return
    crash.message = crash.message.partition(f"\n{NOTE}")[0]
    if not isinstance(error, HygieneViolation | HygieneError | EvalModeWarning):
        return
    crash.message = crash.message.partition("\n")[0]
    for entry in longrepr.reprtraceback.reprentries:
        if entry.style == "value":
            first, *rest = entry.lines
            entry.lines = [f"E   {line}".rstrip() for line in (f"{type(error).__name__}: {first}", *rest)]
            entry.style = "long"
            entry.reprfileloc = type(crash)(_near(crash.path), crash.lineno, type(error).__name__)


def _near(path: str) -> str:
    """A path as pytest prints it: from the current folder, if there is one."""
    with suppress(OSError, ValueError):
        return min(os.path.relpath(path), path, key=len)
    return path
