"""The life cycle of a guarded window: opened, split into parts with their own policies, closed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter

from pytest_evalmode.guards.config import GuardConfig
from pytest_evalmode.guards.observers import Observers
from pytest_evalmode.guards.segments import Segments
from pytest_evalmode.observe.observer_errors import ObserverErrors
from pytest_evalmode.policy import Policy


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
        self.is_listening = False
        self.seconds = 0.0
        """Time spent so far, without that of observing forwards."""
        self._strict = config.strict
        self._history = config.history
        self._failures = ObserverErrors()

    @property
    def failures(self) -> tuple[Exception, ...]:
        return (*self._failures, *self.observers.failures)

    def open(self) -> None:
        self.is_open = self.was_opened = True
        with self.safely():
            self.observers.read_baselines(self._history)
        self._listen()

    def close(self, name: str, *, needs_forward: bool, report_drift: bool) -> None:
        """Close the window and release every model."""
        if self.is_listening:
            self._stop_listening()
        with self.safely():
            if self.is_open:
                self._add_final_facts(name, needs_forward, report_drift)
        with self.safely():
            self.observers.watch.close()
        self.is_open = False

    def collect(self) -> None:
        """Add the facts recorded so far to the segments."""
        if self.is_listening:
            self._end_segment()

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
    def safely(self) -> Iterator[None]:
        """Run a part of the guard's own work: measure its time and collect its exceptions in `failures`."""
        start = perf_counter()
        try:
            yield
        except Exception as error:
            self._failures.append(error)
        finally:
            self.seconds += perf_counter() - start

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
            self.segments.add_leaks(self.observers.collect_leaks(), self.policy)

    def _add_final_facts(self, name: str, needs_forward: bool, report_drift: bool) -> None:
        """Add the facts that are known only when the window closes."""
        if not self._strict:  # only strict rules use them
            return
        self.segments.finish_leaks(self.observers.restored_settings())
        trace = self.observers.final_trace(self._history, needs_forward=needs_forward, report_drift=report_drift)
        self.segments.append(trace, self.policy)
        if self._history is not None:
            self.observers.shared.save_to(self._history, name, include_drifted=report_drift)
