"""The plugin that gathers the lock records of tests, and runs the evaluation lock in a session that uses it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pytest_evalmode.session.record.collected_tests import CollectedTests
from pytest_evalmode.session.settings import SETTINGS
from pytest_evalmode.session.stash import LOCK_PROPERTY


class LockRecords:
    """Gathers the lock records of a session's tests; the last report of a test counts.

    `LockSession` is imported at the end, if a test used the lock or there are lock files.  Most sessions have neither,
    and importing the lock takes longer than all of the plugin.
    """

    def __init__(self, config: pytest.Config, collected: CollectedTests) -> None:
        self._config = config
        self._collected = collected
        self._records: dict[str, dict[str, Any] | None] = {}
        self._models: dict[str, Any] = {}
        self._not_passed: set[str] = set()

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        text = dict(report.user_properties).get(LOCK_PROPERTY)
        if text is not None:  # JUnit would write this megabyte of samples
            report.user_properties = [each for each in report.user_properties if each[0] != LOCK_PROPERTY]
        if report.when != "call":
            return
        self._records.pop(report.nodeid, None)
        self._not_passed.discard(report.nodeid)
        if report.passed:
            record = self._records[report.nodeid] = None if text is None else json.loads(str(text))
            self._models |= record.pop("models", {}) if record is not None else {}
        elif text is not None:
            self._not_passed.add(report.nodeid)

    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        folders = {(self._config.rootpath / nodeid.partition("::")[0]).parent for nodeid in self._records}
        is_used = self._config.stash[SETTINGS].update_lock or self._not_passed or any(self._records.values())
        if is_used or any((folder / "__evalmode__").is_dir() for folder in folders):
            from pytest_evalmode.lock.session_locks import LockSession

            locks = LockSession(self._config, self._collected.is_gone, self._records, self._models, self._not_passed)
            locks.finish(session, exitstatus)
            self._config.pluginmanager.register(locks, "evalmode-locks")  # for the terminal summary
