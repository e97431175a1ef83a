"""Violations -> the text of the failure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from pytest_evalmode.report.causes import find_explanations
from pytest_evalmode.rules import RULES, Rule, Violation
from pytest_evalmode.rules.globs import narrowest_globs
from pytest_evalmode.trace import Site

_MOST_NAMES = 3


def failure_text(violations: Sequence[Violation], marker: str | None = None) -> str:
    """The headline, what was found of each cause with its lines and remedy, and how to say that it was intended.

    `marker` is the name of the marker to suggest; without one the arguments of `guard()` are.
    """
    more = f" (+{len(violations) - 1} more)" if len(violations) > 1 else ""
    first = violations[0]
    lines = [f"{first.rule}: {first.message}{more}", ""]
    width = max(len(violation.rule) for violation in violations)
    for entry in _entries(violations):
        lines += [f"  {head:{width}}  {row}" for head, row in entry.rows()]
    call = suggest_exemption(violations, marker)
    if call:
        lines += ["", f"  intended? {call}"]
    return "\n".join(lines)


def suggest_exemption(violations: Sequence[Violation], marker: str | None = None) -> str:
    """What would let pass what may have been meant; nothing is offered for what can only be a mistake."""
    return exemption(
        [each for entry in _entries(violations) if not entry.head.never_intended for each in entry.all()], marker
    )


@dataclass(slots=True)
class _Entry:
    """One cause: the violation that tells it, others that it tells as well, and its consequences."""

    head: Violation
    alike: list[Violation] = field(default_factory=list)
    consequences: list[Violation] = field(default_factory=list)

    def all(self) -> list[Violation]:
        return [self.head, *self.alike, *self.consequences]

    def rows(self) -> Iterator[tuple[str, str]]:
        """Each with the rule where one begins."""
        yield self.head.rule, self.head.finding
        yield from (("", f"and {other.finding}") for other in self.alike[: _MOST_NAMES - 1])
        if len(self.alike) >= _MOST_NAMES:
            yield "", f"and {len(self.alike) - _MOST_NAMES + 1} more like these"
        yield from (("", place) for place in _places(self.head))
        yield from ((other.rule, f"so {other.finding}") for other in self.consequences)
        for note in dict.fromkeys(note for each in (self.head, *self.consequences) for note in each.notes):
            yield "", note
        yield "", f"fix: {self.head.remedy}"

    def is_like(self, other: Violation) -> bool:
        """Whether another is the same fault of another model: of a second block in one plain list, say."""
        mine = self.head
        return (mine.rule, mine.remedy, _places(mine)) == (other.rule, other.remedy, _places(other)) and bool(mine.at)


def _entries(violations: Sequence[Violation]) -> list[_Entry]:
    """One for each cause, in the order of the first that tells of it."""
    entries: list[_Entry] = []
    for violation, cause in zip(violations, find_explanations(violations), strict=True):
        told = next((entry for entry in entries if any(cause is each for each in entry.all())), None)
        twin = next((entry for entry in entries if entry.is_like(violation)), None)
        if told is not None and cause is not violation:
            told.consequences.append(violation)
        elif twin is not None:
            twin.alike.append(violation)
        else:
            entries.append(_Entry(violation))
    return entries


def _places(violation: Violation) -> list[str]:
    """Why here and where: the fixture, the line that brought it about, the call, and the line at fault in the model."""
    places = []
    if violation.fixture and violation.fixture_at:
        places.append(f"from fixture {violation.fixture}: {_line(violation.fixture_at)}")
    if violation.mutable:  # `at` is not at fault: it is the last forward before a change was seen
        if violation.since:
            return [*places, f"since {_line(violation.since)}"]
        return [*places, f"first seen after {violation.at}, its last forward"] if violation.at else places
    if violation.since and violation.since != violation.at:
        places.append(f"since {_line(violation.since)}")
    if violation.at:
        places.append(_line(violation.at))
    if violation.through:
        places.append(f"which led to {_line(violation.through)}")
    if violation.cause and violation.cause != violation.at:
        places.append(f"in the model: {_line(violation.cause)}")
    others = violation.details.get("also_at", ())
    if others:
        places.append(f"also {', '.join(others[:_MOST_NAMES])}" + (" ..." if len(others) > _MOST_NAMES else ""))
    return places


def _line(site: Site) -> str:
    return f"{site}  {site.source}".rstrip()


def exemption(violations: Sequence[Violation], marker: str | None = None) -> str:
    """What would let this pass, if something would: the marker or, without one, `guard()` with its arguments."""
    arguments = _exempting(violations)
    if not arguments:
        return ""
    return f'@pytest.mark.{marker}({arguments}, reason="...")' if marker else f"guard({arguments})"


def _exempting(violations: Sequence[Violation]) -> str:
    """The arguments that would let this pass: by name where names tell it, else by the rule."""
    allow: list[str] = []
    train: list[str] = []
    mutable: list[str] = []
    for violation in violations:
        if violation.train and all(violation.train):
            train += violation.train
        elif violation.mutable:
            mutable += violation.mutable
        elif violation.rule != "unused-exemption":
            allow.append(violation.rule)
    given = (
        ("allow", list(dict.fromkeys(allow))),
        ("train", narrowest_globs(train)),
        ("mutable", narrowest_globs(mutable)),
    )
    return ", ".join(f"{name}=[{', '.join(map(_quoted, names))}]" for name, names in given if names)


def rules_table(rules: Iterable[Rule] = RULES) -> str:
    """The rules with when they fire and what to do, for `--evalmode-rules`."""
    return "\n\n".join(
        f"{rule.name} ({rule.level})\n  fires when {rule.fires_when}\n  fix: {rule.remedy}" for rule in rules
    )


def _quoted(name: str) -> str:
    return f'"{name}"'
