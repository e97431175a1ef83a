"""The failure text of a test or of `guard()`, and the exemption that it suggests."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from pytest_evalmode.report.causes import find_explanations
from pytest_evalmode.rules import RULES, Rule, Violation
from pytest_evalmode.rules.globs import narrowest_globs
from pytest_evalmode.trace import Site

_MAX_NAMES = 3


def failure_text(violations: Sequence[Violation], marker: str | None = None) -> str:
    """Return the text of a failure: the headline, one entry per cause with its lines and fix, and an exemption.

    `marker` is the name of the marker to suggest; without it, the arguments of `guard()` are suggested.
    """
    more = f" (+{len(violations) - 1} more)" if len(violations) > 1 else ""
    first = violations[0]
    lines = [f"{first.rule}: {first.message}{more}", ""]
    width = max(len(violation.rule) for violation in violations)
    for entry in _entries(violations):
        lines += [f"  {rule:{width}}  {text}" for rule, text in entry.rows()]
    suggested = suggest_exemption(violations, marker)
    if suggested:
        lines += ["", f"  intended? {suggested}"]
    return "\n".join(lines)


def suggest_exemption(violations: Sequence[Violation], marker: str | None = None) -> str:
    """Return the narrowest exemption for the violations that may be intended, or an empty string."""
    intended = [entry for entry in _entries(violations) if not entry.cause.never_intended]
    arguments = _exemption_arguments([violation for entry in intended for violation in entry.all()])
    if not arguments:
        return ""
    return f'@pytest.mark.{marker}({arguments}, reason="...")' if marker else f"guard({arguments})"


@dataclass(slots=True)
class _Entry:
    """One entry of the failure text: a cause, the same fault in other models, and the consequences."""

    cause: Violation
    similar: list[Violation] = field(default_factory=list)
    consequences: list[Violation] = field(default_factory=list)

    def all(self) -> list[Violation]:
        return [self.cause, *self.similar, *self.consequences]

    def rows(self) -> Iterator[tuple[str, str]]:
        """Yield the rows of the entry, each with a rule in its first column, or an empty string."""
        yield self.cause.rule, self.cause.finding
        yield from (("", f"and {other.finding}") for other in self.similar[: _MAX_NAMES - 1])
        if len(self.similar) >= _MAX_NAMES:
            yield "", f"and {len(self.similar) - _MAX_NAMES + 1} more like these"
        yield from (("", place) for place in _places(self.cause))
        yield from ((other.rule, f"as a result, {other.finding}") for other in self.consequences)
        for note in dict.fromkeys(note for each in (self.cause, *self.consequences) for note in each.notes):
            yield "", note
        yield "", f"fix: {self.cause.remedy}"

    def is_similar(self, other: Violation) -> bool:
        """Whether another violation is the same fault of another model, such as a second block in the same list."""
        mine = self.cause
        return (mine.rule, mine.remedy, _places(mine)) == (other.rule, other.remedy, _places(other)) and bool(mine.at)


def _entries(violations: Sequence[Violation]) -> list[_Entry]:
    """Group violations into entries, in the order of their causes."""
    entries: list[_Entry] = []
    for violation, cause in zip(violations, find_explanations(violations), strict=True):
        of_cause = next((entry for entry in entries if any(cause is each for each in entry.all())), None)
        similar = next((entry for entry in entries if entry.is_similar(violation)), None)
        if of_cause is not None and cause is not violation:
            of_cause.consequences.append(violation)
        elif similar is not None:
            similar.similar.append(violation)
        else:
            entries.append(_Entry(violation))
    return entries


def _places(violation: Violation) -> list[str]:
    """Return the lines of code to show: the fixture, the line that caused it, the call, the line in the model."""
    places = []
    if violation.fixture and violation.fixture_at:
        places.append(f"from fixture {violation.fixture}: {_line(violation.fixture_at)}")
    if violation.mutable:  # `at` is not at fault, only a forward before or after the change
        if violation.since:
            return [*places, f"since {_line(violation.since)}"]
        when = violation.details.get("when", "first seen after the model's last forward")
        if violation.at:
            places.append(f"{when}: {violation.at}")
        return [*places, f"in the model: {_line(violation.cause)}"] if violation.cause else places
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
        places.append(f"also {', '.join(others[:_MAX_NAMES])}" + (" ..." if len(others) > _MAX_NAMES else ""))
    return places


def _line(site: Site) -> str:
    return f"{site}  {site.source}".rstrip()


def _exemption_arguments(violations: Sequence[Violation]) -> str:
    """Return the arguments that exempt violations: `train` or `mutable` with names, or else `allow` with the rule."""
    allow: list[str] = []
    train: list[str] = []
    mutable: list[str] = []
    for violation in violations:
        if violation.train and all(violation.train):  # no glob matches the model itself, whose path is empty
            train += violation.train
        elif violation.mutable:
            mutable += violation.mutable
        elif violation.rule != "unused-exemption":
            allow.append(violation.rule)
    globs = {"train": narrowest_globs(train), "mutable": narrowest_globs(mutable)}
    arguments = {"allow": list(dict.fromkeys(allow)), **globs}
    return ", ".join(f"{name}={json.dumps(values, ensure_ascii=False)}" for name, values in arguments.items() if values)


def rules_table(rules: Iterable[Rule] = RULES) -> str:
    """Return the table of rules for `--evalmode-rules`: when each rule fires, and how to fix a violation."""
    return "\n\n".join(
        f"{rule.name} ({rule.level})\n  fires when {rule.fires_when}\n  fix: {rule.remedy}" for rule in rules
    )
