"""A plugin for inner runs that serializes each report and restores it, as xdist does to send it to the controller.

PYTEST_DONT_REWRITE: this module is imported before pytest loads it as a plugin.
"""

from __future__ import annotations

import json
from collections.abc import Generator

import pytest


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    hook, config = item.config.hook, item.config
    data = json.dumps(hook.pytest_report_to_serializable(config=config, report=report))
    restored: pytest.TestReport = hook.pytest_report_from_serializable(config=config, data=json.loads(data))
    return restored
