"""The session's record -> a page that shows it, and the panel of one test.

One file: nothing is fetched, and without script all of it can be read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_evalmode import __version__
from pytest_evalmode.report.baseline import Known
from pytest_evalmode.report.causes import Cause, causes
from pytest_evalmode.report.ledger import torch_version
from pytest_evalmode.rules import RULE_NAMES
from pytest_evalmode.rules.wording import plural

if TYPE_CHECKING:
    from jinja2 import Environment

Test = Mapping[str, Any]

_TOP = 5
"""Root causes that stand open; they and the verdict fit a screen."""
_MOST_NAMES = 12


def page(
    tests: Sequence[Test], *, totals: Mapping[str, Any], mode: str, strict: bool, known: Known | None = None
) -> str:
    """The page of a session.  `tests` are those of a Ledger, `known` what the baseline lists."""
    view = {**view_of(tests, totals=totals, mode=mode, strict=strict), "known": known_of(tests, known or {})}
    return _templates().get_template("page.html.j2").render(**view, evalmode=__version__, torch=torch_version())


def panel(test: Test) -> str:
    """What the page shows of one test, with its style, to stand in another's page."""
    return _templates().get_template("panel.html.j2").render(test=_test(test, 0))


def view_of(tests: Sequence[Test], *, totals: Mapping[str, Any], mode: str, strict: bool) -> dict[str, Any]:
    """What stands on the page, in its order."""
    dirty = [_test(test, number) for number, test in enumerate(tests) if test["violations"]]
    numbers = {test["nodeid"]: test["number"] for test in dirty}
    by_name = {test["nodeid"]: test for test in tests}
    found = [_cause(cause, by_name[cause.test], numbers) for cause in causes(tests)]
    rules = Counter(rule for test in dirty for rule in test["rules"])
    return {
        "verdict": verdict(tests, totals),
        "is_clean": not dirty and not any(test["unjudged"] for test in tests),
        "mode": mode,
        "strict": strict,
        "totals": totals,
        "causes": found[:_TOP],
        "more_causes": found[_TOP:],
        "rules": sorted(rules.items(), key=lambda item: _order(item[0])),
        "tests": dirty,
        "clean": [test for test in tests if not test["violations"]],
        "exemptions": exemptions(tests),
        "slowest": sorted((test for test in tests if test["seconds"]), key=lambda test: -float(test["seconds"]))[:5],
    }


def verdict(tests: Sequence[Test], totals: Mapping[str, Any]) -> str:
    """The run in one sentence."""
    guarded = sum(bool(test["guarded"]) for test in tests)
    unjudged = sum(bool(test["unjudged"]) for test in tests)
    if totals["violated"]:
        was = "was" if totals["violated"] == 1 else "were"
        return f"{totals['violated']} of {plural(guarded, 'test')} {was} not clean"
    if unjudged:
        return f"the guard failed in {unjudged} of {plural(guarded, 'test')}: whether they were clean is not known"
    return f"{plural(guarded, 'guarded test')}, all clean" if guarded else "no test was guarded"


def known_of(tests: Sequence[Test], known: Known) -> list[dict[str, str]]:
    """The violations of these tests that the baseline lists."""
    return [
        {"nodeid": test["nodeid"], "rule": violation["rule"], "message": violation["message"]}
        for test in tests
        for violation in test["violations"]
        if (violation["rule"], violation["model"]) in known.get(test["nodeid"], frozenset())
    ]


def exemptions(tests: Sequence[Test]) -> list[dict[str, Any]]:
    """The exemptions that excused something, each with the reason given and its tests, most used first."""
    used: dict[tuple[str, str], list[str]] = {}
    for test in tests:
        if test["exemptions"]:
            used.setdefault((", ".join(test["exemptions"]), test["reason"] or ""), []).append(test["nodeid"])
    ordered = sorted(used.items(), key=lambda item: (-len(item[1]), item[0]))
    return [{"what": what, "reason": reason, "tests": names} for (what, reason), names in ordered]


def _cause(cause: Cause, test: Test, numbers: Mapping[str, int]) -> dict[str, Any]:
    code = _code(test, cause.at)
    at_fault = next((i for i, line in enumerate(code) if line["at_fault"]), 0)
    return {
        "what": cause.what,
        "at": cause.at,
        "message": cause.message,
        "remedy": cause.remedy,
        "rules": cause.rules,
        # A fixture's line is that of its decorator: what it is called and does comes next.
        "code": code[at_fault : at_fault + (3 if cause.what else 1)],
        "tests": [{"nodeid": nodeid, "number": numbers[nodeid]} for nodeid in cause.tests],
    }


def _test(test: Test, number: int) -> dict[str, Any]:
    shown = test["shown"]
    findings = shown.get("findings") or [violation["message"] for violation in test["violations"]]
    since = shown.get("since") or [None] * len(findings)
    told: set[str] = set()
    violations = []
    for violation, finding, switched in zip(test["violations"], findings, since, strict=True):
        places = [("since", switched), ("called", violation["at"]), ("in the model", violation["cause"])]
        lines = [{"label": label, "at": at, "code": _code(test, at)} for label, at in places if at and at not in told]
        told.update(line["at"] for line in lines)
        subjects = violation["subjects"]
        violations.append(
            {
                **violation,
                "finding": finding,
                "lines": lines,
                "subjects": subjects[:_MOST_NAMES],
                "more_subjects": len(subjects[_MOST_NAMES:]),
            }
        )
    return {
        "number": number,
        "nodeid": test["nodeid"],
        "outcome": test["outcome"],
        "reason": test["reason"],
        "seconds": test["seconds"],
        "forwards": test["forwards"],
        "rules": list(dict.fromkeys(violation["rule"] for violation in violations)),
        "violations": violations,
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
