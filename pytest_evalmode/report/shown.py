"""What a page shows of a test beyond its JSON report, compact enough to travel in a test's report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pytest_evalmode.report.message import exemption
from pytest_evalmode.report.tree import trees
from pytest_evalmode.rules import Violation
from pytest_evalmode.trace import Site, Trace

AROUND = 3
"""Lines of code before and after a line at fault."""
_WIDEST = 200


def shown(
    trace: Trace, violations: Sequence[Violation], *, fixtures: Mapping[str, Site], marker: str, root: Path
) -> dict[str, Any]:
    """The trees of the models, what happened in which order, the lines at fault, and how to exempt what was found.

    `fixtures` are those that handed a model to the test, with their lines.  Empty where nothing happened.
    """
    models = trees(trace)
    if not violations and not models:
        return {}
    handed = [["fixture", name, str(site), 1] for name, site in fixtures.items()]
    happened = [[event.what, event.model, str(event.at) if event.at else None, event.count] for event in trace.events]
    lines = [line for v in violations for line in (v.since, v.at, v.cause) if line is not None]
    return {
        "findings": [v.finding for v in violations],
        "since": [str(v.since) if v.since else None for v in violations],
        "exemption": exemption(violations, marker),
        "pictures": {change.name: change.pictures for change in trace.locks if change.pictures},
        "trees": models,
        "events": [*handed, *happened],
        "fixtures": {name: str(site) for name, site in fixtures.items()},
        "lines": {str(line): code for line in (*lines, *fixtures.values()) if (code := _code(root, line))},
    }


def _code(root: Path, site: Site) -> list[Any] | None:
    """The number of the first line, and the lines around a site; None where they cannot be read."""
    try:
        text = (root / site.file).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    first = max(1, site.line - AROUND)
    return [first, [line[:_WIDEST] for line in text[first - 1 : site.line + AROUND]]]
