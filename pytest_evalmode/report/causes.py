"""Violations of many tests -> what to mend first: one line, fixture or model, and the tests that it explains."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pytest_evalmode.rules import RULE_NAMES

Test = Mapping[str, Any]
Violation = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Cause:
    """Where to mend something, how, and what it explains."""

    what: str
    """`fixture model`, say; empty where the line says it all."""
    at: str | None
    message: str
    """Of the first violation, as an example."""
    remedy: str
    rules: tuple[str, ...]
    tests: tuple[str, ...]
    """Their node ids."""
    test: str
    """The first of them, whose lines can be shown."""


def causes(tests: Iterable[Test]) -> list[Cause]:
    """The root causes of what was found, those that explain most tests first."""
    found: dict[tuple[str, str, str | None], list[tuple[Test, Violation, list[str]]]] = {}
    for test in tests:
        for violation, explained in rooted(test["violations"]):
            what, at = _place(test, violation)
            rules = [each["rule"] for each in (violation, *explained)]
            found.setdefault((violation["rule"], what, at), []).append((test, violation, rules))
    merged = [_cause(what, at, entries) for (_, what, at), entries in found.items()]
    return sorted(merged, key=lambda cause: (-len(cause.tests), _order(cause.rules[0])))


def rooted(violations: Iterable[Violation]) -> list[tuple[Violation, list[Violation]]]:
    """The violations that no other of the test explains, each with those that it explains.

    Training mode explains the change of a tensor of a module that was in training mode.
    """
    violations = list(violations)
    training = {v["model"]: v for v in violations if v["rule"] == "train-mode"}
    explained: dict[int, list[Violation]] = {}
    roots = []
    for violation in violations:
        cause = training.get(violation["model"])
        if cause is not None and violation["rule"] in _CONSEQUENCES and _explains(cause, violation):
            explained.setdefault(id(cause), []).append(violation)
        else:
            roots.append(violation)
    return [(root, explained.get(id(root), [])) for root in roots]


_CONSEQUENCES = frozenset({"state-mutated", "buffer-mutated"})


def _explains(training: Violation, changed: Violation) -> bool:
    modules = {subject.rpartition(" (")[0] for subject in training["subjects"]}
    return all(subject.rpartition(".")[0] in modules for subject in changed["subjects"])


def _place(test: Test, violation: Violation) -> tuple[str, str | None]:
    """What is to be mended, and its line: what switched the mode, else the fixture that handed the model over so.

    Else the line at fault in the model, else the call; the call itself comes first for autograd, which it should stop.
    """
    shown = test.get("shown", {})
    since = violation["details"].get("since")
    if since:
        return "", since
    between = violation["details"].get("between")
    if between:
        return between[0], None
    model = violation["model"] or ""
    fixtures = shown.get("fixtures", {})
    if violation["rule"] == "train-mode":
        for name in (model, model.partition(".")[0], model.partition("[")[0]):
            if name in fixtures:
                return f"fixture {name}", fixtures[name]
    elif violation["rule"] in _OF_THE_MODEL and violation["cause"]:
        return "", violation["cause"]
    return ("", violation["at"]) if violation["at"] else (model, violation["cause"])


_OF_THE_MODEL = frozenset({"batch-stats", "random-forward", "unregistered-module", "attribute-mutated"})


def _cause(what: str, at: str | None, entries: list[tuple[Test, Violation, list[str]]]) -> Cause:
    _, violation, _ = entries[0]
    return Cause(
        what=what,
        at=at,
        message=violation["message"],
        remedy=violation["remedy"],
        rules=tuple(sorted({rule for _, _, rules in entries for rule in rules}, key=_order)),
        tests=tuple(dict.fromkeys(test["nodeid"] for test, _, _ in entries)),
        test=entries[0][0]["nodeid"],
    )


def _order(rule: str) -> tuple[int, str]:
    """The rules in the order in which they are told, a team's own last."""
    return RULE_NAMES.index(rule) if rule in RULE_NAMES else len(RULE_NAMES), rule
