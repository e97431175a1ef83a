"""The session's record -> the Markdown that GitHub shows of a job: the page in short."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pytest_evalmode.report.baseline import KnownViolations
from pytest_evalmode.report.causes import CauseSummary, summarize_causes
from pytest_evalmode.report.page import exemptions_in_use, split_known, verdict
from pytest_evalmode.rules.wording import plural

_MOST_CAUSES = 20
_MOST_TESTS = 20
"""Of each cause: GitHub shows no more than 1 MiB of a step."""


def render_step_summary(
    tests: Sequence[Mapping[str, Any]], totals: Mapping[str, Any], known: KnownViolations | None = None
) -> str:
    """The verdict, what to mend first with the tests that it explains, and the exemptions in use."""
    lines = [f"### evalmode: {verdict(tests, known)}", ""]
    found = summarize_causes(split_known(tests, known)[0])
    for number, cause in enumerate(found[:_MOST_CAUSES], 1):
        lines += _cause(number, cause)
    if len(found) > _MOST_CAUSES:
        lines += [f"and {plural(len(found) - _MOST_CAUSES, 'more root cause')}", ""]
    used = exemptions_in_use(tests)
    if used:
        lines += ["Exemptions in use:", ""]
        for each in used:
            reason = f": {_text(each['reason'])}" if each["reason"] else ""
            lines.append(f"- {_code(each['what'])}{reason} ({plural(len(each['tests']), 'test')})")
        lines.append("")
    lines += [f"{plural(int(totals['forwards']), 'forward')}; guarding took {totals['seconds']:.2f} s", ""]
    return "\n".join(lines)


def _cause(number: int, cause: CauseSummary) -> Iterator[str]:
    where = " ".join(filter(None, (_text(cause.name), _code(cause.at) if cause.at else "")))
    yield f"{number}. **{where or _text(cause.message)}** ({', '.join(cause.rules)}): {_text(cause.message)}  "
    yield f"   fix: {_text(cause.remedy)}"
    yield f"   <details><summary>explains {plural(len(cause.tests), 'test')}</summary>"
    yield ""
    yield from (f"   - {_code(nodeid)}" for nodeid in cause.tests[:_MOST_TESTS])
    if len(cause.tests) > _MOST_TESTS:
        yield f"   - and {len(cause.tests) - _MOST_TESTS} more"
    yield ""
    yield "   </details>"
    yield ""


def _text(text: str) -> str:
    """What Markdown and HTML would take for theirs, as it is; on one line."""
    return re.sub(r"([\\`*_{}\[\]<>#|~&])", r"\\\1", " ".join(text.split()))


def _code(text: str) -> str:
    """In as many backticks as it takes."""
    text = " ".join(text.split())
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    ticks = "`" * (longest + 1)
    pad = " " if longest else ""
    return f"{ticks}{pad}{text}{pad}{ticks}"
