"""The end of a session with the lock: writes the lock files and reports unused entries."""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest

from pytest_evalmode.lock import host
from pytest_evalmode.lock.lock_file import FOLDER, MODELS, LockError, escape, lock_path, read_lock
from pytest_evalmode.lock.lock_folder import NewLock, exclusive, find_ignored, remove_leftovers, write_lock

_MAX_NAMES = 10
_MAX_LINES = 20


class LockSession:
    """Updates the lock files of a session's tests, and adds its results to the terminal summary.

    Args:
        config: The configuration of the run.
        is_gone: Returns whether the test with a node id no longer exists.
        records: The lock record of each test that passed; None if it did not use the lock.
        models: The records of models by digest, which many tests may share.
        not_passed: Tests that used the lock and did not pass.
    """

    def __init__(
        self,
        config: pytest.Config,
        is_gone: Callable[[str], bool],
        records: Mapping[str, dict[str, Any] | None],
        models: Mapping[str, Any],
        not_passed: set[str],
    ) -> None:
        self._config = config
        self._is_gone = is_gone
        self._records = records
        self._models = models
        self._not_passed = not_passed
        self._failed: set[str] = set()
        """Tests whose lock could not be written."""
        self._errors: dict[str, None] = {}
        self._lines: list[tuple[str, bool]] = []
        """Lines of the terminal summary, and whether each is an error."""

    def finish(self, session: pytest.Session, exitstatus: int) -> None:
        """Update the lock files and find unused entries; an error fails the run."""
        finished = exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED)
        whole_suite = finished and host.is_whole_suite(self._config)
        update = host.settings_of(self._config).update_lock
        folders: dict[Path, dict[Path, str]] = {}
        for nodeid in (*self._records, *self._not_passed):
            path = self._path(nodeid)
            folders.setdefault(path.parents[1], {})[path] = nodeid
        unused: list[str] = []
        for folder, nodeids in sorted(folders.items()):
            new = {path: nodeid for path, nodeid in nodeids.items() if update and self._records.get(nodeid)}
            lock = exclusive(folder) if new or (update and folder.exists()) else nullcontext()
            with self._reporting_errors(set(new.values())), lock:
                stale: dict[Path, set[tuple[str, str]]] = {}
                for path, nodeid, entries in self._find_unused(folder, nodeids, whole_suite):
                    stale[path] = entries
                    unused += [f"{nodeid} {kind} {name!r}" for kind, name in entries]
                if update:
                    self._update(new, stale if whole_suite else {})
                    if folder.exists():
                        remove_leftovers(folder)
                        self._warn_of_ignored(find_ignored(folder))
        if self._errors:
            session.exitstatus = session.exitstatus or pytest.ExitCode.TESTS_FAILED
            self._add_lines(list(self._errors), "more errors", is_error=True)
        if update:
            self._summarize_update()
        if unused:
            more = f" and {len(unused) - _MAX_NAMES} more" if len(unused) > _MAX_NAMES else ""
            state = "removed unused entries" if update and whole_suite else "unused entries"
            self._lines.append((f"{state}: {'; '.join(unused[:_MAX_NAMES])}{more}", False))
            if not (update and whole_suite):
                self._lines.append(("to remove them, run the whole suite with --evalmode-update-lock", False))

    def _add_lines(self, lines: list[str], more: str, *, is_error: bool = False) -> None:
        self._lines += [(line, is_error) for line in lines[:_MAX_LINES]]
        if len(lines) > _MAX_LINES:
            self._lines.append((f"and {len(lines) - _MAX_LINES} {more}", is_error))

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self._lines:
            terminalreporter.section("evalmode lock")
        for line, is_error in self._lines:
            terminalreporter.write_line(escape(line), red=is_error)

    def _path(self, nodeid: str) -> Path:
        name, _, test = nodeid.partition("::")
        return lock_path(self._config.rootpath / name, test)

    def _find_unused(
        self, folder: Path, nodeids: dict[Path, str], whole_suite: bool
    ) -> Iterator[tuple[Path, str, set[tuple[str, str]]]]:
        """Yield the entries of each lock file that its test passed without, or whose test no longer exists."""
        passed = {path: self._records[nodeid] for path, nodeid in nodeids.items() if nodeid in self._records}
        for path in sorted(folder.glob("*/*.lock.json")) if whole_suite else sorted(passed):
            if path.parent.name == MODELS or path.parent.is_symlink():
                continue
            try:
                stored = read_lock(path)
            except LockError as error:
                if path not in passed:  # its own test reports it, or the update replaces it
                    self._lines.append((str(error), True))
                continue
            if stored is None:
                continue
            file = (folder.parent / f"{path.parent.name}.py").relative_to(self._config.rootpath).as_posix()
            nodeid, record = f"{file}::{stored.test}", passed.get(path)
            unused = {(kind, name) for kind, entries in stored.entries.items() for name in entries}
            unused -= {(kind, name) for kind, name in record["used"]} if record else set()
            if unused and (path in passed or self._is_gone(nodeid)):
                yield path, nodeid, unused

    @contextmanager
    def _reporting_errors(self, nodeids: set[str]) -> Iterator[None]:
        """Report an error in the terminal summary; tests whose locks it concerns are then not updated."""
        try:
            yield
        except (LockError, OSError) as error:
            where = f"{next(iter(nodeids))}: not updated: " if len(nodeids) == 1 else ""
            self._errors[f"{where}{error}"] = None
            self._failed |= nodeids

    def _update(self, new: dict[Path, str], stale: dict[Path, set[tuple[str, str]]]) -> None:
        """Write the new entries of tests, and remove the stale ones."""
        for path, nodeid in new.items():
            record = self._records[nodeid] or {}
            keys = {entry["record"] for entry in record["entries"].get("model", {}).values()}
            found = {key: self._models[key] for key in keys if key in self._models}
            models = {key: (entry, _to_bytes(data)) for key, (entry, data) in found.items()}
            lock = NewLock(nodeid.partition("::")[2], record["entries"], _to_bytes(record["samples"]), models)
            with self._reporting_errors({nodeid}):
                write_lock(path, lock, stale.get(path, ()))
        for path in stale.keys() - new.keys():
            write_lock(path, NewLock("", {}), stale[path])

    def _summarize_update(self) -> None:
        """Say which entries of which tests are new or changed, and which tests were not updated."""
        used = {nodeid: each for nodeid, each in sorted(self._records.items()) if each and each.get("entries")}
        changes = {nodeid: each["changes"] for nodeid, each in used.items() if nodeid not in self._failed}
        self._add_lines(
            [f"{nodeid}: {'; '.join(each)}" for nodeid, each in changes.items() if each], "more tests changed"
        )
        locks = f"the locks of {len(changes)} tests" if len(changes) != 1 else "the lock of 1 test"
        self._lines.append((f"updated {locks}", False))
        if self._not_passed:
            names = ", ".join(sorted(self._not_passed))
            self._lines.append((f"not updated because they did not pass: {names}", False))

    def _warn_of_ignored(self, ignored: list[str]) -> None:
        if ignored:
            more = f" and {len(ignored) - 1} more" if len(ignored) > 1 else ""
            hint = f"a commit would miss them, so add !**/{FOLDER}/** to .gitignore"
            self._lines.append((f"ignored by git: {ignored[0]}{more}; {hint}", True))


def _to_bytes(text: str | None) -> bytes | None:
    return None if text is None else b64decode(text)
