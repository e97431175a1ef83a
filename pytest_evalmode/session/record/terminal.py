"""Terminal output of a session: the header, the messages about files and the summary."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import pytest

from pytest_evalmode.session.record.report_files import FileMessage
from pytest_evalmode.session.record.results import SessionResults
from pytest_evalmode.session.settings import SETTINGS, Settings, is_whole_suite, uses_toml

if TYPE_CHECKING:
    from pytest_evalmode.report.summary import Line


def header(settings: Settings) -> str | None:
    """Return the line of pytest's header that shows the settings that differ from the defaults."""
    parts: list[str] = [settings.mode] if settings.mode != "enforce" else []
    parts += ["strict"] if settings.strict else []
    parts += ["suggest"] if settings.suggest else []
    if settings.known is not None:
        number = sum(map(len, settings.known.values()))
        status = "will be updated" if settings.update_baseline else f"{number} known"
        parts.append(f"baseline {settings.baseline} ({status})")
    if settings.guarded_paths:
        paths = settings.guarded_paths
        parts.append("all tests guarded" if "." in paths else f"guarded: {', '.join(paths)}")
    return f"evalmode: {', '.join(parts)}" if parts else None


def write_file_messages(reporter: pytest.TerminalReporter, messages: Iterable[FileMessage]) -> None:
    for message in messages:
        if message.is_error:
            reporter.write_line(message.text, red=True)
        else:
            reporter.write_sep("-", message.text)


def write_summary(reporter: pytest.TerminalReporter, lines: Sequence[Line], config: pytest.Config) -> None:
    """Write the summary, if it has any lines."""
    if not lines:
        return
    reporter.ensure_newline()
    if config.get_verbosity() >= 0:
        rank = config.stash[SETTINGS].rank
        reporter.section(f"evalmode, {rank}" if rank else "evalmode")
    for line in lines:
        reporter.line(line.text, **({line.color: True} if line.color else {}))


def summary_lines(results: SessionResults, exitstatus: pytest.ExitCode, config: pytest.Config) -> Iterator[Line]:
    """Yield the lines of the summary."""
    settings = config.stash[SETTINGS]
    if not results.guarded and not results.stale and not settings.suggest:
        return
    from pytest_evalmode.report import suggest, summary

    tests = list(results.guarded.values())
    if tests:
        yield summary.headline(tests, settings.applied_baseline)
        if config.get_verbosity() >= 0:
            yield from summary.detail_lines(tests)
    if settings.suggest:
        yield from suggest.suggestion_lines(results.suggestions, settings.marker, toml=uses_toml(config))
    yield from summary.stale_entries(results.stale, str(settings.baseline))
    finished = exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED)
    if tests and settings.strict and finished and is_whole_suite(config):
        yield from summary.unused_ini_exemptions(tests, settings.policy)
