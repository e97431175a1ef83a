"""The plugin that collects the results of all processes, then writes the files and the summary."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from pytest_evalmode.session.record.collected_tests import CollectedTests
from pytest_evalmode.session.record.report_files import FileMessage, update_baseline, write_files
from pytest_evalmode.session.record.session_results import SessionResults
from pytest_evalmode.session.settings import BASELINE_INPUT, SETTINGS, is_whole_suite, plain_nodeid, uses_toml
from pytest_evalmode.session.stash import RECORD_PROPERTY, SUGGESTION_PROPERTY

if TYPE_CHECKING:
    from pytest_evalmode.report.summary import Line


class Recorder:
    """Collects results from the tests' reports; at the end of the session, writes the files and the summary.

    It is registered in the controller, which receives the reports of all workers.
    """

    def __init__(self, config: pytest.Config, collected: CollectedTests) -> None:
        self._config = config
        self._settings = config.stash[SETTINGS]
        self._collected = collected
        self._process = os.getpid()
        self._results = SessionResults()
        self._messages: list[FileMessage] = []

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        from pytest_evalmode.report.baseline import format_baseline

        known = self._settings.known
        node.workerinput[BASELINE_INPUT] = None if known is None else format_baseline(known)

    def pytest_report_header(self) -> str | None:
        """Return the line that shows the settings that differ from the defaults."""
        settings = self._settings
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

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        nodeid = plain_nodeid(report.nodeid, self._config)
        properties = dict(report.user_properties)
        suggestion, record = properties.get(SUGGESTION_PROPERTY), properties.get(RECORD_PROPERTY)
        if suggestion is not None and report.when == "call":
            self._results.suggestions[nodeid] = json.loads(str(suggestion))
        if record is None:
            if report.when == "call" and report.passed:
                self._results.unguarded.add(nodeid)
        elif report.when == "call" or report.failed:
            status = self._config.hook.pytest_report_teststatus(report=report, config=self._config)
            outcome = status[0] if status else report.outcome
            if outcome != "rerun":  # the last report counts: a failed teardown comes after the call
                self._results.guarded[nodeid] = {"nodeid": nodeid, "outcome": outcome, **json.loads(str(record))}

    @pytest.hookimpl(optionalhook=True)
    def pytest_html_results_table_html(self, report: pytest.TestReport, data: list[str]) -> None:
        """Add a panel to a row of pytest-html, which requires Jinja2."""
        record = dict(report.user_properties).get(RECORD_PROPERTY)
        if record is None or not (report.when == "call" or report.failed):
            return
        test = json.loads(str(record))
        if test["shown"]:
            from pytest_evalmode.report.page import render_panel

            data.insert(0, render_panel({"nodeid": report.nodeid, "outcome": report.outcome, **test}))

    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        if os.getpid() != self._process:  # a test forked, and this is the child process
            return
        settings = self._settings
        self._messages += write_files(self._results, self._config)
        if settings.known is not None and settings.mode != "off" and not settings.suggest:
            if settings.update_baseline:
                is_gone = self._collected.is_gone
                self._messages += update_baseline(self._results, self._config, exitstatus, is_gone)
            else:
                from pytest_evalmode.report.baseline import find_stale

                self._results.stale = find_stale(settings.known, self._results.observed_violations())
        if any(message.fails_run for message in self._messages):
            session.exitstatus = session.exitstatus or pytest.ExitCode.USAGE_ERROR
        if self._results.stale and settings.strict:
            session.exitstatus = session.exitstatus or pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter, exitstatus: pytest.ExitCode) -> None:
        for message in self._messages:
            if message.is_error:
                terminalreporter.write_line(message.text, red=True)
            else:
                terminalreporter.write_sep("-", message.text)
        lines = list(_summary_lines(self._results, exitstatus, self._config))
        if not lines:
            return
        terminalreporter.ensure_newline()
        if self._config.get_verbosity() >= 0:
            rank = self._settings.rank
            terminalreporter.section(f"evalmode, {rank}" if rank else "evalmode")
        for line in lines:
            terminalreporter.line(line.text, **({line.color: True} if line.color else {}))


def _summary_lines(results: SessionResults, exitstatus: pytest.ExitCode, config: pytest.Config) -> Iterator[Line]:
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
