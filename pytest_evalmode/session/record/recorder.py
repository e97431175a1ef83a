"""The plugin that collects the results of all processes, then writes the files and the summary."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest

from pytest_evalmode.session.record import baseline_file, report_files, terminal
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
        self._stale: list[tuple[str, str]] = []
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
        suggestion = dict(report.user_properties).get(SUGGESTION_PROPERTY)
        if suggestion is not None and report.when == "call":
            self._results.suggestions[nodeid] = json.loads(str(suggestion))
        record = dict(report.user_properties).get(RECORD_PROPERTY)
        if record is None:
            if report.when == "call" and report.passed:
                self._results.unguarded.add(nodeid)
            return
        if not (report.when == "call" or report.failed):
            return
        status = self._config.hook.pytest_report_teststatus(report=report, config=self._config)
        outcome = status[0] if status else report.outcome
        if outcome != "rerun":
            self._results.get_ledger().add(nodeid, outcome, str(record))

    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        if os.getpid() != self._process:  # a test forked, and this is the child process
            return
        for message in report_files.write_files(self._results, self._config):
            self._add_message(message, session)
        settings = self._settings
        if settings.known is None or settings.mode == "off" or settings.suggest:
            return
        if settings.update_baseline:
            baseline_message = baseline_file.update(self._results, self._config, exitstatus, self._collected.is_gone)
            if baseline_message is not None:
                self._add_message(baseline_message, session)
            return
        self._stale = baseline_file.find_stale(self._results, settings.known)
        if self._stale and settings.strict:
            session.exitstatus = session.exitstatus or pytest.ExitCode.TESTS_FAILED

    def _add_message(self, message: report_files.FileMessage, session: pytest.Session) -> None:
        """Store a message for the summary, which pytest prints later."""
        self._messages.append(message)
        if message.fails_run:
            session.exitstatus = session.exitstatus or pytest.ExitCode.USAGE_ERROR

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter, exitstatus: pytest.ExitCode) -> None:
        terminal.write_file_messages(terminalreporter, self._messages)
        lines = list(terminal.summary_lines(self._results, self._stale, exitstatus, self._config))
        terminal.write_summary(terminalreporter, lines, self._config)
