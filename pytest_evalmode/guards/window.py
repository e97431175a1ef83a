"""The life cycle of a guarded window: opened, split into parts with their own policies, closed."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from time import perf_counter
from weakref import WeakSet

from torch import nn

from pytest_evalmode import forks
from pytest_evalmode.errors import GuardError
from pytest_evalmode.guards.config import GuardConfig
from pytest_evalmode.guards.observers import Observers
from pytest_evalmode.guards.segments import Segments
from pytest_evalmode.observe.models import discovery
from pytest_evalmode.observe.observer_errors import ObserverErrors
from pytest_evalmode.observe.state.fingerprint import Fingerprint
from pytest_evalmode.policy import Policy, PolicyError, suggest_choices
from pytest_evalmode.rules import Violation, add_fixture
from pytest_evalmode.rules.exemptions import is_inside
from pytest_evalmode.trace import LockChange, Site, Trace, WatchedModel


class Window:
    """A guarded window: it starts and stops the observers and splits the window into segments, one per policy.

    Exceptions inside it are collected in `failures`, never raised into the code under test.
    """

    def __init__(self, policy: Policy, config: GuardConfig) -> None:
        self.policy = policy
        self.observers = Observers(config)
        self.segments = Segments(config.strict, config.custom_rules)
        self.is_open = False
        self.was_opened = False
        """Whether it was ever open; it was not for an unguarded test that only uses `evalmode_lock`."""
        self.is_closed = False
        self.is_listening = False
        self._finished = False
        self._seconds = 0.0
        self._config = config
        self._failures = ObserverErrors()
        self.fixtures: dict[str, tuple[str, Site]] = {}
        """The fixture that provided a model, as (name, line of its definition), by the model's name."""

    @property
    def failures(self) -> tuple[Exception, ...]:
        """Exceptions raised in the guard itself; if there are any, its violations may be incomplete."""
        return (*self._failures, *self.observers.errors)

    @property
    def seconds(self) -> float:
        """Time spent in the guard so far, at least."""
        return self._seconds + self.observers.forwards.seconds

    @property
    def combined_policy(self) -> Policy:
        """The exemptions of all parts of the window."""
        return self.segments.combined_policy(self.policy)

    @property
    def models(self) -> tuple[WatchedModel, ...]:
        return self.observers.watch.registry.watched_models()

    @property
    def trace(self) -> Trace:
        """The facts recorded so far, exempted or not."""
        return self.segments.full_trace()

    def watch_fixture_value(self, value: object, name: str, *, shared: bool, defined_at: Site | None = None) -> None:
        """Name the models in a fixture's value after it, and watch them from now on if the value outlives the test."""
        for path, model in discovery.find_models(value, name):
            self.observers.watch.registry.set_name(model, path)
            if defined_at is not None:
                self.fixtures.setdefault(path, (name, defined_at))
            if shared:
                self.observers.watch_shared(model, self._config.history)

    def open(self) -> None:
        self.is_open = self.was_opened = True
        _open_windows.add(self)
        with self.safely():
            self.observers.read_baselines(self._config.history)
        self._listen()

    def close(
        self, name: str = "", *, finished: bool = True, needs_forward: bool = False, report_drift: bool = True
    ) -> None:
        """Close the window and release every model.  A later window refers to it as `name`.

        If the code did not run to its end, unused exemptions and missing forwards do not count.  Drift is reported only
        once: not by a window whose violations will not be shown.
        """
        if self.is_listening:
            self._stop_listening()
        with self.safely():
            if self.is_open:
                self._add_final_facts(name, finished and needs_forward, report_drift)
        with self.safely():
            self.observers.watch.close()
        self.is_open, self.is_closed, self._finished = False, True, finished
        _open_windows.discard(self)

    def abandon(self) -> None:
        """Close the window in a forked child, where nothing is observed: its result is unknown there."""
        self.is_open = self.is_listening = False
        self.segments.clear()
        self._failures.append(GuardError("this guard was opened before the process was forked: result unknown"))

    def collect(self) -> None:
        """Add the facts recorded so far to the segments."""
        if self.is_listening:
            self._end_segment()

    def add_lock_changes(self, changes: Iterable[LockChange]) -> None:
        """Record differences from the evaluation lock, so that its rules report them."""
        self.segments.add(Trace(locks=tuple(changes)), self.policy)

    def last_fingerprints(self, model: nn.Module) -> dict[str, Fingerprint] | None:
        """Return the fingerprints of a model's tensors by name, as they were last read.

        They are valid if any later change is a violation.  If a later change may have been exempted, the result is
        None, and the caller must read the model itself.
        """
        policy = self.combined_policy
        if not self.is_listening or policy.mutable or "state-mutated" in policy.allow:
            return None
        with self.safely():
            self.observers.watch.add(model)
        return self.observers.watch.saved_fingerprints(model)

    def violations(self) -> list[Violation]:
        """Apply the rules to the facts so far.  After `close`, unused exemptions count as well."""
        violations = self.segments.violations(finished=self._finished)
        return [add_fixture(violation, self.fixtures) for violation in violations]

    @contextmanager
    def segment(self, policy: Policy | None) -> Iterator[None]:
        """Run a part of the window under another policy or, if that is None, unobserved."""
        if not self.is_open:
            yield
            return
        before = self.policy, self.is_listening
        self._switch(policy or self.policy, policy is not None and self.is_listening)
        try:
            yield
        finally:
            if self.is_open:  # the context may be left after the window has closed
                self._switch(*before)

    @contextmanager
    def pause(self, frozen: tuple[str, ...] = ()) -> Iterator[None]:
        """Run a part of the window unobserved, but for the modules that `frozen` names: they must not change."""
        with self.segment(None):
            if not (self.is_open and frozen):
                yield
                return
            frame = sys._getframe(3)  # after those of the two context managers
            with self.safely():
                self.observers.watch_frozen()
            try:
                yield
            finally:
                with self.safely():
                    self.segments.add(self.observers.collect_frozen(frozen, frame), self.policy)
            registry = self.observers.watch.registry
            names = set(registry.paths())
            unknown = [glob for glob in frozen if not any(is_inside(*name, [glob]) for name in names)]
            if unknown:
                parts = {model.path_of(path) for model in registry.models for path, _ in model.parts()} - {""}
                hint = suggest_choices(unknown[0], sorted(parts)[:_MAX_CHOICES])
                raise PolicyError(f"evalmode.paused(): frozen={unknown[0]!r} matches no module that ran ({hint})")

    @contextmanager
    def safely(self) -> Iterator[None]:
        """Run a part of the guard's own work: measure its time and collect its exceptions in `failures`."""
        start = perf_counter()
        try:
            yield
        except Exception as error:
            self._failures.append(error)
        finally:
            self._seconds += perf_counter() - start

    def _switch(self, policy: Policy, listen: bool) -> None:
        if self.is_listening:
            self._stop_listening()
        elif listen:
            with self.safely():
                self.observers.reread_baselines()
        self.policy = policy
        if listen:
            self._listen()

    def _listen(self) -> None:
        self.is_listening = True
        with self.safely():
            self.observers.start()

    def _stop_listening(self) -> None:
        self.is_listening = False
        with self.safely():
            self.observers.stop()
        self._end_segment()

    def _end_segment(self) -> None:
        with self.safely():
            has_globs = bool(self.policy.train or self.policy.mutable)
            self.segments.add(self.observers.collect_trace(with_names=has_globs), self.policy)

    def _add_final_facts(self, name: str, needs_forward: bool, report_drift: bool) -> None:
        """Add the facts that are known only when the window closes."""
        if not self._config.strict:  # only strict rules use them
            return
        self.segments.restored_settings = self.observers.restored_settings()
        trace = self.observers.final_trace(self._config.history, needs_forward=needs_forward, report_drift=report_drift)
        self.segments.add(trace, self.policy)
        if self._config.history is not None:
            self.observers.shared.save_to(self._config.history, name, include_drifted=report_drift)


_MAX_CHOICES = 10

_open_windows: WeakSet[Window] = WeakSet()


@forks.run_in_child
def _abandon_all() -> None:
    while _open_windows:
        _open_windows.pop().abandon()
