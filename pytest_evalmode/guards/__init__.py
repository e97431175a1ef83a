"""Guards, which watch the models that run in a window and report the rules that were broken."""

from __future__ import annotations

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
_DEFAULT_CONFIG = GuardConfig()


class Guard:
    """Watches the models that run between `open` and `close` and reports the rules that were broken.

    Exceptions inside the guard itself are collected in `failures`, never raised into the code under test.
    """

    def __init__(self, policy: Policy = _NO_POLICY, config: GuardConfig = _DEFAULT_CONFIG, *models: nn.Module) -> None:
        self._initial_models = models
        self._config = config
        self._window = Window(policy, config)
        self._fixtures: dict[str, tuple[str, Site]] = {}
        """The fixture that provided a model, as (name, line of its definition), by the model's name."""
        self._violations: list[Violation] = []

    @property
    def failures(self) -> tuple[Exception, ...]:
        """Exceptions raised in the guard itself; if there are any, `violations` may be incomplete."""
        return self._window.failures

    @property
    def policy(self) -> Policy:
        """The exemptions of all parts of the window, combined."""
        return self._window.segments.combined_policy(self._window.policy)

    @property
    def models(self) -> tuple[WatchedModel, ...]:
        return self._window.observers.watch.registry.watched_models()

    @property
    def was_opened(self) -> bool:
        """Whether the window was ever open; it was not for an unguarded test that only uses `evalmode_lock`."""
        return self._window.was_opened

    @property
    def seconds(self) -> float:
        """Time spent in the guard so far."""
        return self._window.seconds + self._window.observers.seconds

    @property
    def violations(self) -> list[Violation]:
        """The violations so far or, after `close`, those of the whole window."""
        if self._window.is_open:
            self._window.collect()
            self._apply_rules()
        return self._violations

    @property
    def trace(self) -> Trace:
        """The facts recorded so far, exempted or not."""
        return self._window.segments.full_trace()

    @property
    def living_models(self) -> dict[str, nn.Module]:
        """The watched models that have not been garbage-collected, by name."""
        return self._window.observers.watch.registry.living_models()

    def used_exemptions(self, exemptions: Iterable[tuple[str, str]]) -> list[str]:
        """Return those of the given suite-wide exemptions that excused something in this window."""
        return self._window.segments.used_exemptions(exemptions)

    def watch(self, model: M, name: str | None = None) -> M:
        """Watch a model from now on, whether or not it runs.

        Args:
            model: the model to watch.
            name: its name in messages, unless it is watched already; by default its fixture's name or its type's.

        Returns:
            The model.

        Raises:
            TypeError: `model` is not a torch.nn.Module.
        """
        require_module("watch(model)", model)
        with self.safely():
            # Models that are added before the window opens are read when it opens.
            self._window.observers.watch.add(model, name, read=self._window.is_open)
        return model

    def last_fingerprints(self, model: nn.Module) -> dict[str, Fingerprint] | None:
        """Return the fingerprints of a model's tensors by name, as the guard last read them.

        They still hold as long as every change since then is a violation.  Where a change would be exempted, the
        result is None, and the caller must read the model itself.
        """
        lenient = self.policy.mutable or "state-mutated" in self.policy.allow
        if not self._window.is_listening or lenient:
            return None
        self.watch(model)
        return self._window.observers.watch.saved_fingerprints(model)

    def add_lock_changes(self, *changes: LockChange) -> None:
        """Record differences from the evaluation lock, so that its rules report them."""
        self._window.segments.append(Trace(locks=changes), self._window.policy)

    def watch_fixture_value(self, value: object, name: str, *, shared: bool, defined_at: Site | None = None) -> None:
        """Find the models in the value of the fixture `name` and name them after it.

        If the value is `shared`, that is, outlives the test, its models are watched from now on; otherwise a model is
        watched once it runs.
        """
        for path, model in discovery.find_models(value, name):
            self._window.observers.watch.registry.set_name(model, path)
            if defined_at is not None:
                self._fixtures.setdefault(path, (name, defined_at))
            if shared:
                self._window.observers.watch_shared(model, self._config.history)

    def set_policy(self, policy: Policy) -> None:
        """Replace the policy; must be called before the window opens."""
        self._window.policy = policy

    def open(self) -> None:
        """Open the window."""
        self._window.open()

    def close(
        self, *, name: str = "", finished: bool = True, needs_forward: bool = False, report_drift: bool = True
    ) -> None:
        """Close the window and release every model.

        Args:
            name: how a later window refers to this one.
            finished: whether the code ran to its end; otherwise unused exemptions and missing forwards do not count.
            needs_forward: whether it is a violation if no model ran.
            report_drift: whether to report changes since the last window.  They are reported only once, so pass False
                if the violations of this window will not be shown.
        """
        self._window.close(name, needs_forward=finished and needs_forward, report_drift=report_drift)
        self._apply_rules(finished=finished)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Do not observe code that may train; afterwards, changes are measured from the models' new state."""
        with self._window.segment(None):
            yield

    @contextmanager
    def allow(self, *rules: str, train: Globs = (), mutable: Globs = (), reason: str | None = None) -> Iterator[None]:
        """Add exemptions for a part of the window.

        Args:
            rules: names of rules that may be broken.
            train: globs of qualified names of modules that may be in training mode.
            mutable: globs of qualified names of tensors that may change.
            reason: why, as shown in the reports.

        Raises:
            PolicyError: an argument is invalid.
        """
        arguments = {"allow": rules, "train": train, "mutable": mutable, "reason": reason}
        names = (*RULE_NAMES, *(rule.name for rule in self._config.custom_rules))
        with self._window.segment(self._window.policy | read_policy("evalmode.allow()", arguments, names)):
            yield

    def check(self) -> None:
        """Raise now if the inference so far was not clean.

        Raises:
            HygieneError: a rule was broken; inside a test, this is HygieneViolation.
            GuardError: the guard itself failed.
        """
        __tracebackhide__ = True
        violations = self.violations
        if self.failures:
            raise guard_error(self.failures)
        failing = self._config.select_failing(violations)
        if failing and self._config.enforced:
            raise self._config.make_error(failing)

    def make_error(self) -> BaseException:
        """Return the exception for the violations; there must be at least one."""
        return self._config.make_error(self.violations)

    def _apply_rules(self, *, finished: bool = False) -> None:
        with self.safely():
            violations = self._window.segments.violations(finished=finished)
            violations = [add_fixture(violation, self._fixtures) for violation in violations]
            self._violations = self._config.filter_violations(violations)

    def safely(self) -> AbstractContextManager[None]:
        """Run a part of the guard's own work: measure its time and collect its exceptions in `failures`."""
        return self._window.safely()

    def __enter__(self) -> Self:
        if self._window.was_opened:
            raise RuntimeError("guard() was entered a second time; create a new one for each block")
        self.open()
        for model in self._initial_models:
            self.watch(model)
            with self.safely():
                self._window.observers.watch_shared(model, None)
        self._initial_models = ()  # so that a model that the block deletes is freed
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        __tracebackhide__ = True
        self.close(finished=error is None)
        if error is None:
            self.check()
        elif self.failures:
            error.add_note(f"\n{guard_error(self.failures)}")
        elif self.violations:
            error.add_note(f"\nThe inference was not clean either.  {self.make_error()}")


