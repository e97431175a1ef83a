"""The plugin that starts the one for the evaluation lock, in a session that uses the lock."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pytest_evalmode.session.record.collected_tests import CollectedTests
from pytest_evalmode.session.stash import LOCK_PROPERTY

if TYPE_CHECKING:
    from pytest_evalmode.lock.session_locks import LockSession


class LockStarter:
    """Starts `LockSession` at the first test that used the lock, or at the end if there are lock files.

    Most sessions have neither, and importing the lock takes longer than all of the plugin.
    """

    def __init__(self, config: pytest.Config, collected: CollectedTests) -> None:
        self._config = config
        self._collected = collected
        self._reports: list[pytest.TestReport] = []

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call":
            self._reports.append(report)
        if LOCK_PROPERTY in dict(report.user_properties):
            self.start()

    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        files = {report.nodeid.partition("::")[0] for report in self._reports}
        folders = {(self._config.rootpath / file).parent for file in files}
        if any((folder / "__evalmode__").is_dir() for folder in folders):
            self.start().pytest_sessionfinish(session, exitstatus)  # too late for pytest to call it

    def start(self) -> LockSession:
        """Replace this plugin by `LockSession`, and pass it the reports so far."""
        from pytest_evalmode.lock.session_locks import LockSession

        locks = LockSession(self._config, self._collected.is_gone)
        for report in self._reports:
            locks.pytest_runtest_logreport(report)
        self._config.pluginmanager.unregister(self)
        self._config.pluginmanager.register(locks, "evalmode-locks")
        return locks
