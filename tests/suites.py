"""The models that the inner suites run, and how to run such a suite and read what came of it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import pytest_evalmode

SCHEMA = json.loads((Path(pytest_evalmode.__file__).parent / "report" / "report.schema.json").read_text("utf-8"))
"""What every JSON report is valid against."""

# An inner run forgets what it imports: what each of them needs is imported here once, as torch is in conftest.py.
for _name in ("hypothesis", "torch._dynamo", "pytest_evalmode.guards", "pytest_evalmode.session.guarded_test.phases"):
    import_module(_name)

# `from nets import *` in an inner suite.  A fresh Net is in training mode: `infer(Net())` breaks train-mode and nothing
# else, `infer(Net().eval())` breaks nothing; `train(net)` changes its weights.
NETS = """
import pytest
import torch
from torch import nn

torch.set_num_threads(1)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        return self.drop(self.fc(x))


@torch.no_grad()
def infer(net):
    return net(torch.ones(2, 4))


def train(net):
    net.train()
    net(torch.ones(2, 4)).sum().backward()
    with torch.no_grad():
        net.fc.weight.add_(1)
    net.eval()
"""

# What comes behind a hazard: whatever that was, of these the violation is found, and nothing else.
NEXT = """

@pytest.mark.inference
def test_next_clean():
    infer(Net().eval())

@pytest.mark.inference
def test_next_violation():
    infer(Net())
"""
NEXT_IS_RIGHT = {"test_next_clean": "passed", "test_next_violation": "failed"}


# In the order in which they are written; without what pytest-asyncio warns about; not under the filters of this run.
PLAIN = ("-p", "no:randomly", "-o", "asyncio_default_fixture_loop_scope=function", "-W", "default")


def write(pytester: pytest.Pytester, source: str = "", /, **files: str) -> None:
    """Write an inner suite: `nets.py`, `test_it.py` with the source, and further files by name."""
    sources = {"nets": NETS, **files}
    if source:
        sources["test_it"] = f"from nets import *\n{source}"
    pytester.makepyfile(**sources)


def run(pytester: pytest.Pytester, *args: str | Path) -> pytest.RunResult:
    """Run the inner suite in this process, its tests in the order in which they are written."""
    return pytester.runpytest_inprocess(*PLAIN, *args)


def outcomes(pytester: pytest.Pytester, *args: str) -> dict[str, str]:
    """Run the inner suite and tell each test's last outcome, as pytest counts it, by its node id."""
    reports = pytester.inline_run(*PLAIN, *args).getreports("pytest_runtest_logreport")
    return dict(_outcomes(reports))


def _outcomes(reports: Iterable[Any]) -> Iterable[tuple[str, str]]:
    for report in reports:
        if type(report) is not pytest.TestReport:  # a subtest is a subclass, of pytest or of pytest-subtests
            continue
        if report.outcome == "rerun":  # type: ignore[comparison-overlap]  # rerunfailures adds it
            continue
        if hasattr(report, "wasxfail"):
            yield report.nodeid, "xfailed" if report.skipped else "xpassed"
        elif report.failed and report.when != "call":
            yield report.nodeid, "error"
        elif report.when == "call" or report.skipped:
            yield report.nodeid, report.outcome


def results(pytester: pytest.Pytester, source: str, *args: str) -> dict[str, str]:
    """The outcome of each test of a suite by its bare name, the next tests behind it included."""
    write(pytester, source + NEXT)
    return {nodeid.rpartition("::")[2]: outcome for nodeid, outcome in outcomes(pytester, *args).items()}


def json_report(pytester: pytest.Pytester, *args: str) -> dict[str, Any]:
    """Run the inner suite and read the JSON report it writes."""
    path = pytester.path / "report.json"
    run(pytester, f"--evalmode-report={path}", *args)
    report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    jsonschema.validate(report, SCHEMA)
    return report


def broken_rules(pytester: pytest.Pytester, source: str, *args: str) -> dict[str, list[str]]:
    """The rules that each guarded test broke, by the bare name of the test."""
    write(pytester, source)
    return {name: [v["rule"] for v in test["violations"]] for name, test in guarded_tests(pytester, *args).items()}


def guarded_tests(pytester: pytest.Pytester, *args: str) -> dict[str, dict[str, Any]]:
    """What the JSON report of the inner suite tells of each guarded test, by its bare name without `test_`."""
    report = json_report(pytester, *args)
    return {test["nodeid"].rpartition("::test_")[2]: test for test in report["tests"]}


def plugin_lines(result: pytest.RunResult, packages: str = "pytest_evalmode|_pytest|pluggy") -> list[str]:
    """The lines printed that stand in the plugin, in pytest or in pluggy: of no use to a user."""
    return [line for line in result.outlines if re.search(rf"({packages})/\w+.*\.py", line)]
