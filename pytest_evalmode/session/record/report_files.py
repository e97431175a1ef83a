"""The files written at the end of a session: JSON report, HTML report, and step summary of GitHub Actions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest

from pytest_evalmode.session.record.results import SessionResults
from pytest_evalmode.session.settings import SETTINGS, Settings, step_summary_path, uses_toml


class FileMessage(NamedTuple):
    """A message about a file for the terminal: it was written, or why it could not be."""

    text: str
    is_error: bool = False
    fails_run: bool = False
    """Whether the run fails because of it."""


def write_files(results: SessionResults, config: pytest.Config) -> Iterator[FileMessage]:
    """Write the files that this run asks for; yield a message for each."""
    settings = config.stash[SETTINGS]
    report, html, summary = settings.report, settings.html, step_summary_path()
    if report is not None:
        error = write_or_report("--evalmode-report", report, partial(_write_report, results, settings))
        yield error or FileMessage(f"evalmode report: {report}")
    if html is not None:
        write_page = partial(_write_page, results, settings, toml=uses_toml(config))
        error = write_or_report("--evalmode-html", html, write_page)
        yield error or FileMessage(f"evalmode html: {html}")
    if summary is not None and results.ledger:
        error = write_or_report("GITHUB_STEP_SUMMARY", summary, partial(_write_step_summary, results, settings))
        if error is not None:
            yield error._replace(fails_run=False)  # the environment asked for it, not the user


def write_or_report(option: str, path: Path, write: Callable[[Path], object]) -> FileMessage | None:
    """Write a file, and create missing folders; return a message if that failed.

    Nothing is raised, because pytest has yet to report how the tests ended.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path)
    except OSError as error:
        return FileMessage(f"{option}: {path} could not be written: {error.strerror}", is_error=True, fails_run=True)
    return None


def _write_report(results: SessionResults, settings: Settings, path: Path) -> None:
    results.get_ledger().write(path, settings.mode, settings.strict)


def _write_page(results: SessionResults, settings: Settings, path: Path, *, toml: bool) -> None:
    from pytest_evalmode.report import suggest
    from pytest_evalmode.report.page import render_page

    ledger = results.get_ledger()
    text = render_page(
        list(ledger.tests),
        totals=ledger.totals(),
        mode=settings.mode,
        strict=settings.strict,
        known=settings.applied_baseline,
        unmarked=suggest.unmarked_tests(results.suggestions),
        advice=list(suggest.marking_advice(results.suggestions, settings.marker, toml=toml)),
        failed=suggest.failed_guards(results.suggestions),
        unguarded=0 if settings.suggest else len(results.unguarded),
    )
    path.write_text(text, encoding="utf-8")


def _write_step_summary(results: SessionResults, settings: Settings, path: Path) -> None:
    """Append the summary to the file: earlier parts of the step may have written to it."""
    from pytest_evalmode.report.markdown import render_step_summary

    ledger = results.get_ledger()
    with path.open("a", encoding="utf-8") as file:
        file.write(render_step_summary(list(ledger.tests), ledger.totals(), settings.applied_baseline))
