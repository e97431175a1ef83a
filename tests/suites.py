"""Helpers that write an inner test suite, run it and read its results."""

from __future__ import annotations

import json
import pkgutil
import re
from collections.abc import Iterable
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import pytest_evalmode

SCHEMA = json.loads((Path(pytest_evalmode.__file__).parent / "report" / "report.schema.json").read_text("utf-8"))
"""The JSON Schema of the JSON report."""

# Modules that an inner run imports are dropped when it ends, so those that runs need are imported here once.
_OTHERS = "hypothesis numpy.typing PIL.Image safetensors.numpy torch._dynamo torch.distributed.tensor"
_MODULES = [module.name for module in pkgutil.walk_packages(pytest_evalmode.__path__, "pytest_evalmode.")]
for _name in (*_OTHERS.split(), "tests.serialized", *_MODULES):
    with suppress(ImportError):  # of an optional package
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

# Tests that are appended to a suite: whatever ran before them, the first passes and the second fails.
NEXT = """

@pytest.mark.inference
def test_next_clean():
    infer(Net().eval())

@pytest.mark.inference
def test_next_violation():
    infer(Net())
"""
NEXT_IS_RIGHT = {"test_next_clean": "passed", "test_next_violation": "failed"}


# Plugins that few inner runs need (these load them with `-pNAME`): they take a fifth of the time of a run.
_RARE = "benchmark html html_fixtures metadata pytest_cov pytest_github_actions_annotate_failures pytest_torch timeout"
# Run tests in file order, without pytest-asyncio's warning and without the warning filters of the outer run.
PLAIN = (
    *(f"-pno:{name}" for name in ("randomly", *_RARE.split())),
    *("-o", "asyncio_default_fixture_loop_scope=function", "-W", "default"),
)

# Ways to run an inner suite.  The plugin gets little but reports from xdist workers, so most tests serialize these
# in one process, and only `make test-all` repeats them with workers.
SERIALIZED = pytest.param(("-p", "tests.serialized"), id="serialized")
XDIST = pytest.param(("-n2",), id="xdist", marks=pytest.mark.xdist)
XDIST_AGAIN = pytest.param(("-n2",), id="xdist", marks=[pytest.mark.xdist, pytest.mark.repetition])
WORKERS = pytest.mark.parametrize("workers", [SERIALIZED, XDIST_AGAIN])


def write(pytester: pytest.Pytester, source: str = "", /, **files: str) -> None:
    """Write an inner suite: `nets.py`, `test_it.py` with the source, and further files by name."""
    sources = {"nets": NETS, **files}
    if source:
        sources["test_it"] = f"from nets import *\n{source}"
    pytester.makepyfile(**sources)


def run(pytester: pytest.Pytester, *args: str | Path) -> pytest.RunResult:
    """Run the inner suite in this process, its tests in file order."""
    return pytester.runpytest_inprocess(*PLAIN, *args)


def outcomes(pytester: pytest.Pytester, *args: str) -> dict[str, str]:
    """Run the inner suite; return each test's last outcome, as pytest counts it, by node id."""
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
    """Run a suite and the tests of NEXT; return the outcome of each test by its name."""
    write(pytester, source + NEXT)
    return {nodeid.rpartition("::")[2]: outcome for nodeid, outcome in outcomes(pytester, *args).items()}


def json_report(pytester: pytest.Pytester, *args: str) -> dict[str, Any]:
    """Run the inner suite; return its JSON report, validated."""
    path = pytester.path / "report.json"
    run(pytester, f"--evalmode-report={path}", *args)
    report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    jsonschema.validate(report, SCHEMA)
    return report


def broken_rules(pytester: pytest.Pytester, source: str, *args: str) -> dict[str, list[str]]:
    """Run a suite; return the rules that each guarded test broke, by its name without `test_`."""
    write(pytester, source)
    return {name: [v["rule"] for v in test["violations"]] for name, test in guarded_tests(pytester, *args).items()}


def guarded_tests(pytester: pytest.Pytester, *args: str) -> dict[str, dict[str, Any]]:
    """Run the inner suite; return the entries of its JSON report by the name of the test without `test_`."""
    report = json_report(pytester, *args)
    return {test["nodeid"].rpartition("::test_")[2]: test for test in report["tests"]}


def plugin_lines(result: pytest.RunResult, packages: str = "pytest_evalmode|_pytest|pluggy") -> list[str]:
    """Return the printed lines that point into the plugin, pytest or pluggy, which are of no use to a user."""
    return [line for line in result.outlines if re.search(rf"({packages})/\w+.*\.py", line)]
