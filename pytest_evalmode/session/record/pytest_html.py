"""What pytest-html shows of a guarded test."""

from __future__ import annotations

import json

import pytest

from pytest_evalmode.session.stash import RECORD_PROPERTY


class Panels:
    """A panel in each row of pytest-html.  To be registered where that is installed; it brings Jinja2 along."""

    def pytest_html_results_table_html(self, report: pytest.TestReport, data: list[str]) -> None:
        record = dict(report.user_properties).get(RECORD_PROPERTY)
        if record is None or not (report.when == "call" or report.failed):
            return
        test = json.loads(str(record))
        if test["shown"]:
            from pytest_evalmode.report.page import render_panel

            data.insert(0, render_panel({"nodeid": report.nodeid, "outcome": report.outcome, **test}))
