"""Writes what the options of a run ask for: the JSON report, the page, and the step summary of a job on GitHub."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest

from pytest_evalmode.session.record.results import SessionResults
from pytest_evalmode.session.settings import SETTINGS, Settings, step_summary_path, uses_toml


class FileMessage(NamedTuple):
    """What became of a file."""

    text: str
    is_error: bool = False
    fails_run: bool = False
    """Whether the run fails for it."""


def write_files(found: SessionResults, config: pytest.Config) -> Iterator[FileMessage]:
    """Write each file in its turn, and tell what became of it."""
    settings = config.stash[SETTINGS]
    report, html, summary = settings.report, settings.html, step_summary_path()
    if report is not None:
        wrong = write_or_report("--evalmode-report", report, partial(_write_report, found, settings))
        yield wrong or FileMessage(f"evalmode report: {report}")
    if html is not None:
        wrong = write_or_report("--evalmode-html", html, partial(_write_page, found, settings, toml=uses_toml(config)))
        yield wrong or FileMessage(f"evalmode html: {html}")
    if summary is not None and found.ledger:
        wrong = write_or_report("GITHUB_STEP_SUMMARY", summary, partial(_write_step_summary, found, settings))
        if wrong is not None:
            yield wrong._replace(fails_run=False)  # no option of ours asked for it


def write_or_report(option: str, path: Path, write: Callable[[Path], object]) -> FileMessage | None:
    """Write a file; if that failed it is to be told, not raised: pytest has yet to tell how the tests ended."""
    try:
        write(path)
    except OSError as error:
        return FileMessage(f"{option}: {path} could not be written: {error.strerror}", is_error=True, fails_run=True)
    return None


def _write_report(found: SessionResults, settings: Settings, path: Path) -> None:
    found.get_ledger().write(path, settings.mode, settings.strict)


def _write_page(found: SessionResults, settings: Settings, path: Path, *, toml: bool) -> None:
    """Write the page; folders on the way are made."""
    from pytest_evalmode.report import suggest
    from pytest_evalmode.report.page import render_page

    ledger = found.get_ledger()
    text = render_page(
        list(ledger.tests),
        totals=ledger.totals(),
        mode=settings.mode,
        strict=settings.strict,
        known=settings.applied_baseline,
        unmarked=suggest.unmarked_tests(found.suggestions),
        advice=list(suggest.marking_advice(found.suggestions, settings.marker, toml=toml)),
        failed=suggest.failed_guards(found.suggestions),
        unguarded=0 if settings.suggest else len(found.unguarded),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def _write_step_summary(found: SessionResults, settings: Settings, path: Path) -> None:
    """Add to what other steps of the job have written."""
    from pytest_evalmode.report.markdown import render_step_summary

    ledger = found.get_ledger()
    with path.open("a", encoding="utf-8") as file:
        file.write(render_step_summary(list(ledger.tests), ledger.totals(), settings.applied_baseline))
