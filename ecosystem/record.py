"""The reviewed record: what the guard says of each architecture and suite, as JSON lines in the repository."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

Row = dict[str, Any]
Seconds = dict[str, dict[str, float]]
"""Processor time by library or suite and by mode.  It differs from run to run, and is not compared."""

FOLDER = Path(__file__).parent / "record"
_SECONDS = FOLDER / "seconds.json"
REVIEW = "review"
"""The field that only people write: `true`, `false` or `debatable`, and why."""
COUNT = "count"
"""How often a violation occurs in a suite."""


def load(path: Path) -> list[Row]:
    """Return the rows of a file of JSON lines; none if it does not exist."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def save(path: Path, rows: Iterable[Row]) -> None:
    """Write rows, sorted, with the reviews of the rows that are in the file already; only `count` may have changed."""
    reviews = {_identity(row | {COUNT: 0}): row[REVIEW] for row in load(path) if REVIEW in row}
    merged = [row | {REVIEW: reviews[key]} if (key := _identity(row | {COUNT: 0})) in reviews else row for row in rows]
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in sorted(merged, key=_order)))


def compare(path: Path, rows: Iterable[Row], *, complete: bool = True) -> tuple[list[Row], list[Row]]:
    """Return what is new in these rows and what is gone, beside the rows of a file.

    Args:
        path: The file.
        rows: The rows of today.
        complete: Whether these are all rows; if not, a row is gone only if there is another one of its name.
    """
    was, now = ({_identity(row | {COUNT: 0}): row for row in each} for each in (load(path), rows))
    names = {row["name"] for row in now.values()}
    new = [row for key, row in now.items() if key not in was or not _same_count(row, was[key])]
    gone = [row for key, row in was.items() if key not in now or not _same_count(row, now[key])]
    gone = [row for row in gone if complete or row["name"] in names]
    return sorted(new, key=_order), sorted(gone, key=_order)


def _same_count(row: Row, other: Row) -> bool:
    """Return whether two counts are the same, but for the few tests that depend on when objects are collected."""
    counts = row.get(COUNT, 0), other.get(COUNT, 0)
    return bool(max(counts) - min(counts) <= max(2, 0.03 * max(counts)))


def load_seconds() -> Seconds:
    """Return the processor time of the runs in the record."""
    return cast("Seconds", json.loads(_SECONDS.read_text())) if _SECONDS.exists() else {}


def save_seconds(name: str, cost: dict[str, float]) -> None:
    """Write the processor time of a library or suite."""
    seconds = load_seconds() | {name: {mode: round(value, 1) for mode, value in cost.items()}}
    _SECONDS.write_text(json.dumps(seconds, indent=1, sort_keys=True) + "\n")


def unreviewed(rows: Iterable[Row]) -> list[Row]:
    """Return the rows that only a person can explain, and that nobody has explained yet.

    What is broken by default in eval mode (`clean`) needs no review: the run without the guard shows the same.
    """
    return [row for row in rows if REVIEW not in row and row.keys() & {"strict", "deviations", "outcome", "rule"}]


def _order(row: Row) -> tuple[str, str]:
    return row["name"], _identity(row)


def _identity(row: Row) -> str:
    return json.dumps({name: value for name, value in row.items() if name != REVIEW}, sort_keys=True)
