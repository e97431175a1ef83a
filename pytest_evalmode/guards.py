"""The guard of one window: opens the observers, closes them, and asks the rules."""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Self, TypeVar

from torch import nn

from pytest_evalmode.errors import GuardError, HygieneError
from pytest_evalmode.observe.failures import Failures
from pytest_evalmode.observe.models import find
from pytest_evalmode.observe.models.history import History
from pytest_evalmode.observe.state.fingerprint import Fingerprint
from pytest_evalmode.observers import Observers
from pytest_evalmode.policy import Globs, Policy, read_policy
from pytest_evalmode.rules import RULE_NAMES, Rule, Violation, handed_by
from pytest_evalmode.segments import Segments
from pytest_evalmode.trace import LockChange, Site, Trace, WatchedModel

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True, slots=True)
class Terms:
    """On what terms a window is guarded, beside the policy that its test declares."""

    strict: bool = False
    rules: tuple[Rule, ...] = ()
    """A team's own."""
    root: Path | None = None
    """Where user code lies; anywhere if not given."""
    tests: tuple[str, ...] = ()
    """Patterns of the files of tests, whose lines are told before those of other code."""
    history: History | None = None
    """What shared models were before, where that is remembered."""
    verdict: Callable[[Sequence[Violation]], BaseException] = HygieneError
    enforced: bool = True
    """Whether `check()` raises; it does not where a violation is only to be warned of, at the end."""
    tell: Callable[[list[Violation]], list[Violation]] = list
    """Which of the violations are to be told."""
    fails: Callable[[list[Violation]], list[Violation]] = list
    """Which of these fail: those that are not known."""
    shown: bool = False
    """Whether what the models are made of, and what happened when, is to be shown."""


_NO_POLICY = Policy()
_NO_TERMS = Terms()


