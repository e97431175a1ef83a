"""The guard of one window: has it opened and closed, asks the rules, and says what they found."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Self, TypeVar

from torch import nn

from pytest_evalmode.errors import GuardError
from pytest_evalmode.guards.config import GuardConfig
from pytest_evalmode.guards.window import Window
from pytest_evalmode.observe.models import discovery
from pytest_evalmode.observe.state.fingerprint import Fingerprint
from pytest_evalmode.policy import Globs, Policy, read_policy
from pytest_evalmode.rules import RULE_NAMES, Violation, add_fixture
from pytest_evalmode.trace import LockChange, Site, Trace, WatchedModel

M = TypeVar("M", bound=nn.Module)


_NO_POLICY = Policy()
_NO_TERMS = GuardConfig()


class Guard:
    """Watches what runs between `open` and `close`, and tells what was not clean.

    What goes wrong in it is kept in `failures`, never raised into the code that it watches.
    """

    def __init__(self, policy: Policy = _NO_POLICY, config: GuardConfig = _NO_TERMS, *models: nn.Module) -> None:
        self._given = models
        self._terms = config
        self._window = Window(policy, config)
        self._fixtures: dict[str, tuple[str, Site]] = {}
        """By the name of a model, the fixture that handed it over and where that stands."""
        self._violations: list[Violation] = []

    @property
    def failures(self) -> tuple[Exception, ...]:
        """What went wrong in the guard itself: if anything did, its verdict is worth nothing."""
        return self._window.failures

    @property
    def policy(self) -> Policy:
        """All that was declared as intended in any part of the window."""
        return self._window.segments.combined_policy(self._window.policy)

    @property
    def models(self) -> tuple[WatchedModel, ...]:
        return self._window.observers.watch.watched_models()

    @property
    def was_opened(self) -> bool:
        """Whether the window was ever open: that of a test that is not guarded, and only locks something, is not."""
        return self._window.was_opened

    @property
    def seconds(self) -> float:
        """What the guarding has cost so far."""
        return self._window.seconds + self._window.observers.seconds

    @property
    def violations(self) -> list[Violation]:
        """What has been found so far; after `close`, what was."""
        if self._window.is_open:
            self._window.collect()
            self._judge()
        return self._violations

    @property
    def trace(self) -> Trace:
        """What has been seen so far, whatever was declared of it."""
        return self._window.segments.full_trace()

    @property
    def living_models(self) -> dict[str, nn.Module]:
        """The watched models that live, by name."""
        return self._window.observers.watch.living_models()

    def used_exemptions(self, exemptions: Iterable[tuple[str, str]]) -> list[str]:
        """Which of some exemptions of the whole suite excused something here."""
        return self._window.segments.used_exemptions(exemptions)

    def watch(self, model: M, name: str | None = None) -> M:
        """Watch a model from now on, whether or not it runs; returns it.

        `name` is what messages call it, unless it is watched already; without one it is its fixture's or its type's.
        """
        require_module("watch(model)", model)
        with self.safely():
            # What is watched before the window is read as it opens.
            self._window.observers.watch.add(model, name, read=self._window.is_open)
        return model

    def last_fingerprints(self, model: nn.Module) -> dict[str, Fingerprint] | None:
        """What a watched model, or part of one, was when it was last read: its tensors by name.

        What changed since is a violation.  None where it would be none, so that the model has to be read again.
        """
        lenient = self.policy.mutable or "state-mutated" in self.policy.allow
        if not self._window.is_listening or lenient:
            return None
        self.watch(model)
        return self._window.observers.watch.saved_fingerprints(model)

    def add_lock_changes(self, *changes: LockChange) -> None:
        """Enter what is not as it was locked."""
        self._window.segments.append(Trace(locks=changes), self._window.policy)

    def watch_fixture_value(self, value: object, name: str, *, shared: bool, defined_at: Site | None = None) -> None:
        """Find the models in a fixture's value and name them after it; watch shared ones now, others once they run.

        `at` is where the fixture stands.
        """
        for path, model in discovery.find_models(value, name):
            self._window.observers.watch.set_name(model, path)
            if defined_at is not None:
                self._fixtures.setdefault(path, (name, defined_at))
            if shared:
                self._window.observers.watch_shared(model, self._terms.history)

    def set_policy(self, policy: Policy) -> None:
        """Let this be what is intended, before the window opens."""
        self._window.policy = policy

    def open(self) -> None:
        """Begin the window."""
        self._window.open()

    def close(
        self, *, name: str = "", finished: bool = True, needs_forward: bool = False, report_drift: bool = True
    ) -> None:
        """End the window, and let go of every model.

        `finished`: what was guarded came to its end, so that an exemption may be told to be unused and, where it
        `needs_forward`, a model to have been missing.  A drift is told once: not here unless this is `heard`.  `name`
        is what a later window calls this one.
        """
        self._window.close(name, needs_forward=finished and needs_forward, report_drift=report_drift)
        self._judge(finished=finished)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Look away, from code that may train; what the models then are is the new beginning."""
        with self._window.segment(None):
            yield

    @contextmanager
    def allow(self, *rules: str, train: Globs = (), mutable: Globs = (), reason: str | None = None) -> Iterator[None]:
        """For a part of the window, let these rules be broken, these modules train, these tensors change.

        Raises PolicyError on a rule that does not exist.
        """
        arguments = {"allow": rules, "train": train, "mutable": mutable, "reason": reason}
        names = (*RULE_NAMES, *(rule.name for rule in self._terms.custom_rules))
        with self._window.segment(self._window.policy | read_policy("evalmode.allow()", arguments, names)):
            yield

    def check(self) -> None:
        """Raise now if the inference so far was not clean; GuardError if that cannot be told."""
        __tracebackhide__ = True
        violations = self.violations
        if self.failures:
            raise guard_error(self.failures)
        failing = self._terms.select_failing(violations)
        if failing and self._terms.enforced:
            raise self._terms.make_error(failing)

    def make_error(self) -> BaseException:
        """What to raise for what has been found; there must be something."""
        return self._terms.make_error(self.violations)

    def _judge(self, *, finished: bool = False) -> None:
        with self.safely():
            found = self._window.segments.violations(finished=finished)
            self._violations = self._terms.filter_violations([add_fixture(each, self._fixtures) for each in found])

    def safely(self) -> AbstractContextManager[None]:
        """Time a piece of the guard's own work, and keep what goes wrong in it."""
        return self._window.safely()

    def __enter__(self) -> Self:
        if self._window.was_opened:
            raise RuntimeError("guard() was entered a second time; make a new one for each block")
        self.open()
        for model in self._given:
            self.watch(model)
            with self.safely():
                self._window.observers.watch_shared(model, None)
        self._given = ()  # who drops a model inside sees it freed
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        __tracebackhide__ = True
        self.close(finished=error is None)
        if error is None:
            self.check()
        elif self.failures:
            error.add_note(f"\n{guard_error(self.failures)}")
        elif self.violations:
            error.add_note(f"\nIts inference was not clean either.  {self.make_error()}")


