"""What is said of a session on the terminal: how it is configured, what became of files, the summary."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import pytest

from pytest_evalmode.session.record.report_files import Told
from pytest_evalmode.session.record.results import Found
from pytest_evalmode.session.settings import SETTINGS, Settings, is_toml, is_whole_suite

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
    if settings.mark:
        said.append("all tests guarded" if "." in settings.mark else f"guarded: {', '.join(settings.mark)}")
    return f"evalmode: {', '.join(said)}" if said else None


def tell_of_files(reporter: pytest.TerminalReporter, told: Iterable[Told]) -> None:
    for file in told:
        if file.is_error:
            reporter.write_line(file.text, red=True)
        else:
            reporter.write_sep("-", file.text)


def tell(reporter: pytest.TerminalReporter, lines: Sequence[Line], config: pytest.Config) -> None:
    """Write the summary; nothing of a session of which there is nothing to say."""
    if not lines:
        return
    reporter.ensure_newline()
    if config.get_verbosity() >= 0:
        rank = config.stash[SETTINGS].rank
        reporter.section(f"evalmode, {rank}" if rank else "evalmode")
    for line in lines:
        reporter.line(line.text, **({line.colour: True} if line.colour else {}))


def summarised(
    found: Found, stale: list[tuple[str, str]], exitstatus: pytest.ExitCode, config: pytest.Config
) -> Iterator[Line]:
    """The lines of the summary; `stale` is what the baseline lists and nothing breaks any more."""
    settings, verbosity = config.stash[SETTINGS], config.get_verbosity()
    if not found.ledger and not stale and not settings.suggest:
        return
    from pytest_evalmode.report import suggest, summary

    if found.ledger:
        yield summary.headline(found.ledger, settings.goes_by)
        if verbosity >= 0:
            yield from summary.details(found.ledger, settings.goes_by, verbose=verbosity > 0)
        durations = config.getoption("durations", None)
        if durations is not None:
            yield from summary.slowest(found.ledger, durations)
    if settings.suggest:
        yield from suggest.lines(found.suggestions, settings.marker, toml=is_toml(config))
    yield from summary.stale(stale, str(settings.baseline), verbose=verbosity > 0)
    ended = exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED)
    if found.ledger and settings.strict and ended and is_whole_suite(config):
        yield from summary.unneeded(found.ledger, settings.policy)
