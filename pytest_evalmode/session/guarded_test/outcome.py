"""How violations change the outcome of a test: a failure, a warning, or a note on the test's own failure."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING
from unittest import SkipTest

import pytest

from pytest_evalmode.errors import EvalModeWarning, HygieneError
from pytest_evalmode.rules import Violation
from pytest_evalmode.session.guarded_test.failure import NOTE_HEADING, HygieneViolation
from pytest_evalmode.session.settings import SETTINGS
from pytest_evalmode.session.stash import MODELS
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
_WARNING_FILTER_HINT = (
    "  warnings are errors in this run; to see this one without failing, add a filter:\n"
    '    -W "default::pytest_evalmode.EvalModeWarning"\n'
    '    filterwarnings = ["error", "default::pytest_evalmode.EvalModeWarning"]'
)


def fail_or_warn(item: pytest.Item, violations: list[Violation], outcome: Result[object], *, warn: bool) -> None:
    """Fail the test with HygieneViolation, or warn, at the line of user code at fault."""
    error: BaseException = HygieneViolation(violations, item.config.stash[SETTINGS].marker)
    file, line = _location(violations[0].at, item)
    if warn:
        try:
            warnings.warn_explicit(EvalModeWarning(str(error)), None, file, line)
            return
        except EvalModeWarning:  # the warning filters turn it into an error
            error = EvalModeWarning(f"{error}\n\n{_WARNING_FILTER_HINT}")
    try:
        _raise_at(file, line, {**_debugger_variables(item, violations), "error": error})
    except type(error) as raised:
        remove_plugin_frames(raised)
        outcome.force_exception(raised)


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


def _raise_at(file: str, line: int, variables: dict[str, object]) -> None:
    """Raise `error` as if from a line of user code, where `--tb=line`, JUnit, editors and `--pdb` look for it.

    A debugger shows `variables` there; they include `error`.
    """
    exec(compile("raise error", file, "exec").replace(co_firstlineno=line), variables)


def _debugger_variables(item: pytest.Item, violations: list[Violation]) -> dict[str, object]:
    """Return the variables that a debugger shows: the violations, the models, and the test's own arguments."""
    models = item.stash.get(MODELS, {})
    model = models.get(violations[0].model or "")
    variables: dict[str, object] = {"violations": violations, "models": models, "model": model}
    instance = getattr(item, "instance", None)
    return variables | ({} if instance is None else {"self": instance}) | getattr(item, "funcargs", {})


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