def guard(*models: nn.Module, strict: bool = False, allow: Globs = (), train: Globs = (), mutable: Globs = ()) -> Guard:
    """Watch the inference inside, in a fixture, a script or an evaluation loop, as a marked test is watched.

    `with guard(model) as g:` watches `models` from the start, others from just before their first forward.  `strict`
    adds the strict rules; `allow` names rules that may be broken; `train` and `mutable` are globs of modules that may
    be in training mode, and of tensors that may change.

    Raises HygieneError on the way out if the inference was not clean; an exception of the block's own passes, with what
    was found added as a note.  Raises PolicyError on an argument that makes no sense, GuardError if the guard failed.
    """
    policy = read_policy("guard()", {"allow": allow, "train": train, "mutable": mutable}, RULE_NAMES)
    return Guard(policy, GuardConfig(strict=strict), *(require_module("guard(*models)", model) for model in models))


def guard_error(failures: Sequence[Exception]) -> GuardError:
    """What to raise when the guard itself has failed."""
    error = GuardError(
        f"pytest-evalmode could not tell whether this inference was clean: {failures[0]!r} in the guard itself; "
        "please report it with the traceback above"
    )
    error.__cause__ = failures[0]
    return error


def require_module(where: str, model: object) -> nn.Module:
    if not isinstance(model, nn.Module):
        raise TypeError(f"{where}: {reprlib.repr(model)} is of type {type(model).__name__}; it takes a torch.nn.Module")
    return model
