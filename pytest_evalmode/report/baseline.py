"""Baselines: known violations, which do not fail a test, and the format of the file that lists them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

SCHEMA = 1

ViolationKey = tuple[str, str | None]
"""A rule and the model that breaks it; None for a violation without a model, such as `global-leaked`."""
KnownViolations = Mapping[str, frozenset[ViolationKey]]
"""The known violations by node id."""


class BaselineError(ValueError):
    """A file is not a valid baseline."""

    __module__ = "pytest_evalmode"


class ObservedViolations(NamedTuple):
    """The violations of one test in this run."""

    violations: frozenset[ViolationKey]
    finished: bool = True
    """Whether the test ran to its end.  If not, a known violation that is missing may still be there."""


def observed_violations(tests: Iterable[Mapping[str, Any]]) -> dict[str, ObservedViolations]:
    """Return the violations in the records of tests, without those that an xfail mark expects."""
    return {
        test["nodeid"]: ObservedViolations(
            frozenset((v["rule"], v["model"]) for v in test["violations"] if test["outcome"] != "xfailed"),
            finished=test["finished"] and not test["unjudged"],
        )
        for test in tests
    }


def is_known(test: Mapping[str, Any], violation: Mapping[str, Any], known: KnownViolations | None) -> bool:
    """Whether the baseline lists a violation, or the xfail mark of its test expects it."""
    listed = known.get(test["nodeid"], ()) if known else ()
    return test["outcome"] == "xfailed" or (violation["rule"], violation["model"]) in listed


def parse_baseline(text: str) -> KnownViolations:
    """Return the known violations that a baseline file lists, or raise BaselineError."""
    try:
        content = json.loads(text)
    except ValueError as error:
        raise BaselineError(f"invalid JSON: {error}") from None
    if not isinstance(content, dict) or not isinstance(content.get("known"), dict):
        raise BaselineError('the table "known" is missing')
    if content.get("schema") != SCHEMA:
        raise BaselineError(f"unsupported schema {content.get('schema')!r} (expected {SCHEMA})")
    return {nodeid: frozenset(_parse_entry(nodeid, rules)) for nodeid, rules in content["known"].items()}


def _parse_entry(nodeid: str, rules: object) -> Iterator[ViolationKey]:
    if not isinstance(rules, dict):
        raise BaselineError(f"the entry of {nodeid} is not a table of rules")
    for rule, models in rules.items():
        if not isinstance(models, list) or not all(model is None or isinstance(model, str) for model in models):
            raise BaselineError(f"{rule} of {nodeid} is not a list of models")
        yield from ((rule, model) for model in models)


def format_baseline(known: KnownViolations) -> str:
    """Return the text of a baseline file: sorted, with one line per violation."""
    table: dict[str, dict[str, list[str | None]]] = {}
    for nodeid, keys in sorted(known.items()):
        for rule, model in sorted(keys, key=_sort_key):
            table.setdefault(nodeid, {}).setdefault(rule, []).append(model)
    return json.dumps({"schema": SCHEMA, "known": table}, indent=1, ensure_ascii=False) + "\n"


def _sort_key(key: ViolationKey) -> tuple[str, str]:
    return key[0], key[1] or ""  # None comes before the names of models


def find_stale(known: KnownViolations, observed: Mapping[str, ObservedViolations]) -> list[tuple[str, str]]:
    """Return the entries, as test and rule, whose test ran to its end and no longer breaks the rule."""
    stale = []
    for nodeid, keys in sorted(known.items()):
        if nodeid in observed and observed[nodeid].finished:
            fixed = sorted(keys - observed[nodeid].violations, key=_sort_key)
            stale += [(nodeid, rule if model is None else f"{rule} ({model})") for rule, model in fixed]
    return stale


def merge_observed(
    known: KnownViolations, observed: Mapping[str, ObservedViolations], is_gone: Callable[[str], bool]
) -> KnownViolations:
    """Return the updated baseline.

    A test that ran gets the violations of this run.  If it did not run to its end, it also keeps its entries, because
    they may not be fixed.  A test that did not run keeps its entries unless it no longer exists (`is_gone`).
    """
    unchanged = {nodeid: keys for nodeid, keys in known.items() if nodeid in observed or not is_gone(nodeid)}
    updated = {
        nodeid: test.violations if test.finished else test.violations | known.get(nodeid, frozenset())
        for nodeid, test in observed.items()
    }
    return {nodeid: keys for nodeid, keys in {**unchanged, **updated}.items() if keys}
