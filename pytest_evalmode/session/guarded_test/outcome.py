"""How a test's outcome changes: a failure, a warning or a note for violations, an error if the guard itself failed."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING
from unittest import SkipTest

import pytest

from pytest_evalmode.errors import EvalModeWarning, GuardError, HygieneError
from pytest_evalmode.rules import RuleError, Violation
from pytest_evalmode.session.guarded_test.failure import NOTE_HEADING, HygieneViolation
from pytest_evalmode.session.settings import SETTINGS
from pytest_evalmode.session.stash import GUARD
from pytest_evalmode.session.user_hooks import HookError
from pytest_evalmode.trace import Site

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


def fail_or_warn(item: pytest.Item, violations: list[Violation], outcome: Result[object], *, warn: bool) -> None:
    """Fail the test with HygieneViolation, or warn, at the line of user code at fault."""
    error: BaseException = HygieneViolation(violations, item.config.stash[SETTINGS].marker)
    file, line = _location(violations[0].at, item)
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


def _location(site: Site | None, item: pytest.Item) -> tuple[str, int]:
    """Return the file and line at fault; those of the test if the line is not known."""
    path, line, _ = item.location
    return str(item.config.rootpath / (site.file if site else path)), site.line if site else (line or 0) + 1


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
