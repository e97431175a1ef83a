"""Panels of guarded tests in the report of pytest-html."""

from __future__ import annotations

import json

import pytest

from pytest_evalmode.session.stash import RECORD_PROPERTY


class Panels:
    """A plugin that adds a panel to each row; registered only if pytest-html, which requires Jinja2, is installed."""

    def pytest_html_results_table_html(self, report: pytest.TestReport, data: list[str]) -> None:
        record = dict(report.user_properties).get(RECORD_PROPERTY)
        if record is None or not (report.when == "call" or report.failed):
            return
        test = json.loads(str(record))
        if test["shown"]:
            from pytest_evalmode.report.page import render_panel

            data.insert(0, render_panel({"nodeid": report.nodeid, "outcome": report.outcome, **test}))