def guard(*models: nn.Module, strict: bool = False, allow: Globs = (), train: Globs = (), mutable: Globs = ()) -> Guard:
    """Guard the inference inside a `with` block: in a fixture, a script or an evaluation loop.

    Args:
        models: models to watch from the start; others are watched from just before their first forward.
        strict: whether to also apply the strict rules.
        allow: names of rules that may be broken.
        train: globs of qualified names of modules that may be in training mode.
        mutable: globs of qualified names of tensors that may change.

    Returns:
        A `Guard`, to be used as a context manager once.

    Raises:
        HygieneError: on exit, if the inference was not clean.  If the block raises an exception itself, that
            exception propagates, and the violations are added to it as a note.
        PolicyError: `allow`, `train` or `mutable` is invalid.
        GuardError: on exit, if the guard itself failed.

    Example:
        with guard(model) as g:
            accuracy = evaluate(model, loader)
    """
    policy = read_policy("guard()", {"allow": allow, "train": train, "mutable": mutable}, RULE_NAMES)
    return Guard(policy, GuardConfig(strict=strict), *(require_module("guard(*models)", model) for model in models))


def guard_error(failures: Sequence[Exception]) -> GuardError:
    """Return the exception for a guard that itself failed."""
    error = GuardError(
        f"pytest-evalmode could not check this inference because of an internal error: {failures[0]!r}; "
        "please report it with the traceback above"
    )
    error.__cause__ = failures[0]
    return error


def require_module(where: str, model: object) -> nn.Module:
    if not isinstance(model, nn.Module):
        raise TypeError(f"{where}: expected a torch.nn.Module, got {type(model).__name__}")
    return model
