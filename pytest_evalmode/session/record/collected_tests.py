"""The plugin that records which tests exist."""

from __future__ import annotations

from typing import Any

import pytest

_COLLECTED = "evalmode_collected"


class CollectedTests:
    """Records which tests exist, including deselected ones; an xdist worker sends them to the controller."""

    def __init__(self) -> None:
        self.tests: set[str] = set()
        self.uncollected: set[str] = set()
        """Node ids of files and folders whose tests are unknown, because collecting them failed or was skipped."""

    def pytest_itemcollected(self, item: pytest.Item) -> None:
        self.tests.add(item.nodeid)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if not report.passed:
            self.uncollected.add(report.nodeid)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        output = getattr(session.config, "workeroutput", None)
        if output is not None:
            output[_COLLECTED] = sorted(self.tests)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        self.tests.update(getattr(node, "workeroutput", {}).get(_COLLECTED, ()))

    def is_gone(self, nodeid: str) -> bool:
        """Return whether a test no longer exists; only meaningful in a run of the whole suite."""
        return (
            bool(self.tests)
            and nodeid not in self.tests
            and not any(nodeid.startswith(each) for each in self.uncollected)
        )
