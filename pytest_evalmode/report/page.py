"""The session's record -> a page that shows it, and the panel of one test.

One file: nothing is fetched, and without script all of it can be read.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_evalmode import __version__
from pytest_evalmode.report.baseline import KnownViolations, is_known
from pytest_evalmode.report.causes import CauseSummary, group_by_cause, summarize_causes
from pytest_evalmode.report.ledger import torch_version
from pytest_evalmode.report.suggest import UnmarkedTest
from pytest_evalmode.rules import RULE_NAMES
from pytest_evalmode.rules.wording import plural

if TYPE_CHECKING:
    from jinja2 import Environment

Test = Mapping[str, Any]

_TOP = 5
"""Root causes that stand open; they and the verdict fit a screen."""


def render_page(
    tests: Sequence[Test],
    *,
    totals: Mapping[str, Any],
    mode: str,
    strict: bool,
    known: KnownViolations | None = None,
    unmarked: Sequence[UnmarkedTest] = (),
    advice: Sequence[str] = (),
    failed: Sequence[tuple[str, str]] = (),
    unguarded: int = 0,
) -> str:
    """The page of a session.  `tests` are those of a Ledger, `known` what the baseline lists.

    `unmarked` are the tests that should be guarded, with the `advice` how; in `failed` ones the guard failed,
    each with its error; of `unguarded` ones nobody asked.
    """
    by_name = {test["nodeid"]: test for test in tests}
    new, old = split_known(tests, known)
    timed = [test for test in tests if test["seconds"]]
    return (
        _templates()
        .get_template("page.html.j2")
        .render(
            verdict=verdict(tests, known),
            tone="bad" if new else "warm" if old or _is_hidden(tests) else "good",
            mode=mode,
            strict=strict,
            totals=totals,
            new=_part(new, by_name, "t"),
            known=_part(old, by_name, "k"),
            unmarked=unmarked,
            advice=advice,
            failed=failed,
            unguarded=unguarded,
            clean=[test for test in tests if not test["violations"]],
            exemptions=exemptions_in_use(tests),
            slowest=sorted(timed, key=lambda test: -float(test["seconds"]))[:5],
            evalmode=__version__,
            torch=torch_version(),
        )
    )


def render_panel(test: Test) -> str:
    """What the page shows of one test, with its style, to stand in another's page."""
    return _templates().get_template("panel.html.j2").render(test=_test(_told_whole(test), "t0"))


def split_known(tests: Iterable[Test], known: KnownViolations | None) -> tuple[list[Test], list[Test]]:
    """The tests with what is new in them, and the tests with what the baseline lists; some are in both."""
    new: list[Test] = []
    old: list[Test] = []
    for test in tests:
        whole = _told_whole(test)
        listed = [violation for violation in whole["violations"] if is_known(test, violation, known)]
        unlisted = [violation for violation in whole["violations"] if violation not in listed]
        if unlisted:
            new.append({**whole, "violations": unlisted})
        if listed:
            old.append({**whole, "violations": listed})
    return new, old


def verdict(tests: Sequence[Test], known: KnownViolations | None = None) -> str:
    """The run in one sentence."""
    new, old = split_known(tests, known)
    guarded = plural(sum(bool(test["guarded"]) for test in tests), "guarded test")
    if new:
        said = [f"{len(new)} of {plural(len(tests), 'test')} {'was' if len(new) == 1 else 'were'} not clean"]
    elif old:
        said = [f"{guarded}, nothing new"]
    elif _is_hidden(tests):
        said = [f"{guarded}, no violation"]
    elif any(test["guarded"] for test in tests):
        said = [f"{guarded}, all clean"]
    else:
        said = ["no test was guarded"]
    dropped = sum(test["dropped"] for test in tests)
    unjudged = sum(bool(test["unjudged"]) for test in tests)
    if old:
        said.append(f"{plural(sum(len(test['violations']) for test in old), 'known violation')}")
    if dropped:
        said.append(f"{plural(dropped, 'violation')} dropped by a hook")
    if unjudged:
        said.append(f"the guard failed in {plural(unjudged, 'test')}: whether clean is not known")
    return "; ".join(said)


def exemptions_in_use(tests: Sequence[Test]) -> list[dict[str, Any]]:
    """The exemptions that excused something, each with the reason given and its tests, most used first."""
    used: dict[tuple[str, str], list[str]] = {}
    for test in tests:
        if test["exemptions"]:
            used.setdefault((", ".join(test["exemptions"]), test["reason"] or ""), []).append(test["nodeid"])
    ordered = sorted(used.items(), key=lambda item: (-len(item[1]), item[0]))
    return [{"what": what, "reason": reason, "tests": names} for (what, reason), names in ordered]


