"""The plugin of the session that writes the lock files and reports unused entries.

It works from the test reports, which under xdist arrive in the controller.
"""

from __future__ import annotations

import json
from base64 import b64decode
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from pytest_evalmode.lock.lock_file import LockError, LockFile, StoredLock, lock_path, read_lock_file, write_lock_file
from pytest_evalmode.session.record.collected_tests import CollectedTests
from pytest_evalmode.session.settings import SETTINGS, is_whole_suite
from pytest_evalmode.session.stash import LOCK_PROPERTY

_MAX_NAMES = 10


class LockSession:
    """Gathers the lock records of a session's tests and updates the lock files; the last report of a test counts."""

    def __init__(self, config: pytest.Config, collected: CollectedTests) -> None:
        self._config = config
        self._collected = collected
        self._records: dict[str, str | None] = {}
        """The lock record of each test that passed; None if it did not use the lock."""
        self._not_passed: set[str] = set()
        """Tests that used the lock and did not pass."""
        self._lines: list[tuple[str, bool]] = []
        """Lines of the terminal summary, and whether each is an error."""

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        record = dict(report.user_properties).get(LOCK_PROPERTY)
        # Other plugins (JUnit) would write this megabyte of samples into their reports.
        report.user_properties = [each for each in report.user_properties if each[0] != LOCK_PROPERTY]
        if report.when != "call":
            return
        self._records.pop(report.nodeid, None)
        self._not_passed.discard(report.nodeid)
        if report.passed:
            self._records[report.nodeid] = None if record is None else str(record)
        elif record is not None:
            self._not_passed.add(report.nodeid)

    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        finished = exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED)
        whole_suite = finished and is_whole_suite(self._config)
        update = self._config.stash[SETTINGS].update_lock
        updated, unused = 0, []
        for name in sorted({nodeid.partition("::")[0] for nodeid in (*self._records, *self._not_passed)}):
            try:
                file = read_lock_file(lock_path(self._config.rootpath / name))
                entries = list(self._unused_entries(file, name, whole_suite))
                unused += [f"{name}::{test} {kind} {entry!r}" for test, kind, entry in entries]
                if update:
                    updated += self._update(file, name, entries if whole_suite else [])
            except (LockError, OSError) as error:
                self._lines.append((str(error), True))
                session.exitstatus = session.exitstatus or pytest.ExitCode.TESTS_FAILED
        if update:
            locks = f"the locks of {updated} tests" if updated != 1 else "the lock of 1 test"
            self._lines.append((f"updated {locks}", False))
            if self._not_passed:
                names = ", ".join(sorted(self._not_passed))
                self._lines.append((f"not updated because they did not pass: {names}", False))
        if unused:
            more = f" and {len(unused) - _MAX_NAMES} more" if len(unused) > _MAX_NAMES else ""
            state = "removed unused entries" if update and whole_suite else "unused entries"
            self._lines.append((f"{state}: {'; '.join(unused[:_MAX_NAMES])}{more}", False))
            if not (update and whole_suite):
                self._lines.append(("to remove them, run the whole suite with --evalmode-update-lock", False))

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self._lines:
            terminalreporter.section("evalmode lock")
        for line, is_error in self._lines:
            terminalreporter.write_line(line, red=is_error)

    def _unused_entries(self, file: LockFile, name: str, whole_suite: bool) -> Iterator[tuple[str, str, str]]:
        """Yield the test, kind and name of each entry whose test passed without using it, or no longer exists."""
        for test, lock in file.tests.items():
            nodeid = f"{name}::{test}"
            gone = whole_suite and self._collected.is_gone(nodeid)
            if not gone and nodeid not in self._records:
                continue
            record = self._records.get(nodeid)
            used = {tuple(each) for each in json.loads(record)["used"]} if record else set()
            for kind, entries in lock.entries.items():
                yield from ((test, kind, entry) for entry in entries if (kind, entry) not in used)

    def _update(self, file: LockFile, name: str, unused: list[tuple[str, str, str]]) -> int:
        """Write the new entries of a file's tests, keeping all others; return how many tests were updated."""
        tests = dict(file.tests)
        samples: dict[str, bytes | None] = {}
        for nodeid, record in self._records.items():
            path, _, test = nodeid.partition("::")
            if path != name or record is None:
                continue
            content = json.loads(record)
            if not content.get("entries"):
                continue
            stored = tests.get(test, StoredLock())
            kinds = {*stored.entries, *content["entries"]}
            entries = {kind: {**stored.entries.get(kind, {}), **content["entries"].get(kind, {})} for kind in kinds}
            tests[test] = replace(stored, entries=entries)
            samples[test] = b64decode(content["samples"]) if content["samples"] else None
        for test, kind, entry in unused:
            lock = tests[test]
            remaining = {name: value for name, value in lock.entries[kind].items() if name != entry}
            tests[test] = replace(lock, entries={**lock.entries, kind: remaining})
        tests = {test: lock for test, lock in tests.items() if any(lock.entries.values())}
        new = LockFile(file.path, tests)
        if new != file or samples:
            write_lock_file(new, {test: data for test, data in samples.items() if test in tests})
        return len(samples)
