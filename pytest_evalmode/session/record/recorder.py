"""The plugin that collects the results of all processes, then writes the files and the summary."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest

from pytest_evalmode.session.record import report_files, terminal
from pytest_evalmode.session.record.collected_tests import CollectedTests
from pytest_evalmode.session.record.results import SessionResults
from pytest_evalmode.session.settings import BASELINE_INPUT, SETTINGS, plain_nodeid
from pytest_evalmode.session.stash import RECORD_PROPERTY, SUGGESTION_PROPERTY


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
        self._messages: list[report_files.FileMessage] = []

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        from pytest_evalmode.report.baseline import format_baseline

        known = self._settings.known
        node.workerinput[BASELINE_INPUT] = None if known is None else format_baseline(known)

    def pytest_report_header(self) -> str | None:
        return terminal.header(self._settings)

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
        self._messages += report_files.write_files(self._results, self._config)
        if settings.known is not None and settings.mode != "off" and not settings.suggest:
            if settings.update_baseline:
                is_gone = self._collected.is_gone
                self._messages += report_files.update_baseline(self._results, self._config, exitstatus, is_gone)
            else:
                self._results.find_stale_entries(settings.known)
        if any(message.fails_run for message in self._messages):
            session.exitstatus = session.exitstatus or pytest.ExitCode.USAGE_ERROR
        if self._results.stale and settings.strict:
            session.exitstatus = session.exitstatus or pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter, exitstatus: pytest.ExitCode) -> None:
        terminal.write_file_messages(terminalreporter, self._messages)
        lines = list(terminal.summary_lines(self._results, exitstatus, self._config))
        terminal.write_summary(terminalreporter, lines, self._config)
