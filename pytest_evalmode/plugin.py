"""The hooks of pytest, in life-cycle order.

torch, and all that is needed to judge, is imported by the first guarded test, and not before.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any

import pytest
from pluggy import Result

from pytest_evalmode.lock.fixture import LOCK, evalmode_lock
from pytest_evalmode.lock.keeper import Collected, Keeper
from pytest_evalmode.session import files, hookspecs
from pytest_evalmode.session.evalmode import evalmode
from pytest_evalmode.session.fixtures import forget, note, remember, unobserved
from pytest_evalmode.session.settings import (
    SETTINGS,
    Settings,
    add_options,
    is_whole_suite,
    is_worker,
    read_settings,
    step_summary,
)
from pytest_evalmode.session.stash import CALLING, GUARD, PROPERTY, forget_record

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_evalmode.report.ledger import Ledger

__all__ = ["evalmode", "evalmode_lock"]


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    pluginmanager.add_hookspecs(hookspecs)


def pytest_addoption(parser: pytest.Parser) -> None:
    add_options(parser)


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> int | None:
    if not config.getoption("evalmode_rules"):
        return None
    from pytest_evalmode.report.message import rules_table

    print(rules_table())
    return 0


def pytest_configure(config: pytest.Config) -> None:
    settings = config.stash[SETTINGS] = read_settings(config)
    if any(settings.exempt.values()):
        from pytest_evalmode.session.teams import check_ini

        check_ini(settings.exempt, config)
    collected = Collected()
    config.pluginmanager.register(collected, "evalmode-collected")
    if not is_worker(config):  # a worker sends its reports on
        config.pluginmanager.register(Recorder(config), "evalmode-recorder")
        config.pluginmanager.register(Keeper(config, collected), "evalmode-keeper")
        if config.pluginmanager.hasplugin("html"):
            config.pluginmanager.register(files.Panels(), "evalmode-panels")
    config.addinivalue_line(
        "markers",
        f"{settings.marker}(*, allow=(), train=(), mutable=(), reason=None): fail the test if its PyTorch inference "
        "was not clean (pytest-evalmode)",
    )


# Old-style wrappers, here and below: an exception that passes through a new-style one takes its frame along.
@pytest.hookimpl(hookwrapper=True)
def pytest_fixture_setup(
    fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest
) -> Generator[None, Result[object], None]:
    with unobserved(request.config):
        outcome = yield
    if outcome.exception is None:
        remember(fixturedef, outcome.get_result(), request)


def pytest_fixture_post_finalizer(fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest) -> None:
    forget(fixturedef, request)


def pytest_runtest_setup(item: pytest.Item) -> None:
    forget_record(item)  # of an earlier run
    if item.config.stash[SETTINGS].asks_for(item):
        from pytest_evalmode.session import window

        window.prepare(item)


@pytest.hookimpl(hookwrapper=True, trylast=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Result[object], None]:
    item.config.stash[CALLING] = item
    if GUARD in item.stash or item.config.stash[SETTINGS].asks_for(item):  # a fixture may have marked it
        from pytest_evalmode.session import window

        window.begin(item)
    note(item.config, item.nodeid, getattr(item, "fixturenames", ()))
    outcome = yield
    item.config.stash[CALLING] = None
    if LOCK in item.stash:
        item.stash[LOCK].finish(outcome)
        del item.stash[LOCK]
    if GUARD in item.stash:  # by now the test may have asked for the fixture
        from pytest_evalmode.session import window

        window.end(item, outcome)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, Result[object], None]:
    outcome = yield
    if GUARD in item.stash:
        from pytest_evalmode.session import window

        window.tell_failure(item, outcome)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if call.when == "teardown" and call.excinfo is not None:
        from pytest_evalmode.session import window

        window.keep_error(call.excinfo.value, report)
    return report


class Recorder:
    """Keeps the session's record where the reports of all processes arrive."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._ledger: Ledger | None = None
        self._unwritten: dict[Path, str] = {}
        """The files that could not be written, with what to say of each."""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        record = dict(report.user_properties).get(PROPERTY)
        if record is None or not (report.when == "call" or report.failed):
            return
        status = self._config.hook.pytest_report_teststatus(report=report, config=self._config)
        outcome = status[0] if status else report.outcome
        if outcome != "rerun":
            self._kept().add(report.nodeid, outcome, str(record))

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        settings = self._config.stash[SETTINGS]
        asked = (
            self._write("--evalmode-report", settings.report, files.write_report),
            self._write("--evalmode-html", settings.html, files.write_page),
        )
        if not all(asked):  # pytest has yet to tell how the tests ended
            session.exitstatus = session.exitstatus or pytest.ExitCode.USAGE_ERROR
        if self._ledger:
            self._write("GITHUB_STEP_SUMMARY", step_summary(), files.write_step_summary)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter, exitstatus: pytest.ExitCode) -> None:
        settings = self._config.stash[SETTINGS]
        for line in self._unwritten.values():
            terminalreporter.write_line(line, red=True)
        for path, what in ((settings.report, "report"), (settings.html, "page")):
            if path is not None and path not in self._unwritten:
                terminalreporter.write_sep("-", f"evalmode {what}: {path}")
        if not self._ledger:
            return
        terminalreporter.section(f"evalmode, {settings.rank}" if settings.rank else "evalmode")
        for line in self._ledger.summary():
            terminalreporter.line(line)
        ended = exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED)
        if settings.strict and ended and is_whole_suite(self._config):
            for line in self._ledger.unneeded(settings.policy):
                terminalreporter.line(line)

    def _write(self, option: str, path: Path | None, write: Callable[[Path, Ledger, Settings], None]) -> bool:
        """Write a file, if it is asked for; False if that failed."""
        if path is None:
            return True
        try:
            write(path, self._kept(), self._config.stash[SETTINGS])
        except OSError as error:
            self._unwritten[path] = f"{option}: {path} could not be written: {error.strerror}"
        return path not in self._unwritten

    def _kept(self) -> Ledger:
        from pytest_evalmode.report.ledger import Ledger

        if self._ledger is None:
            self._ledger = Ledger()
        return self._ledger
