"""The plugin's pytest hooks, in the order of their calls.

Modules that import torch are imported when the first guarded test needs them, not before.  In the same way, nothing of
`lock/` and `report/` is imported before it is needed.
"""

from __future__ import annotations

import sys
from collections.abc import Generator
from typing import Any

import pytest
from pluggy import Result

from pytest_evalmode.session import hookspecs
from pytest_evalmode.session.evalmode_fixture import LOCK, evalmode, evalmode_lock
from pytest_evalmode.session.fixtures import (
    forget_fixture,
    get_history,
    observe_fixture_setup,
    observe_global_state,
    record_event,
    record_fixture_value,
)
from pytest_evalmode.session.options import add_options, read_settings
from pytest_evalmode.session.record.collected_tests import CollectedTests
from pytest_evalmode.session.record.lock_records import LockRecords
from pytest_evalmode.session.record.recorder import Recorder
from pytest_evalmode.session.settings import SETTINGS, is_worker
from pytest_evalmode.session.stash import GUARD, RUNNING_ITEM, remove_records

__all__ = ["evalmode", "evalmode_lock"]


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    pluginmanager.add_hookspecs(hookspecs)


def pytest_addoption(parser: pytest.Parser) -> None:
    add_options(parser)


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> int | None:
    rule = config.getoption("evalmode_rules")  # "" for all rules
    if rule is None:
        return None
    from pytest_evalmode.session.user_hooks import explain_rules

    print(explain_rules(rule, config))
    return 0


def pytest_configure(config: pytest.Config) -> None:
    settings = config.stash[SETTINGS] = read_settings(config)
    if any(settings.ini_exemptions.values()):
        from pytest_evalmode.session.user_hooks import check_ini_rules

        check_ini_rules(settings.ini_exemptions, config)
    collected = CollectedTests()
    config.pluginmanager.register(collected, "evalmode-collected")
    if not is_worker(config):  # xdist workers send their reports to the controller
        config.pluginmanager.register(Recorder(config, collected), "evalmode-recorder")
        config.pluginmanager.register(LockRecords(config, collected), "evalmode-lock-records")
    config.addinivalue_line(
        "markers",
        f"{settings.marker}(*, allow=(), train=(), mutable=(), reason=None): fail the test if its PyTorch inference "
        "was not clean (pytest-evalmode)",
    )
    config.addinivalue_line(
        "markers",
        f"{settings.no_guard_marker}: exclude the test from evalmode_mark and --evalmode-all (pytest-evalmode)",
    )


def pytest_collection_finish(session: pytest.Session) -> None:
    settings = session.config.stash[SETTINGS]
    # Record torch's global state before a test can change it.  If torch is not imported yet, it still has its defaults.
    if settings.strict and "torch" in sys.modules and any(map(settings.is_watched, session.items)):
        get_history(session.config)


# Old-style wrappers, here and below: a new-style one would add its own frame to the traceback of an exception.
@pytest.hookimpl(hookwrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, Result[object], None]:
    with observe_global_state(item):
        yield


@pytest.hookimpl(hookwrapper=True)
def pytest_fixture_setup(
    fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest
) -> Generator[None, Result[object], None]:
    with observe_fixture_setup(fixturedef, request.config):
        outcome = yield
    if outcome.exception is None:
        record_fixture_value(fixturedef, outcome.get_result(), request)


def pytest_fixture_post_finalizer(fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest) -> None:
    forget_fixture(fixturedef, request)


def pytest_runtest_setup(item: pytest.Item) -> None:
    remove_records(item)  # left by an earlier run of this test
    if item.config.stash[SETTINGS].is_watched(item):
        from pytest_evalmode.session.guarded_test import phases

        phases.prepare(item)
    else:
        _restore_torch()


@pytest.hookimpl(hookwrapper=True, trylast=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Result[object], None]:
    item.config.stash[RUNNING_ITEM] = item
    if GUARD in item.stash or item.config.stash[SETTINGS].is_watched(item):  # a fixture may have added the mark
        from pytest_evalmode.session.guarded_test import phases

        phases.begin(item)
    record_event(item.config, item.nodeid, getattr(item, "fixturenames", ()))
    outcome = yield
    item.config.stash[RUNNING_ITEM] = None
    if LOCK in item.stash:
        item.stash[LOCK].finish(outcome)
        del item.stash[LOCK]
    if GUARD in item.stash:  # the test may have requested the fixture during its call
        from pytest_evalmode.session.guarded_test import phases

        phases.end(item, outcome)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, Result[object], None]:
    outcome = yield
    if GUARD in item.stash:
        from pytest_evalmode.session.guarded_test.outcome import report_guard_error

        report_guard_error(item, outcome)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if call.excinfo is None:
        return report
    if call.when == "teardown":
        from pytest_evalmode.session.guarded_test.outcome import override_xfail

        override_xfail(call.excinfo.value, report)
    elif GUARD in item.stash or type(call.excinfo.value).__module__ == "pytest_evalmode":
        from pytest_evalmode.session.guarded_test.outcome import shorten_report

        shorten_report(report, call.excinfo.value, item.config.getoption("tbstyle"), item.config.rootpath)
    return report


def pytest_unconfigure() -> None:
    _restore_torch()
    write_tracking = sys.modules.get("pytest_evalmode.observe.state.write_tracking")
    if write_tracking is not None:
        write_tracking.reset()  # this process may run pytest again, with other options


def _restore_torch() -> None:
    """Remove the patches that guarded tests have left in place for the next one."""
    patches = sys.modules.get("pytest_evalmode.observe.patches")
    if patches is not None:
        patches.restore_all()
