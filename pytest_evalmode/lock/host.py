"""The lock's interface to the rest of the package: settings, records of tests, fingerprints, sites and violations.

What needs torch or the rules is imported when it is called: most runs with `evalmode_lock` need neither at first.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from pytest_evalmode.lock.lock_file import LockError
from pytest_evalmode.session import fixtures, settings
from pytest_evalmode.session.stash import GUARD, LOCK_PROPERTY, remove_records

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextlib import AbstractContextManager
    from pathlib import Path
    from typing import Any

    import pytest
    from pluggy import Result
    from torch import nn

    from pytest_evalmode.observe.state.fingerprint import Fingerprint
    from pytest_evalmode.trace import LockChange, Site

    Close = Callable[[bool, Callable[[], AbstractContextManager[None]] | None], list[LockChange]]


def settings_of(config: pytest.Config) -> settings.Settings:
    return config.stash[settings.SETTINGS]


def is_whole_suite(config: pytest.Config) -> bool:
    """Return whether this run was asked to run every test."""
    return settings.is_whole_suite(config)


def attach_record(item: pytest.Item, record: str) -> None:
    """Attach the record of a test's lock to its report, in place of an earlier run's."""
    remove_records(item, LOCK_PROPERTY)
    item.user_properties.append((LOCK_PROPERTY, record))


def find_site(root: Path) -> Site | None:
    """Return the innermost line of the user on the stack."""
    from pytest_evalmode.observe.source.user_lines import UserLines

    return UserLines(root).find_line(sys._getframe())


def name_of(model: nn.Module, item: pytest.Item) -> str:
    """Return the path of a model in the test's fixtures, else its type."""
    from pytest_evalmode.observe.models.discovery import find_models
    from pytest_evalmode.observe.modules import type_name

    for name, value, *_ in fixtures.values_passed_to(item):
        for path, each in find_models(value, name):
            if each is model:
                return path
    return type_name(model)


def last_fingerprints(model: nn.Module, item: pytest.Item) -> Mapping[str, Fingerprint] | None:
    """Return the fingerprints of a model that the test's guard has read, if it cannot have changed since."""
    guard = item.stash.get(GUARD, None)
    return None if guard is None else guard.window.last_fingerprints(model)


def report_changes(item: pytest.Item, outcome: Result[Any], close: Close) -> None:
    """Pass the changes that `close` returns to the test's guard, which is created if needed.

    `close` is called with whether the test ran to its end, and the context manager for calls of the user's functions:
    None after violations, because a model in training mode would change further. A LockError that it raises is raised
    here, if the test did not fail on its own.
    """
    from pytest_evalmode.session.guarded_test import phases

    guard, own_failure, failure = phases.guard_at_end(item), phases.failure_of(item, outcome), None
    with guard.window.safely():
        try:
            guard.window.add_lock_changes(close(own_failure is None, None if guard.violations else guard.paused))
        except LockError as error:
            failure = error
    if failure is not None and own_failure is None:
        raise failure
