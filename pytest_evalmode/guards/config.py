"""On what terms a window is guarded, beside the policy that its test declares."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pytest_evalmode.errors import HygieneError
from pytest_evalmode.observe.calls.mode_changes import ModeChanges
from pytest_evalmode.observe.models.session_history import SessionHistory
from pytest_evalmode.rules import Rule, Violation


@dataclass(frozen=True, slots=True)
class GuardConfig:
    """What is asked of a window, and what becomes of what is found."""

    strict: bool = False
    custom_rules: tuple[Rule, ...] = ()
    """A team's own."""
    root: Path | None = None
    """Where user code lies; anywhere if not given."""
    test_files: tuple[str, ...] = ()
    """Patterns of the files of tests, whose lines are told before those of other code."""
    history: SessionHistory | None = None
    """What shared models were before, where that is remembered."""
    earlier_mode_changes: ModeChanges | None = None
    """What is known of who switched models before the window."""
    make_error: Callable[[Sequence[Violation]], BaseException] = HygieneError
    enforced: bool = True
    """Whether `check()` raises; it does not where a violation is only to be warned of, at the end."""
    filter_violations: Callable[[list[Violation]], list[Violation]] = list
    """Which of the violations are to be told."""
    select_failing: Callable[[list[Violation]], list[Violation]] = list
    """Which of these fail: those that are not known."""
    record_details: bool = False
    """Whether what the models are made of, and what happened when, is to be shown."""
