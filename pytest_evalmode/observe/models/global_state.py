"""Torch's global state (default dtype, deterministic mode, thread count, ...) from test to test."""

from __future__ import annotations

from dataclasses import dataclass, field

from pytest_evalmode.observe.state.flag_snapshots import Flags, find_leaks, read_global_flags
from pytest_evalmode.trace import Drift, Leak


@dataclass(slots=True)
class GlobalStateHistory:
    """The history of torch's global state in one session.

    A value that a fixture of wider than function scope has set is ignored for as long as the fixture lives.
    """

    session_start: Flags = field(default_factory=read_global_flags)
    """The flags when the session began."""
    _drift: Drift | None = None
    _test_start: Flags = field(default_factory=dict)
    """The flags when the current test began."""
    _last_guarded: Flags | None = None
    """The flags that the last guarded test left."""
    _last_seen_by: str = ""
    _between: list[str] = field(default_factory=list)
    _changed_by: dict[str, str] = field(default_factory=dict)
    """The test during which a flag changed since, by the name of the flag."""
    _fixtures: dict[int, tuple[Leak, ...]] = field(default_factory=dict)
    """What living fixtures have set, in the order of their setup."""

    def begin_test(self) -> None:
        """Read the flags before the setup of a test, and compare them with those after the last guarded test."""
        self._test_start = self._read()
        self._drift = self._find_drift(self._test_start)

    def pop_drift(self) -> tuple[Drift, ...]:
        """Return the drift that was noticed in the current test, if any.  It is returned once."""
        drift, self._drift = self._drift, None
        return () if drift is None else (drift,)

    def end_test(self, test: str, *, guarded: bool) -> None:
        """Read the flags after the teardown of a test."""
        now = self._read()
        if guarded and self._drift is None:
            self._last_guarded, self._last_seen_by = now, test
            self._between.clear()
            self._changed_by.clear()
        elif self._last_guarded is not None:
            self._between.append(test)
            self._changed_by.update((leak.name, test) for leak in find_leaks(None, self._test_start, now))

    def fixture_began(self, key: int, before: Flags) -> None:
        """Store the flags that a fixture set in its setup, if its scope is wider than a function."""
        self._fixtures[key] = tuple(find_leaks(None, before, read_global_flags()))

    def fixture_ended(self, key: int) -> None:
        self._fixtures.pop(key, None)

    def _read(self) -> Flags:
        flags = read_global_flags()
        for leaks in reversed(self._fixtures.values()):
            flags.update((leak.name, leak.before) for leak in leaks if flags[leak.name] == leak.after)
        return flags

    def _find_drift(self, now: Flags) -> Drift | None:
        leaks = find_leaks(None, self._last_guarded, now) if self._last_guarded is not None else ()
        # A flag that has its value of the session's start again was restored.
        changes = tuple(leak for leak in leaks if leak.after != self.session_start[leak.name])
        if not changes:
            return None
        changed_by = dict.fromkeys(self._changed_by[leak.name] for leak in changes if leak.name in self._changed_by)
        return Drift(None, changes, self._last_seen_by, tuple(reversed(self._between)), tuple(changed_by))
