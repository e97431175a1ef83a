"""The HTML report of a session, and the panel of one test for pytest-html.

The page is one file: it fetches nothing, and it is readable without JavaScript.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_evalmode import __version__
from pytest_evalmode.report.baseline import KnownViolations
from pytest_evalmode.report.causes import CauseSummary, group_by_cause, rule_order, summarize_causes
from pytest_evalmode.report.records import Record, torch_version, totals
from pytest_evalmode.report.suggest import UnmarkedTest
from pytest_evalmode.report.summary import exemptions_in_use, may_hide_violations, split_known, verdict
from pytest_evalmode.rules import RULE_NAMES

if TYPE_CHECKING:
    from jinja2 import Environment

_TOP_CAUSES = 5
"""Root causes that are not collapsed; with the verdict, they fit a screen."""


def render_page(
    tests: Sequence[Record],
    *,
    mode: str,
    strict: bool,
    known: KnownViolations | None = None,
    unmarked: Sequence[UnmarkedTest] = (),
    advice: Sequence[str] = (),
    failed: Sequence[tuple[str, str]] = (),
    unguarded: int = 0,
) -> str:
    """Return the HTML report of a session, from the records of its guarded tests and the unguarded tests that passed.

    For `--evalmode-suggest` it shows unmarked tests, advice on how to guard them, and those in which the guard failed.
    """
    by_name = {test["nodeid"]: test for test in tests}
    new, old = split_known(tests, known)
    timed = [test for test in tests if test["seconds"]]
    return (
        _templates()
        .get_template("page.html.j2")
        .render(
            verdict=verdict(tests, known),
            tone="bad" if new else "warm" if old or may_hide_violations(tests) else "good",
            mode=mode,
            strict=strict,
            totals=totals(tests),
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


def render_panel(test: Record) -> str:
    """Return the part of the report about one test, with its style, to be included in another page."""
    return _templates().get_template("panel.html.j2").render(test=_test(test, "t0"))


def _part(tests: Sequence[Record], by_name: Mapping[str, Record], prefix: str) -> dict[str, Any]:
    """Return the data of one section: root causes and the grid of tests.  Anchors begin with `prefix`."""
    shown = [_test(test, f"{prefix}{n}") for n, test in enumerate(tests)]
    anchors = {test["nodeid"]: test["anchor"] for test in shown}
    causes = [_cause(cause, by_name[cause.test], anchors) for cause in summarize_causes(tests)]
    counts = Counter(rule for test in shown for rule in test["rules"])
    rules = sorted(counts.items(), key=lambda item: rule_order(item[0]))
    return {
        "causes": causes[:_TOP_CAUSES],
        "more_causes": causes[_TOP_CAUSES:],
        "rules": rules,
        "explained": next((rule for rule, _ in rules if rule in RULE_NAMES), None),
        "tests": shown,
        "violations": sum(len(test["violations"]) for test in tests),
    }


def _cause(cause: CauseSummary, test: Record, anchors: Mapping[str, str]) -> dict[str, Any]:
    code = _code(test, cause.at)
    at_fault = next((i for i, line in enumerate(code) if line["at_fault"]), 0)
    # Show a fixture as a whole, because its last line creates the model; otherwise only the line at fault.
    shown = code[at_fault:] if cause.name.startswith("fixture ") else code[at_fault : at_fault + 1]
    while shown and not shown[-1]["text"].strip():
        shown.pop()
    tests = [{"nodeid": nodeid, "anchor": anchors[nodeid]} for nodeid in cause.tests]
    return {**cause._asdict(), "code": shown, "tests": tests}


def _test(test: Record, anchor: str) -> dict[str, Any]:
    page_data = test["shown"]
    shown: set[str] = set()
    entries = []
    for violation, consequences in group_by_cause(test["violations"]):
        places = [("since", violation["since"]), ("called", violation["at"]), ("in the model", violation["cause"])]
        lines = [{"label": label, "at": at, "code": _code(test, at)} for label, at in places if at and at not in shown]
        shown.update(line["at"] for line in lines)
        pictures = page_data.get("pictures", {}) if violation["rule"] == "inputs-changed" else {}
        of_subject = pictures.get(violation["subjects"][0], {}) if violation["subjects"] else {}
        entries.append({**violation, "lines": lines, "consequences": consequences, "pictures": of_subject})
    return {
        **test,
        "anchor": anchor,
        "rules": list(dict.fromkeys(violation["rule"] for violation in test["violations"])),
        "entries": entries,
        "models": [{**model, "tree": page_data.get("trees", {}).get(model["name"])} for model in test["models"]],
        "events": page_data.get("events", ()),
        "exemption": page_data.get("exemption", ""),
    }


def _code(test: Record, at: str | None) -> list[dict[str, Any]]:
    first, lines = test["shown"].get("lines", {}).get(at) or (1, [])
    fault = int(at.rpartition(":")[2]) if at and lines else 0
    return [{"number": n, "text": text, "at_fault": n == fault} for n, text in enumerate(lines, first)]


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
