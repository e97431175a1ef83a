"""The summary: the section that ends a run."""

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

_MAX_CAUSES = 5
_MAX_STALE = 10
_MAX_SLOW = 10

Record = Mapping[str, Any]


class Line(NamedTuple):
    """A line of the summary, and its color as pytest names it."""

    text: str
    color: str = ""


def headline(ledger: Ledger, known: KnownViolations | None) -> Line:
    """Return the first line: how much was guarded, how many violations there are, and the cost."""
    totals = ledger.totals()
    guarded = [test for test in ledger.tests if test["guarded"]]
    violations = sum(len(test["violations"]) for test in ledger.tests)
    known_count = sum(is_known(test, violation, known) for test in ledger.tests for violation in test["violations"])
    incomplete = any(test["unjudged"] or test["dropped"] for test in ledger.tests)
    if violations:
        result = f"{plural(violations, 'violation')} in {plural(int(totals['violated']), 'test')}"
    else:
        result = "no violations" if incomplete else "all clean"
    if known is not None:
        result += f", {known_count} known, {violations - known_count} new"
    counts = (
        f"{plural(len(guarded), 'test')} guarded, {plural(int(totals['models']), 'model')}, "
        f"{plural(int(totals['forwards']), 'forward')}"
    )
    color = "red" if violations > known_count else "yellow" if violations or incomplete else "green"
    return Line(f"{counts}: {result} ({_cost(ledger, float(totals['seconds']))})", color)


def _cost(ledger: Ledger, seconds: float) -> str:
    read, skipped = (sum(test[key] for test in ledger.tests) for key in ("read", "unread"))
    took = f"guarding took at least {seconds:.2f} s"
    if skipped:
        return f"{took}; read {_size(read)}, skipped {_size(skipped)} that the kernel reports as unmodified"
    return f"{took}; read {_size(read)} in full" if read else took


def _size(number: int) -> str:
    return f"{number / 1e9:.1f} GB" if number >= 1e9 else f"{number / 1e6:.1f} MB"


def detail_lines(ledger: Ledger, known: KnownViolations | None, *, verbose: bool = False) -> Iterator[Line]:
    """Yield the lines below the first: violations by rule and by cause, dropped violations, exemptions in use."""
    failed_guards = sum(test["unjudged"] for test in ledger.tests)
    if failed_guards:
        yield Line(f"the guard failed in {plural(failed_guards, 'test')}: result unknown", "yellow")
    rules = Counter(violation["rule"] for test in ledger.tests for violation in test["violations"])
    if rules:
        yield Line("by rule: " + ", ".join(f"{rule} {number}" for rule, number in rules.most_common()))
        yield from _by_cause(ledger, limit=None if verbose else _MAX_CAUSES)
        explained = next((rule for rule, _ in rules.most_common() if rule in RULE_NAMES), None)
        if explained:
            yield Line(f"to explain a rule, run: pytest --evalmode-rules {explained}")
    if verbose:
        for test in ledger.tests:
            for violation in test["violations"]:
                if is_known(test, violation, known):
                    yield Line(f"known: {test['nodeid']}  {violation['rule']}: {violation['message']}")
    dropped = [test["dropped"] for test in ledger.tests if test["dropped"]]
    if dropped:
        text = f"dropped by a hook: {plural(sum(dropped), 'violation')} in {plural(len(dropped), 'test')}"
        yield Line(text, "yellow")
    used: Counter[str] = Counter(map(_exemption, (test for test in ledger.tests if test["exemptions"])))
    for exemption, tests in sorted(used.items()):
        yield Line(f"exempted in {plural(tests, 'test')}: {exemption}")
    timed = sum(test["timed"] for test in ledger.tests)
    if timed:
        text = f"pytest-benchmark's timings include the guard in {plural(timed, 'test')}"
        yield Line(f"{text}: compare with --evalmode=off", "yellow")


def _by_cause(ledger: Ledger, limit: int | None) -> Iterator[Line]:
    """Yield the root causes that explain several tests; the failure of a single test already shows its own."""
    shared = [
        (cause, place) for cause in summarize_causes(ledger.tests) if len(cause.tests) > 1 and (place := _place(cause))
    ]
    if shared:
        yield Line("by cause:")
    for cause, place in shared[:limit]:
        yield Line(f"  {place}  {', '.join(cause.rules)} in {plural(len(cause.tests), 'test')}")
    if shared[limit or len(shared) :]:
        yield Line(f"  and {len(shared) - (limit or 0)} more causes (-v shows all)")


def _place(cause: CauseSummary) -> str:
    return ", ".join(filter(None, (cause.name, cause.at)))


def _exemption(test: Record) -> str:
    return ", ".join(test["exemptions"]) + (f" ({test['reason']})" if test["reason"] else "")


def slowest_guards(ledger: Ledger, limit: int | None) -> Iterator[Line]:
    """Yield the tests whose guards cost most, for `--durations`."""
    guarded = sorted(ledger.tests, key=lambda test: -test["seconds"])[: limit or _MAX_SLOW]
    if guarded:
        yield Line(f"slowest {plural(len(guarded), 'guard')}:")
    for test in guarded:
        yield Line(f"  {test['seconds']:.2f}s  {test['nodeid']}")


def stale_entries(entries: list[tuple[str, str]], file: str, *, verbose: bool = False) -> Iterator[Line]:
    """Yield the stale entries of the baseline, and the command that removes them."""
    shown = entries if verbose else entries[:_MAX_STALE]
    for nodeid, broken in shown:
        yield Line(f"stale: {nodeid} no longer breaks {broken}", "yellow")
    if len(entries) > len(shown):
        yield Line(f"stale: and {len(entries) - len(shown)} more (-v shows all)", "yellow")
    if entries:
        yield Line(f"to remove stale entries from {file}, run: pytest --evalmode-update-baseline", "yellow")


def unused_ini_exemptions(ledger: Ledger, policy: Policy) -> Iterator[Line]:
    """Yield the exemptions of the ini that matched nothing in any test."""
    used = {exemption for test in ledger.tests for exemption in test["exemptions"]}
    for exemption in map(format_exemption, policy.exemptions):
        if exemption not in used:
            yield Line(f"unused-exemption: no test needed {exemption} from the ini (evalmode_...); remove it")
