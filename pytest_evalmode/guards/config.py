"""On what terms a window is guarded, beside the policy that its test declares."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pytest_evalmode.errors import HygieneError
from pytest_evalmode.observe.calls.mode_changes import Switches
from pytest_evalmode.observe.models.session_history import History
from pytest_evalmode.rules import Rule, Violation


@dataclass(frozen=True, slots=True)
class Terms:
    """What is asked of a window, and what becomes of what is found."""

    strict: bool = False
    rules: tuple[Rule, ...] = ()
    """A team's own."""
    root: Path | None = None
    """Where user code lies; anywhere if not given."""
    tests: tuple[str, ...] = ()
    """Patterns of the files of tests, whose lines are told before those of other code."""
    history: History | None = None
    """What shared models were before, where that is remembered."""
    switches: Switches | None = None
    """What is known of who switched models before the window."""
    verdict: Callable[[Sequence[Violation]], BaseException] = HygieneError
    enforced: bool = True
    """Whether `check()` raises; it does not where a violation is only to be warned of, at the end."""
    tell: Callable[[list[Violation]], list[Violation]] = list
    """Which of the violations are to be told."""
    fails: Callable[[list[Violation]], list[Violation]] = list
    """Which of these fail: those that are not known."""
    shown: bool = False
    """Whether what the models are made of, and what happened when, is to be shown."""
