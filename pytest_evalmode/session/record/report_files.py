"""The files written from the results of a session: JSON and HTML report, step summary, baseline."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from pytest_evalmode.session.settings import SETTINGS, is_whole_suite, step_summary_path, uses_toml

if TYPE_CHECKING:
    from pytest_evalmode.session.record.session_results import SessionResults


class FileMessage(NamedTuple):
    """A message about a file for the terminal: it was written, or why it could not be."""

    text: str
    is_error: bool = False
    fails_run: bool = False
    """Whether the run fails because of it."""


def write_files(results: SessionResults, config: pytest.Config) -> Iterator[FileMessage]:
    """Write the reports that this run asks for; yield a message for each."""
    settings = config.stash[SETTINGS]
    summary = step_summary_path() if results.guarded else None
    for option, path, write in (
        ("--evalmode-report", settings.report, _write_report),
        ("--evalmode-html", settings.html, _write_page),
        ("GITHUB_STEP_SUMMARY", summary, _write_summary),
    ):
        if path is None:
            continue
        error = _try_to_write(option, path, partial(write, path, results, config))
        if path is not summary:
            yield error or FileMessage(f"evalmode {option.removeprefix('--evalmode-')}: {path}")
        elif error is not None:
            yield error._replace(fails_run=False)  # the environment asked for it, not the user


def update_baseline(
    results: SessionResults, config: pytest.Config, exitstatus: int, is_gone: Callable[[str], bool]
) -> Iterator[FileMessage]:
    """Update the baseline file and yield a message; in a distributed run, only the first rank does.

    Entries of tests that no longer exist are removed only if the whole suite ran to its end.
    """
    from pytest_evalmode.file_writing import replace_file
    from pytest_evalmode.report.baseline import format_baseline, merge_observed

    settings = config.stash[SETTINGS]
    path, rank = settings.baseline, settings.rank
    if path is None or (rank is not None and rank.number) or exitstatus == pytest.ExitCode.INTERNAL_ERROR:
        return
    finished = exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.NO_TESTS_COLLECTED)
    whole_suite = finished and is_whole_suite(config)
    observed = results.observed_violations()
    known = merge_observed(settings.known or {}, observed, lambda test: whole_suite and is_gone(test))
    data = format_baseline(known).encode("utf-8")
    error = _try_to_write("--evalmode-update-baseline", path, lambda: replace_file(path, data))
    violations = sum(map(len, known.values()))
    summary = f"{violations} known violations in {len(known)} tests" if violations else "no known violation"
    yield error or FileMessage(f"evalmode baseline: {path}: {summary}")


def _try_to_write(option: str, path: Path, write: Callable[[], object]) -> FileMessage | None:
    """Write a file, and create missing folders; return a message if that failed.

    Nothing is raised, because pytest has yet to report how the tests ended.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write()
    except OSError as error:
        return FileMessage(f"{option}: {path} could not be written: {error.strerror}", is_error=True, fails_run=True)
    return None


def _write_report(path: Path, results: SessionResults, config: pytest.Config) -> None:
    from pytest_evalmode.report.records import write_report

    settings = config.stash[SETTINGS]
    write_report(path, results.guarded.values(), settings.mode, settings.strict)


def _write_page(path: Path, results: SessionResults, config: pytest.Config) -> None:
    from pytest_evalmode.report import suggest
    from pytest_evalmode.report.page import render_page

    settings = config.stash[SETTINGS]
    text = render_page(
        list(results.guarded.values()),
        mode=settings.mode,
        strict=settings.strict,
        known=settings.applied_baseline,
        unmarked=suggest.unmarked_tests(results.suggestions),
        advice=list(suggest.marking_advice(results.suggestions, settings.marker, toml=uses_toml(config))),
        failed=suggest.failed_guards(results.suggestions),
        unguarded=0 if settings.suggest else len(results.unguarded),
    )
    path.write_text(text, encoding="utf-8")


def _write_summary(path: Path, results: SessionResults, config: pytest.Config) -> None:
    """Append the summary to the file: earlier parts of the step may have written to it."""
    from pytest_evalmode.report.markdown import render_step_summary

    with path.open("a", encoding="utf-8") as file:
        file.write(render_step_summary(list(results.guarded.values()), config.stash[SETTINGS].applied_baseline))
