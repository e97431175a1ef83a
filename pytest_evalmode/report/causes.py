"""Root causes: which violation explains which, where to fix it, and which tests one cause explains.

The failure text, the summary, the HTML report and the GitHub step summary all take their causes from here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from pytest_evalmode.rules import RULE_NAMES, Violation

ViolationRecord = Mapping[str, Any]
"""A violation in the record of a test."""


class RootCause(NamedTuple):
    """The identity of a root cause: violations with equal root causes disappear together."""

    rule: str
    """The rule that the cause breaks; its consequences may break other rules."""
    name: str
    """A fixture, a test or a model, for example `fixture model`; empty if the line is enough."""
    at: str | None


def root_causes(violations: Sequence[Violation]) -> list[RootCause]:
    """Return the root cause of each violation."""
    return [RootCause(explanation.rule, *_place(explanation)) for explanation in find_explanations(violations)]


def find_explanations(violations: Sequence[Violation]) -> list[Violation]:
    """Return for each violation the one that explains it: an earlier one, or else the violation itself."""
    explanations: list[Violation] = []
    for number, violation in enumerate(violations):
        earlier = zip(violations[:number], explanations, strict=True)
        causes = (explanation for other, explanation in earlier if _explains(other, violation))
        explanations.append(next(causes, violation))
    return explanations


def _explains(cause: Violation, other: Violation) -> bool:
    """Whether a violation of the same model, or of one around it, is a consequence of this one."""
    if cause.rule not in other.because:
        return False
    names = (cause.model, *(subject.partition(" ")[0] for subject in cause.subjects))
    return any(name is not None and (name == other.model or name.startswith(f"{other.model}.")) for name in names)


def _place(cause: Violation) -> tuple[str, str | None]:
    """Return where to fix a violation: a name and a line.

    That is the first of these that is known: the line that switched the mode, exported the graph or changed the state;
    the fixture that provided a model in training mode; the line at fault in the model; the call.  Autograd is always
    fixed at the call.
    """
    fixture = (f"fixture {cause.fixture}", str(cause.fixture_at)) if cause.fixture else None
    if cause.since:
        return "", str(cause.since)
    if cause.rule == "state-drifted":
        tests = cause.details.get("changed_by") or cause.details.get("between")
        if tests:
            return str(tests[0]), None
    if cause.rule == "train-mode" and fixture:
        return fixture
    if cause.rule in _FIXED_IN_THE_MODEL and cause.cause:
        return "", str(cause.cause)
    if cause.at:
        return "", str(cause.at)
    return fixture or (cause.model or "", str(cause.cause) if cause.cause else None)


_FIXED_IN_THE_MODEL = frozenset({"batch-stats", "random-forward", "unregistered-module", "attribute-mutated"})


class CauseSummary(NamedTuple):
    """A root cause with its fix and the tests that it explains."""

    name: str
    """As in RootCause."""
    at: str | None
    message: str
    """The headline of an example, which breaks the rule of the cause itself if one does."""
    remedy: str
    rules: tuple[str, ...]
    tests: tuple[str, ...]
    """Node ids."""
    test: str
    """The node id of the example."""


def summarize_causes(tests: Iterable[Mapping[str, Any]]) -> list[CauseSummary]:
    """Return the root causes of all violations, those that explain most tests first."""
    entries: dict[RootCause, list[tuple[str, ViolationRecord]]] = {}
    for test in tests:
        for violation in test["violations"]:
            entries.setdefault(RootCause(*violation["root"]), []).append((test["nodeid"], violation))
    causes = [_summarize(root, group) for root, group in entries.items()]
    return sorted(causes, key=lambda cause: (-len(cause.tests), rule_order(cause.rules[0])))


def _summarize(root: RootCause, entries: Sequence[tuple[str, ViolationRecord]]) -> CauseSummary:
    test, violation = next((entry for entry in entries if entry[1]["rule"] == root.rule), entries[0])
    rules = sorted({violation["rule"] for _, violation in entries}, key=rule_order)
    tests = tuple(dict.fromkeys(nodeid for nodeid, _ in entries))
    return CauseSummary(root.name, root.at, violation["message"], violation["remedy"], tuple(rules), tests, test)


def group_by_cause(violations: Iterable[ViolationRecord]) -> list[tuple[ViolationRecord, list[ViolationRecord]]]:
    """Return the violations of one test that no other explains, each with its consequences."""
    entries: list[tuple[ViolationRecord, list[ViolationRecord]]] = []
    for violation in violations:
        root = violation["root"]
        rule = RootCause(*root).rule
        causes = [entry for entry in entries if entry[0]["root"] == root and entry[0]["rule"] == rule]
        if causes and violation["rule"] != rule:
            # Prefer the cause of the same model.
            max(causes, key=lambda entry: entry[0]["model"] == violation["model"])[1].append(violation)
        else:
            entries.append((violation, []))
    return entries


def rule_order(rule: str) -> tuple[int, str]:
    """Sort the rules as they are reported, user rules last."""
    return RULE_NAMES.index(rule) if rule in RULE_NAMES else len(RULE_NAMES), rule
