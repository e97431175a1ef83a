"""What is to be mended: the root cause of each violation of a test, and what one cause explains in many tests.

All that tells of causes asks here: the failure text, the summary, the page and the step summary.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from pytest_evalmode.rules import RULE_NAMES, Violation

Test = Mapping[str, Any]
Recorded = Mapping[str, Any]
"""A violation in the record of a test."""


class RootCause(NamedTuple):
    """What is the same of all that goes away together."""

    rule: str
    """The rule that the cause breaks; what follows from it may break others."""
    name: str
    """`fixture model`, say; empty where the line says it all."""
    at: str | None


def root_causes(violations: Sequence[Violation]) -> list[RootCause]:
    """Of each violation its root cause."""
    return [RootCause(cause.rule, *_place(cause)) for cause in find_explanations(violations)]


def find_explanations(violations: Sequence[Violation]) -> list[Violation]:
    """Of each violation the one that explains it: itself, where none before it does."""
    found: list[Violation] = []
    for number, violation in enumerate(violations):
        before = (cause for other, cause in zip(violations[:number], found, strict=True) if _explains(other, violation))
        found.append(next(before, violation))
    return found


def _explains(cause: Violation, other: Violation) -> bool:
    """Whether another is a consequence: of the same model, or of a part of it that is a model of its own."""
    if cause.rule not in other.because:
        return False
    mine = (cause.model, *(subject.partition(" ")[0] for subject in cause.subjects))
    return any(name is not None and (name == other.model or name.startswith(f"{other.model}.")) for name in mine)


def _place(cause: Violation) -> tuple[str, str | None]:
    """What is to be mended, and its line.

    What switched the mode, made the graph or wrote; else the fixture that handed a model over in training mode; else
    the line at fault in the model; else the call.  Autograd is for the call to stop, wherever it was recorded.
    """
    fixture = (f"fixture {cause.fixture}", str(cause.fixture_at)) if cause.fixture else None
    if cause.since:
        return "", str(cause.since)
    if cause.rule == "state-drifted":
        ran = cause.details.get("changed_by") or cause.details.get("between")
        if ran:
            return str(ran[0]), None
    if cause.rule == "train-mode" and fixture:
        return fixture
    if cause.rule in _OF_THE_MODEL and cause.cause:
        return "", str(cause.cause)
    if cause.at:
        return "", str(cause.at)
    return fixture or (cause.model or "", str(cause.cause) if cause.cause else None)


_OF_THE_MODEL = frozenset({"batch-stats", "random-forward", "unregistered-module", "attribute-mutated"})


@dataclass(frozen=True, slots=True)
class CauseSummary:
    """Where to mend something, how, and what it explains."""

    name: str
    """`fixture model`, say; empty where the line says it all."""
    at: str | None
    message: str
    """Of the first violation that is the cause itself, as an example."""
    remedy: str
    rules: tuple[str, ...]
    tests: tuple[str, ...]
    """Their node ids."""
    test: str
    """That of the example, whose lines can be shown."""


def summarize_causes(tests: Iterable[Test]) -> list[CauseSummary]:
    """The root causes of what was found, those that explain most tests first."""
    found: dict[RootCause, list[tuple[Test, Recorded]]] = {}
    for test in tests:
        for violation in test["violations"]:
            found.setdefault(_root(violation), []).append((test, violation))
    merged = [_cause(root, entries) for root, entries in found.items()]
    return sorted(merged, key=lambda cause: (-len(cause.tests), _order(cause.rules[0])))


def group_by_cause(violations: Iterable[Recorded]) -> list[tuple[Recorded, list[Recorded]]]:
    """The violations that no other of these explains, each with those that it explains."""
    entries: list[tuple[Recorded, list[Recorded]]] = []
    for violation in violations:
        root = _root(violation)
        alike = [entry for entry in entries if _root(entry[0]) == root and entry[0]["rule"] == root.rule]
        if alike and violation["rule"] != root.rule:
            max(alike, key=lambda entry: entry[0]["model"] == violation["model"])[1].append(violation)
        else:
            entries.append((violation, []))
    return entries


def _root(violation: Recorded) -> RootCause:
    return RootCause(*violation["root"])


def _cause(root: RootCause, entries: list[tuple[Test, Recorded]]) -> CauseSummary:
    test, violation = next((entry for entry in entries if entry[1]["rule"] == root.rule), entries[0])
    return CauseSummary(
        name=root.name,
        at=root.at,
        message=violation["message"],
        remedy=violation["remedy"],
        rules=tuple(sorted({violation["rule"] for _, violation in entries}, key=_order)),
        tests=tuple(dict.fromkeys(test["nodeid"] for test, _ in entries)),
        test=test["nodeid"],
    )


def _order(rule: str) -> tuple[int, str]:
    """The rules in the order in which they are told, a team's own last."""
    return RULE_NAMES.index(rule) if rule in RULE_NAMES else len(RULE_NAMES), rule
