"""Keeps the session's record where the reports of all processes arrive, and tells it at the end."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from pytest_evalmode.lock.keeper import Collected
from pytest_evalmode.session.files import Files, Kept
from pytest_evalmode.session.settings import BASELINE_INPUT, SETTINGS, is_toml, is_whole_suite, plain_id
from pytest_evalmode.session.stash import PROPERTY, SUGGESTION

if TYPE_CHECKING:
    from pytest_evalmode.report.summary import Line


class Recorder:
    """What the guarded tests found; it ends the run with a summary."""

    def __init__(self, config: pytest.Config, collected: Collected) -> None:
        self._config = config
        self._settings = config.stash[SETTINGS]
        self._process = os.getpid()
        self._kept = Kept()
        self._files = Files(config, collected, self._kept)

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        from pytest_evalmode.report.baseline import text

        known = self._settings.known
        node.workerinput[BASELINE_INPUT] = None if known is None else text(known)

    def pytest_report_header(self) -> str | None:
        """How the run is configured; nothing where it is not."""
        settings = self._settings
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

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        nodeid = plain_id(report.nodeid, self._config)
        suggestion = dict(report.user_properties).get(SUGGESTION)
        if suggestion is not None and report.when == "call":
            self._kept.suggestions[nodeid] = json.loads(str(suggestion))
        record = dict(report.user_properties).get(PROPERTY)
        if record is None:
            if report.when == "call" and report.passed:
                self._kept.unguarded.add(nodeid)
            return
        if not (report.when == "call" or report.failed):
            return
        status = self._config.hook.pytest_report_teststatus(report=report, config=self._config)
        outcome = status[0] if status else report.outcome
        if outcome != "rerun":
            self._kept.filled().add(nodeid, outcome, str(record))

    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        if os.getpid() != self._process:  # a test forked, and its child came back here
            return
        self._files.write(session, exitstatus)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter, exitstatus: pytest.ExitCode) -> None:
        for text, is_error in self._files.told:
            if is_error:
                terminalreporter.write_line(text, red=True)
            else:
                terminalreporter.write_sep("-", text)
        lines = list(self._lines(exitstatus))
        if not lines:
            return
        terminalreporter.ensure_newline()
        if self._config.get_verbosity() >= 0:
            rank = self._settings.rank
            terminalreporter.section(f"evalmode, {rank}" if rank else "evalmode")
        for line in lines:
            terminalreporter.line(line.text, **({line.colour: True} if line.colour else {}))

    def _lines(self, exitstatus: pytest.ExitCode) -> Iterator[Line]:
        settings, verbosity = self._settings, self._config.get_verbosity()
        ledger, stale = self._kept.ledger, self._files.stale
        if not ledger and not stale and not settings.suggest:
            return
        from pytest_evalmode.report import suggest, summary

        if ledger:
            yield summary.headline(ledger, settings.listed)
            if verbosity >= 0:
                yield from summary.details(ledger, settings.listed, verbose=verbosity > 0)
            durations = self._config.getoption("durations", None)
            if durations is not None:
                yield from summary.slowest(ledger, durations)
        if settings.suggest:
            yield from suggest.lines(self._kept.suggestions, settings.marker, toml=is_toml(self._config))
        yield from summary.stale(stale, str(settings.baseline), verbose=verbosity > 0)
        ended = exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED)
        if ledger and settings.strict and ended and is_whole_suite(self._config):
            yield from summary.unneeded(ledger, settings.policy)


class Panels:
    """A panel in each row of pytest-html.  To be registered where that is installed; it brings Jinja2 along."""

    def pytest_html_results_table_html(self, report: pytest.TestReport, data: list[str]) -> None:
        record = dict(report.user_properties).get(PROPERTY)
        if record is None or not (report.when == "call" or report.failed):
            return
        test = json.loads(str(record))
        if test["shown"]:
            from pytest_evalmode.report.page import panel

            data.insert(0, panel({"nodeid": report.nodeid, "outcome": report.outcome, **test}))
