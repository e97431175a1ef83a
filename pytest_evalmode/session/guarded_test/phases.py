"""The guard of one test: created at setup, open during the call, evaluated when the call ends."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pytest_evalmode.session import fixtures, user_hooks
from pytest_evalmode.session.guarded_test.guard_setup import new_guard, policy_and_rules_of
from pytest_evalmode.session.guarded_test.item_reporter import ItemReporter
from pytest_evalmode.session.guarded_test.outcome import (
    NO_RESULT_EXCEPTIONS,
    add_note,
    fail_or_warn,
    remove_plugin_frames,
)
from pytest_evalmode.session.guarded_test.unittest_cases import pause_in_setup_methods, testcase_exception
from pytest_evalmode.session.guarded_test.user_properties import add_record, add_suggestion
from pytest_evalmode.session.settings import SETTINGS
from pytest_evalmode.session.stash import GUARD, MARKS, RUNNING_ITEM

if TYPE_CHECKING:
    from pluggy import Result

    from pytest_evalmode.guards import Guard


def prepare(item: pytest.Item) -> None:
    """Create the guard of a test, a new one for each rerun.  Fails the test if its marks are invalid."""
    item.stash[GUARD] = new_guard(item)
    item.stash[MARKS] = _marks(item)


def _marks(item: pytest.Item) -> list[pytest.Mark]:
    return list(item.iter_markers(item.config.stash[SETTINGS].marker))


def guard_of(item: pytest.Item) -> Guard:
    """Return the guard of a test that requests it; with `--evalmode=off`, a guard that is never opened."""
    if GUARD in item.stash:
        return item.stash[GUARD]
    if item.config.stash[SETTINGS].mode == "off":
        from pytest_evalmode.guards import Guard
        from pytest_evalmode.guards.config import GuardConfig

        return Guard(config=GuardConfig(custom_rules=user_hooks.collect_custom_rules(item.ihook)))
    prepare(item)
    if item.config.stash.get(RUNNING_ITEM, None) is item:
        _open(item.stash[GUARD], item)
    return item.stash[GUARD]


def begin(item: pytest.Item) -> None:
    """Open the guard at the start of a test's call, with the marks that fixtures may have added during setup."""
    if GUARD not in item.stash:
        prepare(item)
    guard = item.stash[GUARD]
    if item.stash[MARKS] != _marks(item):
        guard.window.policy = policy_and_rules_of(item)[0]
    pause_in_setup_methods(guard, item)
    _open(guard, item)


def failure_of(item: pytest.Item, outcome: Result[object]) -> BaseException | None:
    """Return the exception that ended the call of a test; None if it passed."""
    return outcome.exception if outcome.exception is not None else testcase_exception(item)


def guard_at_end(item: pytest.Item) -> Guard:
    """Return the guard of a test whose call has ended; an unguarded test gets one that was never opened."""
    if GUARD not in item.stash:
        prepare(item)
    return item.stash[GUARD]


def end(item: pytest.Item, outcome: Result[object]) -> None:
    """Close the guard at the end of a test's call; a test that passed but was not clean fails with HygieneViolation."""
    guard = item.stash[GUARD]
    own_failure = failure_of(item, outcome)
    settings = item.config.stash[SETTINGS]
    is_marked = item.get_closest_marker(settings.marker) is not None
    has_result = not isinstance(own_failure, NO_RESULT_EXCEPTIONS)  # without one, violations are not shown
    window = guard.window
    window.close(item.nodeid, finished=own_failure is None, needs_forward=is_marked, report_drift=has_result)
    if settings.suggest and not settings.is_guarded(item):
        add_suggestion(item, guard)
        return
    with window.safely():  # a block of its own: if the record fails, the test must still fail for its violations
        if window.was_opened or guard.violations or window.failures:
            add_record(item, guard, settings, finished=own_failure is None)
    with window.safely():
        if own_failure is not None:
            remove_plugin_frames(own_failure)
        failing = ItemReporter(item).select_failing(guard.violations)
        if own_failure is not None and guard.violations:
            add_note(own_failure, guard)
        elif failing:
            fail_or_warn(item, failing, outcome, warn=settings.mode == "warn")


def _open(guard: Guard, item: pytest.Item) -> None:
    guard.window.open()
    with guard.window.safely():
        for name, value, shared, defined_at in fixtures.values_passed_to(item):
            guard.window.watch_fixture_value(value, name, shared=shared, defined_at=defined_at)
        for name, model in user_hooks.collect_hook_models(item):
            guard.window.watch_fixture_value(model, name, shared=True)
