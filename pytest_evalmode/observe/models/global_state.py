"""Torch's global state from test to test -> GlobalDrift."""

from __future__ import annotations

from dataclasses import dataclass, field

from pytest_evalmode.observe.state import flag_snapshots
from pytest_evalmode.observe.state.flag_snapshots import Flags
from pytest_evalmode.trace import GlobalDrift, Leak


@dataclass(slots=True)
class GlobalStateHistory:
    """What a session remembers of torch's global state, but for what a living fixture of wide scope has set."""

    session_start: Flags = field(default_factory=flag_snapshots.read_global_flags)
    """As the session began."""
    _drift: GlobalDrift | None = None
    _start: Flags = field(default_factory=dict)
    """As the test began that runs."""
    _left: Flags | None = None
    """As the last guarded test left it."""
    _seen_by: str = ""
    _between: list[str] = field(default_factory=list)
    _changed: dict[str, str] = field(default_factory=dict)
    """What has changed since, by name, and the test in which it did."""
    _fixtures: dict[int, tuple[Leak, ...]] = field(default_factory=dict)
    """What living fixtures have set, in the order of their set-up."""

    def begin_test(self) -> None:
        """A test begins, its set-up included."""
        self._start = self._now()
        self._drift = self._since_last(self._start)

    def pop_drift(self) -> tuple[GlobalDrift, ...]:
        """What the test that runs has found changed, if it did: it is told once."""
        drift, self._drift = self._drift, None
        return () if drift is None else (drift,)

    def end_test(self, test: str, *, guarded: bool) -> None:
        """A test has ended, its teardown included."""
        now = self._now()
        if guarded and self._drift is None:
            self._left, self._seen_by = now, test
            self._between.clear()
            self._changed.clear()
        elif self._left is not None:
            self._between.append(test)
            self._changed.update((leak.name, test) for leak in flag_snapshots.find_leaks(None, self._start, now))

    def fixture_began(self, key: int, before: Flags) -> None:
        """A fixture that outlives its test has been set up."""
        self._fixtures[key] = tuple(flag_snapshots.find_leaks(None, before, flag_snapshots.read_global_flags()))

    def fixture_ended(self, key: int) -> None:
        self._fixtures.pop(key, None)

    def _now(self) -> Flags:
        flags = flag_snapshots.read_global_flags()
        for settings in reversed(self._fixtures.values()):
            flags.update((leak.name, leak.before) for leak in settings if flags[leak.name] == leak.after)
        return flags

    def _since_last(self, now: Flags) -> GlobalDrift | None:
        found = flag_snapshots.find_leaks(None, self._left, now) if self._left is not None else ()
        changes = tuple(leak for leak in found if leak.after != self.session_start[leak.name])  # else it was put back
        if not changes:
            return None
        by = dict.fromkeys(self._changed[leak.name] for leak in changes if leak.name in self._changed)
        return GlobalDrift(changes, self._seen_by, tuple(reversed(self._between)), tuple(by))
