"""What was found is told: the test fails, or warns, at the line at fault; its own failure is added to."""

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

_HERE = f"{Path(__file__).parents[2]}{os.sep}"
NO_RESULT_EXCEPTIONS = (
    pytest.skip.Exception,
    pytest.xfail.Exception,
    SkipTest,
    pytest.exit.Exception,
    KeyboardInterrupt,
)
"""What is raised to have no result, of a test or of the whole run: nobody then hears what was found."""
_LET_PASS = (
    "  warnings are errors here; to be told of this one and no more, add it to what filters them:\n"
    '    -W "default::pytest_evalmode.EvalModeWarning"\n'
    '    filterwarnings = ["error", "default::pytest_evalmode.EvalModeWarning"]'
)


def fail_or_warn(item: pytest.Item, violations: list[Violation], outcome: Result[object], *, warn: bool) -> None:
    """Fail the test, or warn, at the user's line at fault."""
    error: BaseException = HygieneViolation(violations, item.config.stash[SETTINGS].marker)
    file, line = _place(violations[0].at, item)
    if warn:
        try:
            warnings.warn_explicit(EvalModeWarning(str(error)), None, file, line)
            return
        except EvalModeWarning:  # warnings are errors here
            error = EvalModeWarning(f"{error}\n\n{_LET_PASS}")
    try:
        _raise_at(file, line, {**_at_hand(item, violations), "error": error})
    except type(error) as located:
        remove_plugin_frames(located)
        outcome.force_exception(located)


def add_note(error: BaseException, guard: Guard) -> None:
    """Add what was found to a test's own failure: often it is the reason."""
    if isinstance(error, (HygieneViolation, HygieneError, *NO_RESULT_EXCEPTIONS)):
        return
    told = f"{NOTE_HEADING}  {guard.make_error()}"
    if isinstance(error, pytest.fail.Exception) and not error.pytrace:
        error.msg = f"{error.msg}\n{told}"  # pytest prints the message alone, without notes
    else:
        error.add_note(told)


def _place(site: Site | None, item: pytest.Item) -> tuple[str, int]:
    """The user's line at fault; where none is known, that of the test."""
    path, line, _ = item.location
    return str(item.config.rootpath / (site.file if site else path)), site.line if site else (line or 0) + 1


def _raise_at(file: str, line: int, names: dict[str, object]) -> None:
    """Raise `error` as if from the user's line: there `--tb=line`, JUnit, editors and `--pdb` look for it.

    Our own lines would help nobody.  `names` are what a debugger finds there.
    """
    exec(compile("raise error", file, "exec").replace(co_firstlineno=line), names)


def _at_hand(item: pytest.Item, violations: list[Violation]) -> dict[str, object]:
    """What a debugger is to find where it stops: the violations, the model, and the test's own arguments."""
    models = item.stash.get(MODELS, {})
    found: dict[str, object] = {
        "violations": violations,
        "models": models,
        "model": models.get(violations[0].model or ""),
    }
    instance = getattr(item, "instance", None)
    return found | ({} if instance is None else {"self": instance}) | getattr(item, "funcargs", {})


def remove_plugin_frames(error: BaseException) -> None:
    """Take the frames of the guard out of a traceback: `--tb=native` would print them, one for each module."""
    kept = []
    traceback = error.__traceback__
    while traceback is not None:
        if not traceback.tb_frame.f_code.co_filename.startswith(_HERE):
            kept.append(traceback)
        traceback = traceback.tb_next
    for before, after in zip(kept, [*kept[1:], None], strict=False):
        before.tb_next = after
    error.__traceback__ = kept[0] if kept else None
