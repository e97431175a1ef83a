"""The summary of a run: the section that ends it, and the facts that the other reports show too."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from pytest_evalmode.policy import Policy
from pytest_evalmode.report.baseline import KnownViolations, is_known
from pytest_evalmode.report.causes import summarize_causes
from pytest_evalmode.report.records import Record, totals
from pytest_evalmode.rules import RULE_NAMES
from pytest_evalmode.rules.exemptions import format_exemption
from pytest_evalmode.rules.wording import plural

_MAX_CAUSES = 5
_MAX_STALE = 10


class Line(NamedTuple):
    """A line of the summary, and its color as pytest names it."""

    text: str
    color: str = ""


def headline(tests: Sequence[Record], known: KnownViolations | None) -> Line:
    """Return the first line: how much was guarded, how many violations there are, and the cost."""
    total = totals(tests)
    guarded = [test for test in tests if test["guarded"]]
    violations = sum(len(test["violations"]) for test in tests)
    known_count = sum(is_known(test, violation, known) for test in tests for violation in test["violations"])
    incomplete = may_hide_violations(tests)
    if violations:
        result = f"{plural(violations, 'violation')} in {plural(total['violated'], 'test')}"
    else:
        result = "no violations" if incomplete else "all clean"
    if known is not None:
        result += f", {known_count} known, {violations - known_count} new"
    counts = (
        f"{plural(len(guarded), 'test')} guarded, {plural(total['models'], 'model')}, "
        f"{plural(total['forwards'], 'forward')}"
    )
    color = "red" if violations > known_count else "yellow" if violations or incomplete else "green"
    return Line(f"{counts}: {result} (guarding took at least {total['seconds']:.2f} s)", color)


def split_known(tests: Iterable[Record], known: KnownViolations | None) -> tuple[list[Record], list[Record]]:
    """Return the tests with their new violations, and the tests with their known ones; a test may be in both."""
    new: list[Record] = []
    old: list[Record] = []
    for test in tests:
        listed = [violation for violation in test["violations"] if is_known(test, violation, known)]
        unlisted = [violation for violation in test["violations"] if violation not in listed]
        if unlisted:
            new.append({**test, "violations": unlisted})
        if listed:
            old.append({**test, "violations": listed})
    return new, old


def verdict(tests: Sequence[Record], known: KnownViolations | None = None) -> str:
    """Return the result of the run in one sentence."""
    new, old = split_known(tests, known)
    guarded = plural(sum(bool(test["guarded"]) for test in tests), "guarded test")
    if new:
        parts = [f"{len(new)} of {plural(len(tests), 'test')} {'was' if len(new) == 1 else 'were'} not clean"]
    elif old:
        parts = [f"{guarded}, nothing new"]
    elif may_hide_violations(tests):
        parts = [f"{guarded}, no violations"]
    elif any(test["guarded"] for test in tests):
        parts = [f"{guarded}, all clean"]
    else:
        parts = ["no test was guarded"]
    dropped = sum(test["dropped"] for test in tests)
    failed_guards = sum(bool(test["unjudged"]) for test in tests)
    if old:
        parts.append(f"{plural(sum(len(test['violations']) for test in old), 'known violation')}")
    if dropped:
        parts.append(f"{plural(dropped, 'violation')} dropped by a hook")
    if failed_guards:
        parts.append(f"the guard failed in {plural(failed_guards, 'test')}: result unknown")
    return "; ".join(parts)


def exemptions_in_use(tests: Sequence[Record]) -> list[dict[str, Any]]:
    """Return the exemptions that suppressed a violation, each with its reason and tests, the most used first."""
    used: dict[tuple[str, str], list[str]] = {}
    for test in tests:
        if test["exemptions"]:
            used.setdefault((", ".join(test["exemptions"]), test["reason"] or ""), []).append(test["nodeid"])
    ordered = sorted(used.items(), key=lambda item: (-len(item[1]), item[0]))
    return [{"what": what, "reason": reason, "tests": nodeids} for (what, reason), nodeids in ordered]


def may_hide_violations(tests: Iterable[Record]) -> bool:
    """Whether there may be violations that are not reported."""
    return any(test["unjudged"] or test["dropped"] for test in tests)


def detail_lines(tests: Sequence[Record]) -> Iterator[Line]:
    """Yield the lines below the first: violations by rule and by cause, dropped violations, exemptions in use."""
    failed_guards = sum(test["unjudged"] for test in tests)
    if failed_guards:
        yield Line(f"the guard failed in {plural(failed_guards, 'test')}: result unknown", "yellow")
    rules = Counter(violation["rule"] for test in tests for violation in test["violations"])
    if rules:
        yield Line("by rule: " + ", ".join(f"{rule} {number}" for rule, number in rules.most_common()))
        yield from _by_cause(tests)
        explained = next((rule for rule, _ in rules.most_common() if rule in RULE_NAMES), None)
        if explained:
            yield Line(f"to explain a rule, run: pytest --evalmode-rules {explained}")
    dropped = [test["dropped"] for test in tests if test["dropped"]]
    if dropped:
        text = f"dropped by a hook: {plural(sum(dropped), 'violation')} in {plural(len(dropped), 'test')}"
        yield Line(text, "yellow")
    for used in exemptions_in_use(tests):
        reason = f" ({used['reason']})" if used["reason"] else ""
        yield Line(f"exempted in {plural(len(used['tests']), 'test')}: {used['what']}{reason}")


def _by_cause(tests: Sequence[Record]) -> Iterator[Line]:
    """Yield the root causes that explain several tests; the failure of a single test already shows its own."""
    shared = [cause for cause in summarize_causes(tests) if len(cause.tests) > 1 and (cause.name or cause.at)]
    if shared:
        yield Line("by cause:")
    for cause in shared[:_MAX_CAUSES]:
        place = ", ".join(filter(None, (cause.name, cause.at)))
        yield Line(f"  {place}  {', '.join(cause.rules)} in {plural(len(cause.tests), 'test')}")
    if len(shared) > _MAX_CAUSES:
        yield Line(f"  and {len(shared) - _MAX_CAUSES} more causes")


def stale_entries(entries: list[tuple[str, str]], file: str) -> Iterator[Line]:
    """Yield the stale entries of the baseline, and the command that removes them."""
    for nodeid, broken in entries[:_MAX_STALE]:
        yield Line(f"stale: {nodeid} no longer breaks {broken}", "yellow")
    if len(entries) > _MAX_STALE:
        yield Line(f"stale: and {len(entries) - _MAX_STALE} more", "yellow")
    if entries:
        yield Line(f"to remove stale entries from {file}, run: pytest --evalmode-update-baseline", "yellow")


def unused_ini_exemptions(tests: Sequence[Record], policy: Policy) -> Iterator[Line]:
    """Yield the exemptions of the ini that matched nothing in any test."""
    used = {exemption for test in tests for exemption in test["exemptions"]}
    for exemption in map(format_exemption, policy.exemptions):
        if exemption not in used:
            yield Line(f"unused-exemption: no test needed {exemption} from the ini (evalmode_...); remove it")
