"""The GitHub step summary: a short form of the HTML report, as Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pytest_evalmode.report.baseline import KnownViolations
from pytest_evalmode.report.causes import CauseSummary, summarize_causes
from pytest_evalmode.report.records import totals
from pytest_evalmode.report.summary import exemptions_in_use, split_known, verdict
from pytest_evalmode.rules.wording import plural

_MAX_CAUSES = 20
_MAX_TESTS = 20
"""Tests per cause: GitHub shows at most 1 MiB per step."""


def render_step_summary(tests: Sequence[Mapping[str, Any]], known: KnownViolations | None = None) -> str:
    """Return the verdict, the root causes with the tests that each explains, and the exemptions in use."""
    lines = [f"### evalmode: {verdict(tests, known)}", ""]
    causes = summarize_causes(split_known(tests, known)[0])
    for number, cause in enumerate(causes[:_MAX_CAUSES], 1):
        lines += _cause(number, cause)
    if len(causes) > _MAX_CAUSES:
        lines += [f"and {plural(len(causes) - _MAX_CAUSES, 'more root cause')}", ""]
    used = exemptions_in_use(tests)
    if used:
        lines += ["Exemptions in use:", ""]
        for each in used:
            reason = f": {_text(each['reason'])}" if each["reason"] else ""
            lines.append(f"- {_code(each['what'])}{reason} ({plural(len(each['tests']), 'test')})")
        lines.append("")
    total = totals(tests)
    lines += [f"{plural(total['forwards'], 'forward')}; guarding took at least {total['seconds']:.2f} s", ""]
    return "\n".join(lines)


def _cause(number: int, cause: CauseSummary) -> Iterator[str]:
    where = " ".join(filter(None, (_text(cause.name), _code(cause.at) if cause.at else "")))
    yield f"{number}. **{where or _text(cause.message)}** ({', '.join(cause.rules)}): {_text(cause.message)}  "
    yield f"   fix: {_text(cause.remedy)}"
    yield f"   <details><summary>explains {plural(len(cause.tests), 'test')}</summary>"
    yield ""
    yield from (f"   - {_code(nodeid)}" for nodeid in cause.tests[:_MAX_TESTS])
    if len(cause.tests) > _MAX_TESTS:
        yield f"   - and {len(cause.tests) - _MAX_TESTS} more"
    yield ""
    yield "   </details>"
    yield ""


def _text(text: str) -> str:
    """Escape text for Markdown and HTML, on one line."""
    return re.sub(r"([\\`*_{}\[\]<>#|~&])", r"\\\1", " ".join(text.split()))


def _code(text: str) -> str:
    """Return a code span, with more backticks than the text contains in a row."""
    text = " ".join(text.split())
    longest = max((len(backticks) for backticks in re.findall("`+", text)), default=0)
    ticks = "`" * (longest + 1)
    pad = " " if longest else ""
    return f"{ticks}{pad}{text}{pad}{ticks}"
