"""How a test's outcome changes: a failure, a warning or a note for violations, an error if the guard itself failed."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import SkipTest

import pytest

from pytest_evalmode.errors import EvalModeWarning, GuardError, HygieneError
from pytest_evalmode.report.message import failure_text
from pytest_evalmode.rules import RuleError, Violation
from pytest_evalmode.session.settings import SETTINGS
from pytest_evalmode.session.stash import GUARD
from pytest_evalmode.session.user_hooks import HookError

if TYPE_CHECKING:
    from pluggy import Result

    from pytest_evalmode.guards import Guard

_PACKAGE = f"{Path(__file__).parents[2]}{os.sep}"
NO_RESULT_EXCEPTIONS = (
    pytest.skip.Exception,
    pytest.xfail.Exception,
    SkipTest,
    pytest.exit.Exception,
    KeyboardInterrupt,
)
"""Exceptions that end a test or the run without a result; violations are not shown then."""
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


def fail_or_warn(item: pytest.Item, violations: list[Violation], outcome: Result[object], *, warn: bool) -> None:
    """Fail the test with HygieneViolation, or warn, at the line of user code at fault."""
    error: BaseException = HygieneViolation(violations, item.config.stash[SETTINGS].marker)
    at, (path, start, _) = violations[0].at, item.location  # those of the test if the line is not known
    file, line = str(item.config.rootpath / (at.file if at else path)), at.line if at else (start or 0) + 1
    if warn:
        error = EvalModeWarning(str(error))
        try:
            warnings.warn_explicit(error, None, file, line)
            return
        except EvalModeWarning:  # the warning filters turn it into an error
            pass
    try:
        # As if from a line of user code, where `--tb=line`, JUnit, editors and `--pdb` look for it.
        exec(compile("raise error", file, "exec").replace(co_firstlineno=line), {"error": error})
    except type(error) as raised:
        remove_plugin_frames(raised)
        outcome.force_exception(raised)


def report_guard_error(item: pytest.Item, outcome: Result[object]) -> None:
    """Release the guard at teardown; if it failed itself, raise GuardError, regardless of the test's own result."""
    guard = item.stash[GUARD]
    del item.stash[GUARD]
    failures = guard.window.failures
    if not failures or item.config.stash[SETTINGS].suggest:
        return
    from pytest_evalmode.guards import guard_error

    first = failures[0]
    is_users = isinstance(first, (HookError, RuleError))  # an error in a user's hook or rule
    error = GuardError(str(first)) if is_users else guard_error(failures)
    teardown_error = outcome.exception
    if isinstance(teardown_error, (pytest.exit.Exception, KeyboardInterrupt)):
        teardown_error.add_note(f"\n{error}")
    elif isinstance(teardown_error, Exception | pytest.fail.Exception):
        errors = [teardown_error, error]
        outcome.force_exception(BaseExceptionGroup("the teardown of the test and its guard both failed", errors))
    else:
        outcome.force_exception(error)


def override_xfail(error: BaseException, report: pytest.TestReport) -> None:
    """Report a GuardError as an error even in a test marked `xfail`."""
    if isinstance(error, GuardError) or (isinstance(error, BaseExceptionGroup) and error.subgroup(GuardError)):
        report.outcome = "failed"
        report.__dict__.pop("wasxfail", None)


def add_note(error: BaseException, guard: Guard) -> None:
    """Add the violations to a test's own failure as a note, because they often explain it."""
    if isinstance(error, (HygieneViolation, HygieneError, *NO_RESULT_EXCEPTIONS)):
        return
    note = f"{NOTE_HEADING}  {guard.reporter.make_error(guard.violations)}"
    if isinstance(error, pytest.fail.Exception) and not error.pytrace:
        error.msg = f"{error.msg}\n{note}"  # pytest prints only the message, without notes
    else:
        error.add_note(note)


def remove_plugin_frames(error: BaseException) -> None:
    """Remove the plugin's frames from a traceback: `--tb=native` would print one for each module that ran."""
    entries = []
    traceback = error.__traceback__
    while traceback is not None:
        if not traceback.tb_frame.f_code.co_filename.startswith(_PACKAGE):
            entries.append(traceback)
        traceback = traceback.tb_next
    for entry, following in zip(entries, [*entries[1:], None], strict=False):
        entry.tb_next = following
    error.__traceback__ = entries[0] if entries else None


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
    is_ours = isinstance(error, HygieneViolation | HygieneError | EvalModeWarning)
    if style == "line":  # prints `crash`, and would print our message or note below it
        for entry in longrepr.reprtraceback.reprentries:
            entry.lines = (
                [] if is_ours else "\n".join(entry.lines).partition(NOTE_HEADING.strip())[0].rstrip().split("\n")
            )
    if not is_ours:
        return
    crash.message = crash.message.partition("\n")[0]
    at = error.violations[0].at if isinstance(error, HygieneViolation) else None
    if at is not None:  # with `evalmode.check()`, pytest found the line of that call instead
        crash.path, crash.lineno = str(root / at.file), at.line
    for entry in longrepr.reprtraceback.reprentries:
        if entry.style == "value" and style != "line":  # lay out and color it as for an exception with a traceback
            first, *rest = entry.lines
            entry.lines = [f"E   {line}".rstrip() for line in (f"{type(error).__name__}: {first}", *rest)]
            entry.style = "long"
            entry.reprfileloc = type(crash)(_short_path(crash.path), crash.lineno, type(error).__name__)


def _short_path(path: str) -> str:
    """Return a path relative to the current folder, as pytest prints it, if the folder exists."""
    with suppress(OSError, ValueError):
        return min(os.path.relpath(path), path, key=len)
    return path
