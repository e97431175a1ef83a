"""Configuration of a guard, apart from the policy that its test declares."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pytest_evalmode.observe.calls.mode_changes import ModeChanges
from pytest_evalmode.observe.models.session_history import SessionHistory
from pytest_evalmode.rules import Rule


@dataclass(frozen=True, slots=True)
class GuardConfig:
    """Configuration of one guard: which rules apply, what counts as user code, and what earlier tests did."""

    strict: bool = False
    custom_rules: tuple[Rule, ...] = ()
    """The rules that user hooks add."""
    root: Path | None = None
    """The folder of user code; without one, all code outside installed packages counts as user code."""
    test_files: tuple[str, ...] = ()
    """Globs of the names of test files; messages prefer lines in these files."""
    history: SessionHistory | None = None
    """The state of shared models after earlier tests, for `state-drifted`."""
    earlier_mode_changes: ModeChanges | None = None
    """The `train()` and `eval()` calls seen before the window, in fixtures and other tests."""
    record_details: bool = False
    """Whether to record the models' trees and the sequence of events, which the HTML report shows."""
