"""What a page shows of a test beyond its JSON report, compact enough to travel in a test's report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from inspect import getblock
from pathlib import Path
from tokenize import TokenError
from typing import Any

from pytest_evalmode.report.message import suggest_exemption
from pytest_evalmode.report.model_tree import model_trees
from pytest_evalmode.rules import Violation
from pytest_evalmode.trace import Site, Trace

AROUND = 3
"""Lines of code before and after a line at fault."""
_MOST = 6
"""Lines of a fixture."""
_WIDEST = 200


def collect_page_data(
    trace: Trace, violations: Sequence[Violation], *, fixtures: Mapping[str, Site], marker: str, root: Path
) -> dict[str, Any]:
    """The trees of the models, what happened in which order, the lines at fault, and how to exempt what was found.

    `fixtures` are those that handed a model to the test, with their lines.  Empty where nothing happened.
    """
    models = model_trees(trace)
    if not violations and not models:
        return {}
    handed = [["fixture", name, str(site), 1] for name, site in fixtures.items()]
    happened = [[event.what, event.model, str(event.at) if event.at else None, event.count] for event in trace.events]
    lines = [line for v in violations for line in (v.since, v.at, v.cause) if line is not None]
    return {
        "findings": [v.finding for v in violations],
        "since": [str(v.since) if v.since else None for v in violations],
        "exemption": suggest_exemption(violations, marker),
        "pictures": {change.name: change.pictures for change in trace.locks if change.pictures},
        "trees": models,
        "events": [*handed, *happened],
        "fixtures": {name: str(site) for name, site in fixtures.items()},
        "lines": {
            **{str(line): code for line in lines if (code := _around(root, line))},
            **{str(site): code for site in fixtures.values() if (code := _whole(root, site))},
        },
    }


def _around(root: Path, site: Site) -> list[Any] | None:
    """The number of the first line, and the lines around a site; None where they cannot be read."""
    first = max(1, site.line - AROUND)
    return _code(root, site, first, lambda text: text[: site.line + AROUND - first + 1])


def _whole(root: Path, site: Site) -> list[Any] | None:
    """A fixture from its first line on, as far as there is room: what it makes is told by its last."""
    return _code(root, site, site.line, lambda text: getblock(text)[:_MOST])


def _code(root: Path, site: Site, first: int, part: Callable[[Sequence[str]], Sequence[str]]) -> list[Any] | None:
    try:
        text = (root / site.file).read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
        lines = part(text[first - 1 :])
    except (OSError, SyntaxError, TokenError):
        return None
    return [first, [line.rstrip("\r\n")[:_WIDEST] for line in lines]]
