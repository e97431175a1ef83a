"""A window: when it is open and when it listens, and under which policy each part of it ran."""

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
    """Has the observers begin and end together, in segments that may each have a policy of their own.

    What goes wrong in it is kept in `failures`, never raised into the code that is watched.
    """

    def __init__(self, policy: Policy, config: GuardConfig) -> None:
        self.policy = policy
        self.observers = Observers(config)
        self.segments = Segments(config.strict, config.custom_rules)
        self.is_open = False
        self.was_opened = False
        """Whether it was ever open."""
        self.is_listening = False
        self.seconds = 0.0
        """What it has cost so far, but for the forwards."""
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
        """End it, and let go of every model."""
        if self.is_listening:
            self._stop_listening()
        with self.safely():
            if self.is_open:
                self._end(name, needs_forward, report_drift)
        with self.safely():
            self.observers.watch.close()
        self.is_open = False

    def collect(self) -> None:
        """Take what was seen so far."""
        if self.is_listening:
            self._end_segment()

    @contextmanager
    def segment(self, policy: Policy | None) -> Iterator[None]:
        """A part of the window under another policy, or, with none, unobserved."""
        if not self.is_open:
            yield
            return
        before = self.policy, self.is_listening
        self._switch(policy or self.policy, policy is not None and self.is_listening)
        try:
            yield
        finally:
            if self.is_open:  # a context that was entered inside may be left after the end
                self._switch(*before)

    @contextmanager
    def safely(self) -> Iterator[None]:
        """Time a piece of the guard's own work, and keep what goes wrong in it."""
        began = perf_counter()
        try:
            yield
        except Exception as error:
            self._failures.append(error)
        finally:
            self.seconds += perf_counter() - began

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
            named = bool(self.policy.train or self.policy.mutable)
            self.segments.add(self.observers.collect_trace(with_names=named), self.policy)
            self.segments.add_leaks(self.observers.collect_leaks(), self.policy)

    def _end(self, name: str, needs_forward: bool, heard: bool) -> None:
        """What can only be told once all is over."""
        if not self._strict:
            return
        self.segments.finish_leaks(self.observers.restored_settings())
        ended = self.observers.final_trace(self._history, needs_forward=needs_forward, report_drift=heard)
        self.segments.append(ended, self.policy)
        if self._history is not None:
            self.observers.shared.save_to(self._history, name, include_drifted=heard)
