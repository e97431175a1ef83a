"""What is said of a session on the terminal: how it is configured, what became of files, the summary."""

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
    """How a run is configured; nothing where it is not."""
    said: list[str] = [settings.mode] if settings.mode != "enforce" else []
    said += ["strict"] if settings.strict else []
    said += ["suggest"] if settings.suggest else []
    if settings.known is not None:
        number = sum(map(len, settings.known.values()))
        verb = "to be updated" if settings.update_baseline else f"{number} known"
        said.append(f"baseline {settings.baseline} ({verb})")
    if settings.guarded_paths:
        said.append(
            "all tests guarded" if "." in settings.guarded_paths else f"guarded: {', '.join(settings.guarded_paths)}"
        )
    return f"evalmode: {', '.join(said)}" if said else None


def write_file_messages(reporter: pytest.TerminalReporter, told: Iterable[FileMessage]) -> None:
    for file in told:
        if file.is_error:
            reporter.write_line(file.text, red=True)
        else:
            reporter.write_sep("-", file.text)


def write_summary(reporter: pytest.TerminalReporter, lines: Sequence[Line], config: pytest.Config) -> None:
    """Write the summary; nothing of a session of which there is nothing to say."""
    if not lines:
        return
    reporter.ensure_newline()
    if config.get_verbosity() >= 0:
        rank = config.stash[SETTINGS].rank
        reporter.section(f"evalmode, {rank}" if rank else "evalmode")
    for line in lines:
        reporter.line(line.text, **({line.color: True} if line.color else {}))


def summary_lines(
    found: SessionResults, stale: list[tuple[str, str]], exitstatus: pytest.ExitCode, config: pytest.Config
) -> Iterator[Line]:
    """The lines of the summary; `stale` is what the baseline lists and nothing breaks any more."""
    settings, verbosity = config.stash[SETTINGS], config.get_verbosity()
    if not found.ledger and not stale and not settings.suggest:
        return
    from pytest_evalmode.report import suggest, summary

    if found.ledger:
        yield summary.headline(found.ledger, settings.applied_baseline)
        if verbosity >= 0:
            yield from summary.detail_lines(found.ledger, settings.applied_baseline, verbose=verbosity > 0)
        durations = config.getoption("durations", None)
        if durations is not None:
            yield from summary.slowest_guards(found.ledger, durations)
    if settings.suggest:
        yield from suggest.suggestion_lines(found.suggestions, settings.marker, toml=uses_toml(config))
    yield from summary.stale_entries(stale, str(settings.baseline), verbose=verbosity > 0)
    ended = exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED)
    if found.ledger and settings.strict and ended and is_whole_suite(config):
        yield from summary.unused_ini_exemptions(found.ledger, settings.policy)
