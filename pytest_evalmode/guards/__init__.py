"""Guards, which watch the models that run in a window and report the rules that were broken."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Self, TypeVar

from torch import nn

from pytest_evalmode.errors import GuardError
from pytest_evalmode.guards.config import GuardConfig
from pytest_evalmode.guards.window import Window
from pytest_evalmode.policy import Globs, Policy, read_policy, read_strings
from pytest_evalmode.reporter import Reporter
from pytest_evalmode.rules import RULE_NAMES, Violation

M = TypeVar("M", bound=nn.Module)

_NO_POLICY = Policy()
_DEFAULT_CONFIG = GuardConfig()
_DEFAULT_REPORTER = Reporter()


class Guard:
    """Watches the models that run in its window and reports the rules that were broken."""

    def __init__(
        self,
        policy: Policy = _NO_POLICY,
        config: GuardConfig = _DEFAULT_CONFIG,
        *models: nn.Module,
        reporter: Reporter = _DEFAULT_REPORTER,
    ) -> None:
        self.window = Window(policy, config)
        self.reporter = reporter
        self._initial_models = models
        self._violations: list[Violation] | None = None

    @property
    def violations(self) -> list[Violation]:
        """The violations so far or, after the window has closed, those of the whole window."""
        if self._violations is not None:
            return self._violations
        violations: list[Violation] = []
        if self.window.is_open:
            self.window.collect()
        with self.window.safely():
            violations = self.reporter.select_reported(self.window.violations())
        if self.window.is_closed:
            self._violations = violations
        return violations

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
        with self.window.safely():
            # Models that are added before the window opens are read when it opens.
            self.window.observers.watch.add(model, name, read=self.window.is_open)
        return model

    @contextmanager
    def paused(self, frozen: Globs = ()) -> Iterator[None]:
        """Pause the guard for code that may train; later changes are compared with the models' new state.

        Args:
            frozen: globs of qualified names of modules whose parameters and buffers must not change even here, such
                as a frozen backbone whose batch norms follow `train()`.

        Raises:
            PolicyError: `frozen` is invalid, or names no module.
        """
        with self.window.pause(read_strings("evalmode.paused()", "frozen", frozen)):
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
        names = (*RULE_NAMES, *(rule.name for rule in self.window.segments.custom_rules))
        with self.window.segment(self.window.policy | read_policy("evalmode.allow()", arguments, names)):
            yield

    def check(self) -> None:
        """Raise now if the inference so far was not clean.

        Raises:
            HygieneError: a rule was broken; inside a test, this is HygieneViolation.
            GuardError: the guard itself failed.
        """
        __tracebackhide__ = True
        raised = self.reporter.select_raised(self.violations)
        if self.window.failures:
            raise guard_error(self.window.failures)
        if raised:
            raise self.reporter.make_error(raised)

    def __enter__(self) -> Self:
        if self.window.was_opened:
            raise RuntimeError("guard() was entered a second time; create a new one for each block")
        self.window.open()
        for model in self._initial_models:
            self.watch(model)
            with self.window.safely():
                self.window.observers.watch_shared(model, None)
        self._initial_models = ()  # so that a model that the block deletes is freed
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        __tracebackhide__ = True
        self.window.close(finished=error is None)
        if error is None:
            self.check()
        elif self.window.failures:
            error.add_note(f"\n{guard_error(self.window.failures)}")
        elif self.violations:
            error.add_note(f"\nThe inference was not clean either.  {self.reporter.make_error(self.violations)}")


def guard(*models: nn.Module, strict: bool = False, allow: Globs = (), train: Globs = (), mutable: Globs = ()) -> Guard:
    """Guard the inference inside a `with` block: in a fixture, a script or an evaluation loop.

    Args:
        models: models to watch from the start; others are watched from just before their first forward.
        strict: whether to also apply the strict rules.
        allow: names of rules that may be broken.
        train: globs of qualified names of modules that may be in training mode.
        mutable: globs of qualified names of tensors that may change.

    Returns:
        A `Guard`.  Use it as a context manager, once.

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
    if isinstance(failures[0], GuardError):
        return failures[0]
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
