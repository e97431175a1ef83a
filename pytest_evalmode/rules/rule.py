"""The types of a rule and of the violation that it reports."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from pytest_evalmode.trace import Site, Trace

Level = Literal["default", "strict", "lock"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Violation:
    """A rule broken by one model, with everything that the failure text and the JSON report show."""

    rule: str = ""
    model: str | None
    subjects: tuple[str, ...]
    """Modules or tensors at fault, most relevant first: `model.path (Type)`, `model.path.tensor` or `model (Type)`."""
    message: str
    """The headline: complete, and short enough for a line of pytest's summary."""
    finding: str
    """The sentence below the headline: which modules or tensors, and how much they changed."""
    remedy: str = ""
    at: Site | None = None
    """The innermost line of user code outside the model that led to the call, in the test's file if there is one."""
    through: Site | None = None
    """The line that called the model, if that is not `at`."""
    cause: Site | None = None
    """The innermost line of user code at fault inside the model."""
    since: Site | None = None
    """The line before the call that caused the violation: a mode switch, an export, a write."""
    count: int = 1
    details: Mapping[str, Any] = field(default_factory=dict)
    fixture: str | None = None
    """The fixture that provided the model."""
    fixture_at: Site | None = None
    because: tuple[str, ...] = ()
    """Rules that explain this violation: if one of them is broken too, this is listed under the first."""
    notes: tuple[str, ...] = ()
    """Additional sentences for the reader."""
    never_intended: bool = False
    """Whether it can only be a mistake, so that no exemption is suggested."""
    train: tuple[str, ...] = ()
    """Modules for the marker's `train` if the violation is intended."""
    mutable: tuple[str, ...] = ()
    """Tensors for the marker's `mutable` if the violation is intended."""


def add_fixture(violation: Violation, fixtures: Mapping[str, tuple[str, Site]]) -> Violation:
    """Return the violation with the fixture that provided its model; `fixtures` has name and line by model name."""
    provided = fixtures.get(violation.model or "")
    if provided is None:
        return violation
    name, at = provided
    details = {**violation.details, "fixture": name, "fixture_at": str(at)}
    return replace(violation, fixture=name, fixture_at=at, details=details)


Check = Callable[[Trace], Iterable[Violation]]


class RuleError(RuntimeError):
    """A rule raised an exception, or yielded something that is not a Violation."""

    __module__ = "pytest_evalmode"


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule: its name, its explanation, and a pure function that takes a trace and yields violations."""

    name: str
    level: Level
    fires_when: str
    remedy: str
    check: Check

    def violations(self, trace: Trace) -> list[Violation]:
        """Return the violations of this rule, with the rule's remedy for those that have none, or raise RuleError."""
        try:
            return [replace(v, rule=self.name, remedy=v.remedy or self.remedy) for v in self.check(trace)]
        except Exception as error:
            raise RuleError(f"rule {self.name!r} failed: {error!r}") from error


def rule(name: str, *, fires_when: str, remedy: str, level: Level = "default") -> Callable[[Check], Rule]:
    """Return a decorator that turns a function into a rule; the function takes a trace and yields violations.

    Args:
        name: The rule's name, for `allow`, the reports and the baseline.
        fires_when: When the rule fires, for `--evalmode-rules`: the sentence after "fires when".
        remedy: How to fix a violation, unless the violation has a remedy of its own.
        level: `"default"`, or `"strict"` for a rule that runs only with `--evalmode-strict`.

    Example:
        @rule("no-float64", fires_when="a model holds float64", remedy="call model.float()")
        def no_float64(trace):
            for model in trace.models:
                if "float64" in model.dtypes:
                    text = f"{model.name} ({model.type}) holds float64"
                    yield Violation(model=model.name, subjects=(model.name,), message=text, finding=text)
    """

    def decorate(check: Check) -> Rule:
        return Rule(name, level, fires_when, remedy, check)

    return decorate
