"""The window of one test: its guard is made at set-up, open for the call, and heard at the end."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pytest_evalmode.errors import GuardError
from pytest_evalmode.rules import RuleError
from pytest_evalmode.session import fixtures, user_hooks
from pytest_evalmode.session.guarded_test.guard_setup import failing_violations, new_guard, policy_and_rules_of
from pytest_evalmode.session.guarded_test.outcome import (
    NO_RESULT_EXCEPTIONS,
    add_note,
    fail_or_warn,
    remove_plugin_frames,
)
from pytest_evalmode.session.guarded_test.unittest_cases import pause_in_setup_methods, testcase_exception
from pytest_evalmode.session.guarded_test.user_properties import add_record, add_suggestion, byte_counts
from pytest_evalmode.session.settings import SETTINGS
from pytest_evalmode.session.stash import BYTES_AT_START, GUARD, KEEP_ALIVE, MARKS, MODELS, RUNNING_ITEM

if TYPE_CHECKING:
    from pluggy import Result

    from pytest_evalmode.guards import Guard


def prepare(item: pytest.Item) -> None:
    """Give a test its guard, a new one for each rerun.  Fails the test if it asks for one that makes no sense."""
    policy, own = policy_and_rules_of(item)
    item.stash[GUARD] = new_guard(item, policy, own)
    item.stash[MARKS] = _marks(item)


def guard_of(item: pytest.Item) -> Guard:
    """The guard of a test that asks for it; one that never opens where guarding is off."""
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
    """The call of a guarded test begins; what marked it as it was set up counts."""
    if GUARD not in item.stash:
        prepare(item)
    guard = item.stash[GUARD]
    if item.stash[MARKS] != _marks(item):
        guard.set_policy(policy_and_rules_of(item)[0])
    pause_in_setup_methods(guard, item)
    _open(guard, item)


def failure_of(item: pytest.Item, outcome: Result[object]) -> BaseException | None:
    """What the call of a test ended with, if it did not pass."""
    return outcome.exception if outcome.exception is not None else testcase_exception(item)


def guard_at_end(item: pytest.Item) -> Guard:
    """The guard of a test whose call has ended; that of a test without one never opened."""
    if GUARD not in item.stash:
        prepare(item)
    return item.stash[GUARD]


def end(item: pytest.Item, outcome: Result[object]) -> None:
    """The call of a test has ended; it fails with HygieneViolation if it passed without having been clean."""
    guard = item.stash[GUARD]
    own = failure_of(item, outcome)
    settings = item.config.stash[SETTINGS]
    marked = item.get_closest_marker(settings.marker) is not None
    withdrawn = isinstance(own, NO_RESULT_EXCEPTIONS)
    if KEEP_ALIVE in item.stash:
        item.stash[KEEP_ALIVE].stop()
        item.stash[MODELS] = guard.living_models
    guard.close(name=item.nodeid, finished=own is None, needs_forward=marked, report_drift=not withdrawn)
    if settings.suggest and not settings.is_guarded(item):
        add_suggestion(item, guard)
        return
    with guard.safely():
        if guard.was_opened or guard.violations or guard.failures:
            add_record(item, guard, settings, finished=own is None)
    with guard.safely():
        if own is not None:
            remove_plugin_frames(own)
        fatal = failing_violations(item, guard.violations)
        if own is not None and guard.violations:
            add_note(own, guard)
        elif fatal:
            fail_or_warn(item, fatal, outcome, warn=settings.mode == "warn")


def report_guard_error(item: pytest.Item, outcome: Result[object]) -> None:
    """Let a test err whose guard failed, whatever its own result was; in any case let go of the guard."""
    guard = item.stash[GUARD]
    del item.stash[GUARD]
    if not guard.failures or item.config.stash[SETTINGS].suggest:
        return
    from pytest_evalmode.guards import guard_error

    first = guard.failures[0]
    error = (
        GuardError(str(first)) if isinstance(first, (user_hooks.HookError, RuleError)) else guard_error(guard.failures)
    )
    own = outcome.exception
    if isinstance(own, (pytest.exit.Exception, KeyboardInterrupt)):
        own.add_note(f"\n{error}")
    elif isinstance(own, Exception | pytest.fail.Exception):
        outcome.force_exception(
            BaseExceptionGroup("the teardown of the test failed, and so did its guard", [own, error])
        )
    else:
        outcome.force_exception(error)


def override_xfail(error: BaseException, report: pytest.TestReport) -> None:
    """An expected failure excuses the test, in its teardown too; not the guard."""
    if isinstance(error, GuardError) or (isinstance(error, BaseExceptionGroup) and error.subgroup(GuardError)):
        report.outcome = "failed"
        report.__dict__.pop("wasxfail", None)


def _marks(item: pytest.Item) -> list[pytest.Mark]:
    return list(item.iter_markers(item.config.stash[SETTINGS].marker))


def _open(guard: Guard, item: pytest.Item) -> None:
    item.stash[BYTES_AT_START] = byte_counts()
    if item.config.getoption("usepdb", False):
        from pytest_evalmode.observe.forwards.keep_alive import KeepAlive

        item.stash[KEEP_ALIVE] = KeepAlive()
    guard.open()
    with guard.safely():
        for name, value, shared, at in fixtures.values_passed_to(item):
            guard.watch_fixture_value(value, name, shared=shared, defined_at=at)
        for name, model in user_hooks.collect_hook_models(item):
            guard.watch_fixture_value(model, name, shared=True)
