"""What a rule is, and what it finds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from pytest_evalmode.trace import Site, Trace

Level = Literal["default", "strict", "lock"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Violation:
    """One broken rule of one model, as the failure text and the JSON report tell it."""

    rule: str = ""
    model: str | None
    subjects: tuple[str, ...]
    """What is at fault, most telling first: `model.path (Type)`, `model.path.tensor` or `model (Type)`."""
    message: str
    """The headline: whole, and short enough for a summary line."""
    finding: str
    """The sentence beneath the headline: which modules or tensors, and how far."""
    remedy: str = ""
    at: Site | None = None
    """The innermost line of user code outside the model that led to the call: of a test, where there is one."""
    through: Site | None = None
    """The line that called the model, where that is another."""
    cause: Site | None = None
    """The innermost line of user code at fault inside the model."""
    since: Site | None = None
    """The line of user code that brought it about, before the call."""
    count: int = 1
    details: Mapping[str, Any] = field(default_factory=dict)
    fixture: str | None = None
    """The fixture that handed the model over."""
    fixture_at: Site | None = None
    because: tuple[str, ...] = ()
    """The rules of which this is a consequence, where one of them is broken too: it is told under the first."""
    notes: tuple[str, ...] = ()
    """What else the reader should know, a sentence each."""
    never_intended: bool = False
    """Whether it can be nothing but a mistake, so that no exemption is offered."""
    train: tuple[str, ...] = ()
    """What the marker's `train` would have to name, were this intended."""
    mutable: tuple[str, ...] = ()
    """What the marker's `mutable` would have to name, were this intended."""


def add_fixture(violation: Violation, fixtures: Mapping[str, tuple[str, Site]]) -> Violation:
    """The same with the fixture, of those by the name of their model, that handed the model over."""
    handed = fixtures.get(violation.model or "")
    if handed is None:
        return violation
    name, at = handed
    details = {**violation.details, "fixture": name, "fixture_at": str(at)}
    return replace(violation, fixture=name, fixture_at=at, details=details)


Judge = Callable[[Trace], Iterable[Violation]]


class RuleError(RuntimeError):
    """A rule raised an exception, or found something that is no violation."""


@dataclass(frozen=True, slots=True)
class Rule:
    """A named check: a pure function from the facts of a window to violations, with the words that explain it."""

    name: str
    level: Level
    fires_when: str
    remedy: str
    judge: Judge

    def violations(self, trace: Trace) -> list[Violation]:
        """What the trace breaks, under this rule's name; the rule's remedy stands where the judge gave none.

        Raises RuleError if the judge fails.
        """
        try:
            return [replace(v, rule=self.name, remedy=v.remedy or self.remedy) for v in self.judge(trace)]
        except Exception as error:
            raise RuleError(f"the rule {self.name!r} could not judge: {error!r}") from error


def rule(name: str, *, fires_when: str, remedy: str, level: Level = "default") -> Callable[[Judge], Rule]:
    """Make a rule of a function from a trace to violations."""

    def decorate(judge: Judge) -> Rule:
        return Rule(name, level, fires_when, remedy, judge)

    return decorate
