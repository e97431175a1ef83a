"""What a run leaves behind to be read and looked at: files of its own, and panels in the page of pytest-html."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pytest_evalmode.session.settings import Settings
from pytest_evalmode.session.stash import PROPERTY

if TYPE_CHECKING:
    from pytest_evalmode.report.ledger import Ledger


def write_report(path: Path, ledger: Ledger, settings: Settings) -> None:
    ledger.write(path, settings.mode, settings.strict)


def write_page(path: Path, ledger: Ledger, settings: Settings) -> None:
    """Write the page; folders on the way are made."""
    from pytest_evalmode.report.page import page

    text = page(
        list(ledger.tests), totals=ledger.totals(), mode=settings.mode, strict=settings.strict, known=settings.known
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def write_step_summary(path: Path, ledger: Ledger, settings: Settings) -> None:
    """Add to what other steps of the job have written."""
    from pytest_evalmode.report.markdown import markdown

    with path.open("a", encoding="utf-8") as file:
        file.write(markdown(list(ledger.tests), ledger.totals()))


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