class Guard:
    """Watches what runs between `open` and `close`, in segments that may each have a policy of their own.

    What goes wrong in it is kept in `failures`, never raised into the code that it watches.
    """

    def __init__(self, policy: Policy = _NO_POLICY, terms: Terms = _NO_TERMS, *models: nn.Module) -> None:
        self._given = models
        self._policy = policy
        self._terms = terms
        self._observers = Observers(terms.root, terms.tests, strict=terms.strict, shown=terms.shown)
        self._segments = Segments(terms.strict, terms.rules)
        self._fixtures: dict[str, tuple[str, Site]] = {}
        """By the name of a model, the fixture that handed it over and where that stands."""
        self._opened = False
        self._began = False
        self._listening = False
        self._violations: list[Violation] = []
        self._seconds = 0.0
        self._failures = Failures()

    @property
    def failures(self) -> tuple[Exception, ...]:
        """What went wrong in the guard itself: if anything did, its verdict is worth nothing."""
        return (*self._failures, *self._observers.failures)

    @property
    def policy(self) -> Policy:
        """All that was declared as intended in any part of the window."""
        return self._segments.declared(self._policy)

    @property
    def models(self) -> tuple[WatchedModel, ...]:
        return self._observers.watch.facts()

    @property
    def watched(self) -> bool:
        """Whether the window was ever open: that of a test that is not guarded, and only locks something, is not."""
        return self._began

    @property
    def seconds(self) -> float:
        """What the guarding has cost so far."""
        return self._seconds + self._observers.seconds

    @property
    def violations(self) -> list[Violation]:
        """What has been found so far; after `close`, what was."""
        if self._opened:
            if self._listening:
                self._end_segment()
            self._judge()
        return self._violations

    @property
    def trace(self) -> Trace:
        """What has been seen so far, whatever was declared of it."""
        return self._segments.whole()

    @property
    def living(self) -> dict[str, nn.Module]:
        """The watched models that live, by name."""
        return self._observers.watch.living()

    def needed(self, exemptions: Iterable[tuple[str, str]]) -> list[str]:
        """Which of some exemptions of the whole suite excused something here."""
        return self._segments.needed(exemptions)

    def watch(self, model: M, name: str | None = None) -> M:
        """Watch a model from now on, whether or not it runs; returns it.

        `name` is what messages call it, unless it is watched already; without one it is its fixture's or its type's.
        """
        checked("watch(model)", model)
        with self.safely():
            # What is watched before the window is read as it opens.
            self._observers.watch.add(model, name, read=self._opened)
        return model

    def held(self, model: nn.Module) -> dict[str, Fingerprint] | None:
        """What a watched model, or part of one, was when it was last read: its tensors by name.

        What changed since is a violation.  None where it would be none, so that the model has to be read again.
        """
        lenient = self.policy.mutable or "state-mutated" in self.policy.allow
        if not self._listening or lenient:
            return None
        self.watch(model)
        return self._observers.watch.held(model)

    def note(self, *changes: LockChange) -> None:
        """Enter what is not as it was locked."""
        self._segments.end(Trace(locks=changes), self._policy)

    def watch_inside(self, value: object, name: str, *, shared: bool, at: Site | None = None) -> None:
        """Find the models in a fixture's value and name them after it; watch shared ones now, others once they run.

        `at` is where the fixture stands.
        """
        for path, model in find.find(value, name):
            self._observers.watch.name(model, path)
            if at is not None:
                self._fixtures.setdefault(path, (name, at))
            if shared:
                self._observers.share(model, self._terms.history)

    def declare(self, policy: Policy) -> None:
        """Let this be what is intended, before the window opens."""
        self._policy = policy

    def open(self) -> None:
        """Begin the window."""
        self._opened = self._began = True
        with self.safely():
            self._observers.begin(self._terms.history)
        self._listen()

    def close(self, *, name: str = "", finished: bool = True, needs_forward: bool = False, heard: bool = True) -> None:
        """End the window, and let go of every model.

        `finished`: what was guarded came to its end, so that an exemption may be told to be unused and, where it
        `needs_forward`, a model to have been missing.  A drift is told once: not here unless this is `heard`.  `name`
        is what a later window calls this one.
        """
        if self._listening:
            self._stop_listening()
        with self.safely():
            if self._opened:
                self._end(name, finished and needs_forward, heard)
        with self.safely():
            self._observers.watch.close()
        self._opened = False
        self._judge(finished=finished)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Look away, from code that may train; what the models then are is the new beginning."""
        with self._segment(None):
            yield

    @contextmanager
    def allow(self, *rules: str, train: Globs = (), mutable: Globs = (), reason: str | None = None) -> Iterator[None]:
        """For a part of the window, let these rules be broken, these modules train, these tensors change.

        Raises PolicyError on a rule that does not exist.
        """
        arguments = {"allow": rules, "train": train, "mutable": mutable, "reason": reason}
        names = (*RULE_NAMES, *(rule.name for rule in self._terms.rules))
        with self._segment(self._policy | read_policy("evalmode.allow()", arguments, names)):
            yield

    def check(self) -> None:
        """Raise now if the inference so far was not clean; GuardError if that cannot be told."""
        __tracebackhide__ = True
        violations = self.violations
        if self.failures:
            raise failure(self.failures)
        failing = self._terms.fails(violations)
        if failing and self._terms.enforced:
            raise self._terms.verdict(failing)

    def verdict(self) -> BaseException:
        """What to raise for what has been found; there must be something."""
        return self._terms.verdict(self.violations)

    @contextmanager
    def _segment(self, policy: Policy | None) -> Iterator[None]:
        """A part of the window under another policy, or, with none, unobserved."""
        if not self._opened:
            yield
            return
        before = self._policy, self._listening
        self._switch(policy or self._policy, policy is not None and self._listening)
        try:
            yield
        finally:
            if self._opened:  # a context that was entered inside may be left after the end
                self._switch(*before)

    def _switch(self, policy: Policy, listen: bool) -> None:
        if self._listening:
            self._stop_listening()
        elif listen:
            with self.safely():
                self._observers.begin_anew()
        self._policy = policy
        if listen:
            self._listen()

    def _listen(self) -> None:
        self._listening = True
        with self.safely():
            self._observers.listen()

    def _stop_listening(self) -> None:
        self._listening = False
        with self.safely():
            self._observers.stop()
        self._end_segment()

    def _end_segment(self) -> None:
        with self.safely():
            named = bool(self._policy.train or self._policy.mutable)
            self._segments.add(self._observers.take(named=named), self._policy)
            self._segments.add_leaks(self._observers.leaks(), self._policy)

    def _judge(self, *, finished: bool = False) -> None:
        with self.safely():
            found = self._segments.violations(finished=finished)
            self._violations = self._terms.tell([handed_by(each, self._fixtures) for each in found])

    def _end(self, name: str, needs_forward: bool, heard: bool) -> None:
        """What can only be told once all is over."""
        if not self._terms.strict:
            return
        self._segments.settle_leaks(self._observers.put_back())
        history = self._terms.history
        self._segments.end(self._observers.ended(history, needs_forward=needs_forward, heard=heard), self._policy)
        if history is not None:
            self._observers.shared.keep(history, name, drifted=heard)

    @contextmanager
    def safely(self) -> Iterator[None]:
        """Time a piece of the guard's own work, and keep what goes wrong in it."""
        began = perf_counter()
        try:
            yield
        except Exception as error:
            self._failures.append(error)
        finally:
            self._seconds += perf_counter() - began

    def __enter__(self) -> Self:
        if self._opened or self._segments:
            raise RuntimeError("guard() was entered a second time; make a new one for each block")
        self.open()
        for model in self._given:
            self.watch(model)
            with self.safely():
                self._observers.share(model, None)
        self._given = ()  # who drops a model inside sees it freed
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        __tracebackhide__ = True
        self.close(finished=error is None)
        if error is None:
            self.check()
        elif self.failures:
            error.add_note(f"\n{failure(self.failures)}")
        elif self.violations:
            error.add_note(f"\nIts inference was not clean either.  {self.verdict()}")


def guard(*models: nn.Module, strict: bool = False, allow: Globs = (), train: Globs = (), mutable: Globs = ()) -> Guard:
    """Watch the inference inside, in a fixture, a script or an evaluation loop, as a marked test is watched.

    `with guard(model) as g:` watches `models` from the start, others from just before their first forward.  `strict`
    adds the strict rules; `allow` names rules that may be broken; `train` and `mutable` are globs of modules that may
    be in training mode, and of tensors that may change.

    Raises HygieneError on the way out if the inference was not clean; an exception of the block's own passes, with what
    was found added as a note.  Raises PolicyError on an argument that makes no sense, GuardError if the guard failed.
    """
    policy = read_policy("guard()", {"allow": allow, "train": train, "mutable": mutable}, RULE_NAMES)
    return Guard(policy, Terms(strict=strict), *(checked("guard(*models)", model) for model in models))


def failure(failures: Sequence[Exception]) -> GuardError:
    """What to raise when the guard itself has failed."""
    error = GuardError(
        f"pytest-evalmode could not tell whether this inference was clean: {failures[0]!r} in the guard itself; "
        "please report it with the traceback above"
    )
    error.__cause__ = failures[0]
    return error


def checked(where: str, model: object) -> nn.Module:
    if not isinstance(model, nn.Module):
        raise TypeError(f"{where}: {reprlib.repr(model)} is of type {type(model).__name__}; it takes a torch.nn.Module")
    return model
