"""Known violations, which do not fail; and the file that lists them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

SCHEMA = 1

ViolationKey = tuple[str, str | None]
"""A rule and the model that breaks it; None where it is nobody's: the state of torch itself, say."""
KnownViolations = Mapping[str, frozenset[ViolationKey]]
"""What tests are known to break, by their node ids."""


class BaselineError(ValueError):
    """What is said to be a baseline is none."""


@dataclass(frozen=True, slots=True)
class ObservedViolations:
    """What a test was seen to break."""

    violations: frozenset[ViolationKey]
    finished: bool = True
    """Whether it ran to its end: if not, what it is known to break may only not have been reached."""


def is_known(test: Mapping[str, Any], violation: Mapping[str, Any], known: KnownViolations | None) -> bool:
    """Whether it is nothing new: a baseline, if there is one, lists it, or the xfail mark of its test expects it."""
    listed = known.get(test["nodeid"], ()) if known else ()
    return test["outcome"] == "xfailed" or (violation["rule"], violation["model"]) in listed


def parse_baseline(text: str) -> KnownViolations:
    """Read a baseline.  Raises BaselineError, which says what is wrong with it."""
    try:
        content = json.loads(text)
    except ValueError as error:
        raise BaselineError(f"it is no JSON: {error}") from None
    if not isinstance(content, dict) or not isinstance(content.get("known"), dict):
        raise BaselineError("it has no table of known violations")
    if content.get("schema") != SCHEMA:
        raise BaselineError(f"its schema is {content.get('schema')!r}; this version knows {SCHEMA}")
    return {nodeid: frozenset(_broken(nodeid, rules)) for nodeid, rules in content["known"].items()}


def _broken(nodeid: str, rules: object) -> Iterator[ViolationKey]:
    if not isinstance(rules, dict):
        raise BaselineError(f"the entry of {nodeid} is no table of rules")
    for rule, models in rules.items():
        if not isinstance(models, list) or not all(model is None or isinstance(model, str) for model in models):
            raise BaselineError(f"{rule} of {nodeid} is no list of models")
        yield from ((rule, model) for model in models)


def format_baseline(known: KnownViolations) -> str:
    """A baseline as it is written: sorted, one line a violation."""
    table = {nodeid: _by_rule(broken) for nodeid, broken in sorted(known.items()) if broken}
    return json.dumps({"schema": SCHEMA, "known": table}, indent=1, ensure_ascii=False) + "\n"


def _by_rule(broken: Iterable[ViolationKey]) -> dict[str, list[str | None]]:
    table: dict[str, list[str | None]] = {}
    for rule, model in sorted(broken, key=_order):
        table.setdefault(rule, []).append(model)
    return table


def _order(broken: ViolationKey) -> tuple[str, bool, str]:
    rule, model = broken
    return rule, model is not None, model or ""


def find_stale(known: KnownViolations, seen: Mapping[str, ObservedViolations]) -> list[tuple[str, str]]:
    """The entries, as test and rule, whose test ran to its end and no longer breaks the rule."""
    found = []
    for nodeid, broken in sorted(known.items()):
        if nodeid in seen and seen[nodeid].finished:
            mended = sorted(broken - seen[nodeid].violations, key=_order)
            found += [(nodeid, rule if model is None else f"{rule} ({model})") for rule, model in mended]
    return found


def merge_observed(
    known: KnownViolations, seen: Mapping[str, ObservedViolations], is_gone: Callable[[str], bool]
) -> KnownViolations:
    """What is known now: of the tests that ran, what they were seen to break; of others what was, unless they are gone.

    A test that did not run to its end keeps its entries: nothing tells that they are mended.
    """
    kept = {nodeid: broken for nodeid, broken in known.items() if nodeid in seen or not is_gone(nodeid)}
    found = {
        nodeid: test.violations if test.finished else test.violations | known.get(nodeid, frozenset())
        for nodeid, test in seen.items()
    }
    return {nodeid: broken for nodeid, broken in {**kept, **found}.items() if broken}