def _is_hidden(tests: Iterable[Test]) -> bool:
    """Whether there may be violations that are not told."""
    return any(test["unjudged"] or test["dropped"] for test in tests)


def _told_whole(test: Test) -> Test:
    """A test whose violations have beside them what travelled apart: what was found, and since which line."""
    shown = test["shown"]
    findings = shown.get("findings") or [violation["message"] for violation in test["violations"]]
    since = shown.get("since") or [None] * len(findings)
    violations = [
        {**violation, "finding": finding, "since": line}
        for violation, finding, line in zip(test["violations"], findings, since, strict=True)
    ]
    return {**test, "violations": violations}


def _part(tests: Sequence[Test], by_name: Mapping[str, Test], prefix: str) -> dict[str, Any]:
    """Root causes, and the tests as a grid that filters, by name.  Their anchors begin with `prefix`."""
    dirty = [_test(test, f"{prefix}{n}") for n, test in enumerate(sorted(tests, key=_by_name))]
    anchors = {test["nodeid"]: test["anchor"] for test in dirty}
    found = [_cause(cause, by_name[cause.test], anchors) for cause in summarize_causes(tests)]
    counts = Counter(rule for test in dirty for rule in test["rules"])
    rules = sorted(counts.items(), key=lambda item: _order(item[0]))
    return {
        "causes": found[:_TOP],
        "more_causes": found[_TOP:],
        "rules": rules,
        "explained": next((rule for rule, _ in rules if rule in RULE_NAMES), None),
        "columns": {rule: column for column, (rule, _) in enumerate(rules, 2)},
        "tests": dirty,
        "violations": sum(len(test["violations"]) for test in tests),
    }


def _by_name(test: Test) -> list[tuple[int, str]]:
    """In the order of people: `test_it[2]` before `test_it[10]`."""
    return [(int(part) if part.isdecimal() else -1, part) for part in re.split(r"(\d+)", test["nodeid"])]


def _cause(cause: CauseSummary, test: Test, anchors: Mapping[str, str]) -> dict[str, Any]:
    code = _code(test, cause.at)
    at_fault = next((i for i, line in enumerate(code) if line["at_fault"]), 0)
    # Of a fixture, what it makes; else the line alone.
    told = code[at_fault:] if cause.name.startswith("fixture ") else code[at_fault : at_fault + 1]
    while told and not told[-1]["text"].strip():
        told.pop()
    return {
        "what": cause.name,
        "at": cause.at,
        "message": cause.message,
        "remedy": cause.remedy,
        "rules": cause.rules,
        "code": told,
        "tests": [{"nodeid": nodeid, "anchor": anchors[nodeid]} for nodeid in cause.tests],
    }


def _test(test: Test, anchor: str) -> dict[str, Any]:
    shown = test["shown"]
    told: set[str] = set()
    entries = []
    for violation, consequences in group_by_cause(test["violations"]):
        places = [("since", violation["since"]), ("called", violation["at"]), ("in the model", violation["cause"])]
        lines = [{"label": label, "at": at, "code": _code(test, at)} for label, at in places if at and at not in told]
        told.update(line["at"] for line in lines)
        pictures = shown.get("pictures", {}) if violation["rule"] == "inputs-changed" else {}
        drawn = pictures.get(violation["subjects"][0], {}) if violation["subjects"] else {}
        entries.append({**violation, "lines": lines, "consequences": consequences, "pictures": drawn})
    return {
        "anchor": anchor,
        "nodeid": test["nodeid"],
        "outcome": test["outcome"],
        "reason": test["reason"],
        "rules": list(dict.fromkeys(violation["rule"] for violation in test["violations"])),
        "entries": entries,
        "models": [{**model, "tree": shown.get("trees", {}).get(model["name"])} for model in test["models"]],
        "events": [
            {"what": what, "model": model, "at": at, "count": count}
            for what, model, at, count in shown.get("events", ())
        ],
        "exemption": shown.get("exemption", ""),
    }


def _code(test: Test, at: str | None) -> list[dict[str, Any]]:
    first, lines = test["shown"].get("lines", {}).get(at) or (1, [])
    fault = int(at.rpartition(":")[2]) if at and lines else 0
    return [{"number": n, "text": text, "at_fault": n == fault} for n, text in enumerate(lines, first)]


def _order(rule: str) -> tuple[int, str]:
    return RULE_NAMES.index(rule) if rule in RULE_NAMES else len(RULE_NAMES), rule


@cache
def _templates() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
