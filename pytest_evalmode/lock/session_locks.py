"""Writes the lock files, and tells of entries that nothing uses, where the reports of all processes arrive."""

from __future__ import annotations

import json
from base64 import b64decode
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from pytest_evalmode.lock.lock_file import LockError, LockFile, StoredLock, lock_path, read_lock_file, write_lock_file
from pytest_evalmode.session.settings import SETTINGS, is_whole_suite
from pytest_evalmode.session.stash import LOCK_PROPERTY

_COLLECTED = "evalmode_collected"
_MOST_NAMES = 10


class CollectedTests:
    """Keeps which tests there are, those that are deselected included; a worker tells its controller."""

    def __init__(self) -> None:
        self.tests: set[str] = set()
        self.uncollected: set[str] = set()
        """Files, or folders, whose tests are not known: they failed, or skipped themselves."""

    def pytest_itemcollected(self, item: pytest.Item) -> None:
        self.tests.add(item.nodeid)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if not report.passed:
            self.uncollected.add(report.nodeid)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        output = getattr(session.config, "workeroutput", None)
        if output is not None:
            output[_COLLECTED] = sorted(self.tests)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        self.tests.update(getattr(node, "workeroutput", {}).get(_COLLECTED, ()))

    def is_gone(self, nodeid: str) -> bool:
        """Whether there is no such test any more, in a run of the whole suite."""
        return (
            bool(self.tests)
            and nodeid not in self.tests
            and not any(nodeid.startswith(each) for each in self.uncollected)
        )


class LockSession:
    """What the tests of a run have shown of what is locked; the last report of a test counts."""

    def __init__(self, config: pytest.Config, collected: CollectedTests) -> None:
        self._config = config
        self._collected = collected
        self._shown: dict[str, str | None] = {}
        """What each test that passed has shown, if it asked for the lock."""
        self._failed: set[str] = set()
        """Tests that asked for it and did not pass."""
        self._lines: list[tuple[str, bool]] = []

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        shown = dict(report.user_properties).get(LOCK_PROPERTY)
        # Nobody else is to write a megabyte of samples into a report of their own.
        report.user_properties = [entry for entry in report.user_properties if entry[0] != LOCK_PROPERTY]
        if report.when != "call":
            return
        self._shown.pop(report.nodeid, None)
        self._failed.discard(report.nodeid)
        if report.passed:
            self._shown[report.nodeid] = None if shown is None else str(shown)
        elif shown is not None:
            self._failed.add(report.nodeid)

    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        ended = exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED)
        whole = ended and is_whole_suite(self._config)
        update = self._config.stash[SETTINGS].update_lock
        locked, unused = 0, []
        for name in sorted({nodeid.partition("::")[0] for nodeid in (*self._shown, *self._failed)}):
            try:
                file = read_lock_file(lock_path(self._config.rootpath / name))
                found = list(self._unused(file, name, whole))
                unused += [self._words(file, name, *entry) for entry in found]
                if update:
                    locked += self._update(file, name, found if whole else [])
            except (LockError, OSError) as error:
                self._lines.append((str(error), True))
                session.exitstatus = session.exitstatus or pytest.ExitCode.TESTS_FAILED
        if update:
            self._lines.append((f"locked what {locked} tests use" if locked != 1 else "locked what 1 test uses", False))
            if self._failed:
                self._lines.append((f"not locked, for they did not pass: {', '.join(sorted(self._failed))}", False))
        if unused:
            more = f" and {len(unused) - _MOST_NAMES} more" if len(unused) > _MOST_NAMES else ""
            verb = "removed" if update and whole else "unused"
            self._lines.append((f"{verb}: {'; '.join(unused[:_MOST_NAMES])}{more}", False))
            if not (update and whole):
                self._lines.append(("to remove them, run the whole suite with --evalmode-update-lock", False))

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self._lines:
            terminalreporter.section("evalmode lock")
        for line, is_error in self._lines:
            terminalreporter.write_line(line, red=is_error)

    def _unused(self, file: LockFile, name: str, whole: bool) -> Iterator[tuple[str, str, str]]:
        """Entries of a file that a test which passed did not use, or whose test is gone: test, kind and name."""
        for test, lock in file.tests.items():
            nodeid = f"{name}::{test}"
            gone = whole and self._collected.is_gone(nodeid)
            if not gone and nodeid not in self._shown:
                continue
            shown = self._shown.get(nodeid)
            used = {tuple(each) for each in json.loads(shown)["used"]} if shown else set()
            for kind, entries in lock.entries.items():
                yield from ((test, kind, entry) for entry in entries if (kind, entry) not in used)

    def _words(self, file: LockFile, name: str, test: str, kind: str, entry: str) -> str:
        return f"{name}::{test} {kind} {entry!r}"

    def _update(self, file: LockFile, name: str, unused: list[tuple[str, str, str]]) -> int:
        """Take over what the tests of a file have shown; what others have is left as it is."""
        tests = dict(file.tests)
        samples: dict[str, bytes | None] = {}
        for nodeid, shown in self._shown.items():
            path, _, test = nodeid.partition("::")
            if path != name or shown is None:
                continue
            found = json.loads(shown)
            if not found.get("entries"):
                continue
            before = tests.get(test, StoredLock())
            kinds = {*before.entries, *found["entries"]}
            entries = {kind: {**before.entries.get(kind, {}), **found["entries"].get(kind, {})} for kind in kinds}
            tests[test] = replace(before, entries=entries)
            samples[test] = b64decode(found["samples"]) if found["samples"] else None
        for test, kind, entry in unused:
            lock = tests[test]
            kept = {name: value for name, value in lock.entries[kind].items() if name != entry}
            tests[test] = replace(lock, entries={**lock.entries, kind: kept})
        left = {test: lock for test, lock in tests.items() if any(lock.entries.values())}
        new = LockFile(file.path, left)
        if new != file or samples:
            write_lock_file(new, {test: data for test, data in samples.items() if test in left})
        return len(samples)
