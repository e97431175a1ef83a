"""Keeps the session's record where the reports of all processes arrive, and tells it at the end."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_evalmode.lock.keeper import Collected
from pytest_evalmode.session.settings import BASELINE_INPUT, SETTINGS, is_whole_suite, plain_id, step_summary
from pytest_evalmode.session.stash import PROPERTY, SUGGESTION

if TYPE_CHECKING:
    from pytest_evalmode.report.baseline import Known, Seen
    from pytest_evalmode.report.ledger import Ledger
    from pytest_evalmode.report.suggest import Suggestion
    from pytest_evalmode.report.summary import Line


class Recorder:
    """What the guarded tests found; it writes the report and the baseline, and ends the run with a summary."""

    def __init__(self, config: pytest.Config, collected: Collected) -> None:
        self._config = config
        self._settings = config.stash[SETTINGS]
        self._collected = collected
        self._process = os.getpid()
        self._ledger: Ledger | None = None
        self._unguarded: set[str] = set()
        """Tests that passed without a guard."""
        self._suggestions: dict[str, Suggestion] = {}
        self._stale: list[tuple[str, str]] = []
        self._told: list[tuple[str, bool]] = []
        """What became of the files, and whether that is an error."""

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
            self._suggestions[nodeid] = json.loads(str(suggestion))
        record = dict(report.user_properties).get(PROPERTY)
        if record is None:
            if report.when == "call" and report.passed:
                self._unguarded.add(nodeid)
            return
        if not (report.when == "call" or report.failed):
            return
        status = self._config.hook.pytest_report_teststatus(report=report, config=self._config)
        outcome = status[0] if status else report.outcome
        if outcome != "rerun":
            self._kept().add(nodeid, outcome, str(record))

    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        if os.getpid() != self._process:  # a test forked, and its child came back here
            return
        settings = self._settings
        for what, path, write in (
            ("report", settings.report, self._write_report),
            ("html", settings.html, self._write_page),
        ):
            if path is not None and not self._write(f"--evalmode-{what}", path, write):
                session.exitstatus = session.exitstatus or pytest.ExitCode.USAGE_ERROR
            elif path is not None:
                self._told.append((f"evalmode {what}: {path}", False))
        summary = step_summary()
        if summary is not None and self._ledger:
            self._write("GITHUB_STEP_SUMMARY", summary, self._write_step_summary)
        if settings.known is not None and settings.mode != "off" and not settings.suggest:
            self._compare_with_baseline(session, exitstatus)

    def _write(self, option: str, path: Path, write: Callable[[Path], None]) -> bool:
        """Write a file; False, to be told, if that failed: pytest has yet to tell how the tests ended."""
        try:
            write(path)
        except OSError as error:
            self._told.append((f"{option}: {path} could not be written: {error.strerror}", True))
            return False
        return True

    def _write_report(self, path: Path) -> None:
        self._kept().write(path, self._settings.mode, self._settings.strict)

    def _write_page(self, path: Path) -> None:
        """Write the page; folders on the way are made."""
        from pytest_evalmode.report import suggest
        from pytest_evalmode.report.page import page

        ledger, settings = self._kept(), self._settings
        text = page(
            list(ledger.tests),
            totals=ledger.totals(),
            mode=settings.mode,
            strict=settings.strict,
            known=self._known,
            unmarked=suggest.unmarked(self._suggestions),
            advice=list(suggest.advice(self._suggestions, settings.marker, toml=self._is_toml)),
            failed=suggest.failed(self._suggestions),
            unguarded=0 if settings.suggest else len(self._unguarded),
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")

    def _write_step_summary(self, path: Path) -> None:
        """Add to what other steps of the job have written."""
        from pytest_evalmode.report.markdown import markdown

        ledger = self._kept()
        with path.open("a", encoding="utf-8") as file:
            file.write(markdown(list(ledger.tests), ledger.totals(), self._known))

    @property
    def _known(self) -> Known | None:
        """What the baseline lists, if the run goes by it."""
        return None if self._settings.update_baseline else self._settings.known

    @property
    def _is_toml(self) -> bool:
        """Whether the project is configured in TOML."""
        return self._config.inipath is not None and self._config.inipath.suffix == ".toml"

    def _compare_with_baseline(self, session: pytest.Session, exitstatus: int) -> None:
        from pytest_evalmode.report.baseline import stale

        if self._settings.update_baseline:
            self._update_baseline(session, exitstatus)
            return
        self._stale = stale(self._settings.known or {}, self._seen())
        if self._stale and self._settings.strict:
            session.exitstatus = session.exitstatus or pytest.ExitCode.TESTS_FAILED

    def _update_baseline(self, session: pytest.Session, exitstatus: int) -> None:
        from pytest_evalmode.files import replace_file
        from pytest_evalmode.report.baseline import text, updated

        path, rank = self._settings.baseline, self._settings.rank
        if path is None or (rank is not None and rank.number) or exitstatus == pytest.ExitCode.INTERNAL_ERROR:
            return
        ended = exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.NO_TESTS_COLLECTED)
        whole = ended and is_whole_suite(self._config)
        known = updated(self._settings.known or {}, self._seen(), lambda test: whole and self._collected.is_gone(test))
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(path, text(known).encode("utf-8"))
        except OSError as error:
            told = f"--evalmode-update-baseline: {path} could not be written: {error.strerror}"
            self._told.append((told, True))
            session.exitstatus = session.exitstatus or pytest.ExitCode.USAGE_ERROR
            return
        violations = sum(map(len, known.values()))
        told = f"{violations} known violations in {len(known)} tests" if violations else "no known violation"
        self._told.append((f"evalmode baseline: {path}: {told}", False))

    def _seen(self) -> dict[str, Seen]:
        """What each test that ran was seen to break; one that is guarded no more breaks nothing."""
        from pytest_evalmode.report.baseline import Seen

        guarded = self._ledger.seen() if self._ledger else {}
        return {**{nodeid: Seen(frozenset()) for nodeid in self._unguarded}, **guarded}

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter, exitstatus: pytest.ExitCode) -> None:
        for text, is_error in self._told:
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
        if not self._ledger and not self._stale and not settings.suggest:
            return
        from pytest_evalmode.report import suggest, summary

        if self._ledger:
            yield summary.headline(self._ledger, self._known)
            if verbosity >= 0:
                yield from summary.details(self._ledger, self._known, verbose=verbosity > 0)
            durations = self._config.getoption("durations", None)
            if durations is not None:
                yield from summary.slowest(self._ledger, durations)
        if settings.suggest:
            yield from suggest.lines(self._suggestions, settings.marker, toml=self._is_toml)
        yield from summary.stale(self._stale, str(settings.baseline), verbose=verbosity > 0)
        ended = exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED)
        if self._ledger and settings.strict and ended and is_whole_suite(self._config):
            yield from summary.unneeded(self._ledger, settings.policy)

    def _kept(self) -> Ledger:
        from pytest_evalmode.report.ledger import Ledger

        if self._ledger is None:
            self._ledger = Ledger()
        return self._ledger


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
