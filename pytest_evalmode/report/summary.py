"""The session's record -> the section that ends a run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from pytest_evalmode.policy import Policy
from pytest_evalmode.report.baseline import KnownViolations, is_known
from pytest_evalmode.report.causes import CauseSummary, summarize_causes
from pytest_evalmode.report.ledger import Ledger
from pytest_evalmode.rules import RULE_NAMES
from pytest_evalmode.rules.exemptions import format_exemption
from pytest_evalmode.rules.wording import plural

_MOST_CAUSES = 5
_MOST_STALE = 10
_MOST_SLOW = 10

Record = Mapping[str, Any]


class Line(NamedTuple):
    """A line of the terminal, and pytest's name of its colour."""

    text: str
    color: str = ""


def headline(ledger: Ledger, known: KnownViolations | None) -> Line:
    """What was guarded and what was found, in one line."""
    totals = ledger.totals()
    guarded = [test for test in ledger.tests if test["guarded"]]
    found = sum(len(test["violations"]) for test in ledger.tests)
    old = sum(is_known(test, violation, known) for test in ledger.tests for violation in test["violations"])
    hidden = any(test["unjudged"] or test["dropped"] for test in ledger.tests)
    if found:
        said = f"{plural(found, 'violation')} in {plural(int(totals['violated']), 'test')}"
    else:
        said = "no violation" if hidden else "all clean"
    if known is not None:
        said += f", {old} known, {found - old} new"
    ran = (
        f"{plural(len(guarded), 'test')} guarded, {plural(int(totals['models']), 'model')}, "
        f"{plural(int(totals['forwards']), 'forward')}"
    )
    colour = "red" if found > old else "yellow" if found or hidden else "green"
    return Line(f"{ran}: {said} ({_cost(ledger, float(totals['seconds']))})", colour)


def _cost(ledger: Ledger, seconds: float) -> str:
    read, unread = (sum(test[how] for test in ledger.tests) for how in ("read", "unread"))
    took = f"guarding took {seconds:.2f} s"
    if unread:
        return f"{took}; {_size(read)} read, {_size(unread)} known unwritten by the kernel's write tracking"
    return f"{took}; {_size(read)} read in full" if read else took


def _size(number: int) -> str:
    return f"{number / 1e9:.1f} GB" if number >= 1e9 else f"{number / 1e6:.1f} MB"


def detail_lines(ledger: Ledger, known: KnownViolations | None, *, verbose: bool = False) -> Iterator[Line]:
    """What a reader may want to know besides: by rule and by cause, what was dropped, and what was exempted."""
    unjudged = sum(test["unjudged"] for test in ledger.tests)
    if unjudged:
        told = f"the guard failed in {plural(unjudged, 'test')}: whether the inference was clean there is not known"
        yield Line(told, "yellow")
    rules = Counter(violation["rule"] for test in ledger.tests for violation in test["violations"])
    if rules:
        yield Line("by rule: " + ", ".join(f"{rule} {number}" for rule, number in rules.most_common()))
        yield from _by_cause(ledger, most=None if verbose else _MOST_CAUSES)
        explained = next((rule for rule, _ in rules.most_common() if rule in RULE_NAMES), None)
        if explained:
            yield Line(f"more on a rule: pytest --evalmode-rules {explained}")
    if verbose:
        for test in ledger.tests:
            for violation in test["violations"]:
                if is_known(test, violation, known):
                    yield Line(f"known: {test['nodeid']}  {violation['rule']}: {violation['message']}")
    dropped = [test["dropped"] for test in ledger.tests if test["dropped"]]
    if dropped:
        told = f"dropped by a hook: {plural(sum(dropped), 'violation')} in {plural(len(dropped), 'test')}"
        yield Line(told, "yellow")
    used: Counter[str] = Counter(map(_exemption, (test for test in ledger.tests if test["exemptions"])))
    for exemption, tests in sorted(used.items()):
        yield Line(f"exempted in {plural(tests, 'test')}: {exemption}")
    timed = sum(test["timed"] for test in ledger.tests)
    if timed:
        told = f"the guard is inside what pytest-benchmark timed in {plural(timed, 'test')}"
        yield Line(f"{told}: compare with --evalmode=off", "yellow")


def _by_cause(ledger: Ledger, most: int | None) -> Iterator[Line]:
    """Each root cause once, with the tests that it explains; who has but one test has read of it there."""
    shared = [
        (cause, place) for cause in summarize_causes(ledger.tests) if len(cause.tests) > 1 and (place := _place(cause))
    ]
    if shared:
        yield Line("by cause:")
    for cause, place in shared[:most]:
        yield Line(f"  {place}  {', '.join(cause.rules)} in {plural(len(cause.tests), 'test')}")
    if shared[most or len(shared) :]:
        yield Line(f"  and {len(shared) - (most or 0)} more causes (-v shows all)")


def _place(cause: CauseSummary) -> str:
    return ", ".join(filter(None, (cause.name, cause.at)))


def _exemption(test: Record) -> str:
    return ", ".join(test["exemptions"]) + (f" ({test['reason']})" if test["reason"] else "")


def slowest_guards(ledger: Ledger, most: int | None) -> Iterator[Line]:
    """The guards that cost most, for `--durations`."""
    guarded = sorted(ledger.tests, key=lambda test: -test["seconds"])[: most or _MOST_SLOW]
    if guarded:
        yield Line(f"slowest {plural(len(guarded), 'guard')}:")
    for test in guarded:
        yield Line(f"  {test['seconds']:.2f}s  {test['nodeid']}")


def stale_entries(entries: list[tuple[str, str]], file: str, *, verbose: bool = False) -> Iterator[Line]:
    """The entries of the baseline that are mended."""
    shown = entries if verbose else entries[:_MOST_STALE]
    for nodeid, broken in shown:
        yield Line(f"stale: {nodeid} no longer breaks {broken}", "yellow")
    if len(entries) > len(shown):
        yield Line(f"stale: and {len(entries) - len(shown)} more (-v shows all)", "yellow")
    if entries:
        yield Line(f"to take out of {file} what is stale, run: pytest --evalmode-update-baseline", "yellow")


def unused_ini_exemptions(ledger: Ledger, policy: Policy) -> Iterator[Line]:
    """The exemptions of the ini that no test needed."""
    used = {exemption for test in ledger.tests for exemption in test["exemptions"]}
    for exemption in map(format_exemption, policy.exemptions):
        if exemption not in used:
            yield Line(f"unused-exemption: no test needed {exemption} of the ini (evalmode_...): take it out")
