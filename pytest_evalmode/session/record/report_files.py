"""Writes what the options of a run ask for: the JSON report, the page, and the step summary of a job on GitHub."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest

from pytest_evalmode.session.record.results import Found
from pytest_evalmode.session.settings import SETTINGS, Settings, is_toml, step_summary


class Told(NamedTuple):
    """What became of a file."""

    text: str
    is_error: bool = False
    fails: bool = False
    """Whether the run fails for it."""


def write(found: Found, config: pytest.Config) -> Iterator[Told]:
    """Write each file in its turn, and tell what became of it."""
    settings = config.stash[SETTINGS]
    report, html, summary = settings.report, settings.html, step_summary()
    if report is not None:
        wrong = failure("--evalmode-report", report, partial(_write_report, found, settings))
        yield wrong or Told(f"evalmode report: {report}")
    if html is not None:
        wrong = failure("--evalmode-html", html, partial(_write_page, found, settings, toml=is_toml(config)))
        yield wrong or Told(f"evalmode html: {html}")
    if summary is not None and found.ledger:
        wrong = failure("GITHUB_STEP_SUMMARY", summary, partial(_write_step_summary, found, settings))
        if wrong is not None:
            yield wrong._replace(fails=False)  # no option of ours asked for it


def failure(option: str, path: Path, write: Callable[[Path], object]) -> Told | None:
    """Write a file; if that failed it is to be told, not raised: pytest has yet to tell how the tests ended."""
    try:
        write(path)
    except OSError as error:
        return Told(f"{option}: {path} could not be written: {error.strerror}", is_error=True, fails=True)
    return None


def _write_report(found: Found, settings: Settings, path: Path) -> None:
    found.opened().write(path, settings.mode, settings.strict)


def _write_page(found: Found, settings: Settings, path: Path, *, toml: bool) -> None:
    """Write the page; folders on the way are made."""
    from pytest_evalmode.report import suggest
    from pytest_evalmode.report.page import page

    ledger = found.opened()
    text = page(
        list(ledger.tests),
        totals=ledger.totals(),
        mode=settings.mode,
        strict=settings.strict,
        known=settings.goes_by,
        unmarked=suggest.unmarked(found.suggestions),
        advice=list(suggest.advice(found.suggestions, settings.marker, toml=toml)),
        failed=suggest.failed(found.suggestions),
        unguarded=0 if settings.suggest else len(found.unguarded),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def _write_step_summary(found: Found, settings: Settings, path: Path) -> None:
    """Add to what other steps of the job have written."""
    from pytest_evalmode.report.markdown import markdown

    ledger = found.opened()
    with path.open("a", encoding="utf-8") as file:
        file.write(markdown(list(ledger.tests), ledger.totals(), settings.goes_by))
