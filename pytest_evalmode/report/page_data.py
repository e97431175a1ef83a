"""Data of one test that the HTML report needs in addition to the JSON report, small enough for a test report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from inspect import getblock
from linecache import getlines
from pathlib import Path
from tokenize import TokenError
from typing import Any

from pytest_evalmode.report.message import suggest_exemption
from pytest_evalmode.report.model_tree import model_trees
from pytest_evalmode.rules import Violation
from pytest_evalmode.trace import Site, Trace

CONTEXT_LINES = 3
"""Lines of code before and after a line at fault."""
_MAX_FIXTURE_LINES = 6
_MAX_WIDTH = 200


def collect_page_data(
    trace: Trace, violations: Sequence[Violation], fixtures: Mapping[str, Site], marker: str, root: Path
) -> dict[str, Any]:
    """Return model trees, events in order, lines at fault and the suggested exemption; empty if nothing happened.

    `fixtures` are those that provided a model, each with its line.  Lines are read from files below `root`.
    """
    trees = model_trees(trace)
    if not violations and not trees:
        return {}
    provided = [["fixture", name, str(site), 1] for name, site in fixtures.items()]
    events = [[event.what, event.model, str(event.at) if event.at else None, event.count] for event in trace.events]
    lines = [line for v in violations for line in (v.since, v.at, v.cause) if line is not None]
    return {
        "exemption": suggest_exemption(violations, marker),
        "pictures": {change.name: change.pictures for change in trace.locks if change.pictures},
        "trees": trees,
        "events": [*provided, *events],
        "lines": {
            **{str(line): code for line in lines if (code := _code(root, line))},
            **{str(site): code for site in fixtures.values() if (code := _code(root, site, is_fixture=True))},
        },
    }


def _code(root: Path, site: Site, *, is_fixture: bool = False) -> list[Any] | None:
    """Return the number of the first line and the lines around a site, or the first lines of a fixture.

    The latter usually show the model that it creates.  Returns None if the file cannot be read.
    """
    lines = getlines(str(root / site.file))
    first = site.line if is_fixture else max(1, site.line - CONTEXT_LINES)
    shown = lines[first - 1 : site.line + (_MAX_FIXTURE_LINES - 1 if is_fixture else CONTEXT_LINES)]
    with suppress(SyntaxError, TokenError):
        shown = getblock(lines[first - 1 :])[: len(shown)] if is_fixture else shown
    return [first, [line.rstrip("\r\n")[:_MAX_WIDTH] for line in shown]] if lines else None
