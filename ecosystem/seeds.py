"""pytest plugin: the same random numbers in each test, whichever tests ran before, and the outcome of each as JSON.

The outcomes, by node id, are written to `$ECOSYSTEM_OUTCOMES`.
"""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import pytest
import torch

SEVERITY = ("passed", "xpassed", "skipped", "xfailed", "failed", "error")

_outcomes: dict[str, str] = {}


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Seed the generators that tests draw from."""
    random.seed(0)
    torch.manual_seed(0)
    try:
        import numpy
    except ImportError:
        return
    numpy.random.seed(0)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Note the worst outcome among the phases and subtests of a test."""
    outcome: str = report.outcome
    if hasattr(report, "wasxfail"):
        outcome = "xfailed" if report.skipped else "xpassed"
    elif report.failed and report.when != "call":
        outcome = "error"
    _outcomes[report.nodeid] = max(_outcomes.get(report.nodeid, "passed"), outcome, key=SEVERITY.index)


def pytest_sessionfinish() -> None:
    """Write the outcomes."""
    Path(os.environ["ECOSYSTEM_OUTCOMES"]).write_text(json.dumps(_outcomes, indent=1))
