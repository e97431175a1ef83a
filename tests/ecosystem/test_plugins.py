"""Other pytest plugins: clean tests pass, violations are reported, and the plugins' own results stay the same."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests import suites

# Each plugin's way of running a model, which is in training mode in the "faulty" tests.
SUITE = """
import anyio
import asyncio
import pytest
from hypothesis import given, settings
from hypothesis.strategies import integers
from nets import *
from pytest_torch.contract import check_inference_contract

pytestmark = [pytest.mark.inference, pytest.mark.timeout(60)]
each = pytest.mark.parametrize("mode", ["clean", "faulty"])


@pytest.fixture
def net(mode):
    return Net().train(mode == "faulty")


@pytest.fixture
def anyio_backend():
    return "asyncio"


@each
def test_plain(net):
    infer(net)


@each
@pytest.mark.asyncio
async def test_asyncio(net):
    await asyncio.gather(asyncio.to_thread(infer, net), asyncio.sleep(0))


@each
@pytest.mark.anyio
async def test_anyio(net):
    async with anyio.create_task_group() as group:
        group.start_soon(anyio.to_thread.run_sync, infer, net)


@each
@settings(max_examples=3, database=None, deadline=None)
@given(n=integers(1, 4))
def test_hypothesis(mode, n):
    infer(Net().train(mode == "faulty"))


@each
def test_benchmark(net, benchmark):
    benchmark(infer, net)


@each
@pytest.mark.torch_deterministic
def test_torch(net):
    infer(net)


@each
@pytest.mark.flaky(reruns=1)
def test_flaky(net):
    infer(net)
"""
TESTS = ("plain", "asyncio", "anyio", "hypothesis", "benchmark", "torch", "flaky")
COVERED = "-ppytest_cov", "--cov=nets", "--cov-report=json"


@suites.WORKERS
def test_all_plugins_together(pytester: pytest.Pytester, workers: tuple[str, ...]) -> None:
    suites.write(pytester, SUITE)
    quick = "--benchmark-max-time=0.01", "--benchmark-min-rounds=2", "--benchmark-warmup=off"
    result = pytester.runpytest_inprocess(
        *("--randomly-seed=3", "-rA", "--html=report.html", "--evalmode-report=report.json"),
        *("-o", "asyncio_default_fixture_loop_scope=function", "-W", "default"),
        *(*COVERED, *quick, *workers),
    )
    outcomes = result.parseoutcomes()
    assert (outcomes["passed"], outcomes["failed"], outcomes["rerun"]) == (len(TESTS), len(TESTS), 1)
    for name in TESTS:
        result.stdout.fnmatch_lines_random(
            [
                f"PASSED test_it.py::test_{name}[[]clean*",
                f"FAILED test_it.py::test_{name}[[]faulty* - HygieneViolation: *",
            ]
        )
    report = json.loads((pytester.path / "report.json").read_text())
    assert {
        test["nodeid"].partition("::test_")[2]: {violation["rule"] for violation in test["violations"]}
        for test in report["tests"]
    } == {f"{name}[{mode}]": rules for name in TESTS for mode, rules in (("clean", set()), ("faulty", {"train-mode"}))}
    assert "train-mode" in (pytester.path / "report.html").read_text()


def test_coverage_is_the_same_with_the_guard(pytester: pytest.Pytester) -> None:
    suites.write(
        pytester,
        """
@pytest.mark.inference
def test_clean():
    infer(Net().eval())

@pytest.mark.inference
@pytest.mark.xfail(strict=True)
def test_faulty():
    infer(Net())
""",
    )

    def covered(*arguments: str) -> Any:
        suites.run(pytester, *COVERED, *arguments)
        return json.loads((pytester.path / "coverage.json").read_text())["files"]["nets.py"]["executed_lines"]

    assert covered() == covered("--evalmode=off") != []


def test_tests_after_a_timeout_are_guarded(pytester: pytest.Pytester) -> None:
    """The timeout stays a failure of its own; later tests are guarded as usual."""
    suites.write(
        pytester,
        """
import time

class Slow(Net):
    def forward(self, x):
        time.sleep(20)

@pytest.mark.inference
def test_clean():
    infer(Net().eval())

@pytest.mark.inference
def test_faulty():
    infer(Net())

@pytest.mark.inference
@pytest.mark.timeout(1)
def test_slow():
    infer(Slow().eval())

@pytest.mark.inference
def test_clean_after():
    infer(Net().eval())

@pytest.mark.inference
def test_faulty_after():
    infer(Net())
""",
    )
    result = suites.run(pytester, "-ptimeout", "-rA", "--timeout-method=signal")
    result.assert_outcomes(passed=2, failed=3)
    result.stdout.fnmatch_lines_random(
        [
            "FAILED test_it.py::test_faulty - HygieneViolation: train-mode*",
            "FAILED test_it.py::test_slow - Failed: Timeout*",
            "FAILED test_it.py::test_faulty_after - HygieneViolation: train-mode*",
        ]
    )


def test_a_benchmark_reports_a_violation_once(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)  # pytest-benchmark measures nothing in an xdist worker
    suites.write(
        pytester,
        """
@pytest.mark.inference
def test_clean(benchmark):
    benchmark.pedantic(infer, (Net().eval(),), rounds=3, iterations=2)

@pytest.mark.inference
def test_faulty(benchmark):
    benchmark.pedantic(infer, (Net(),), rounds=3, iterations=2)
""",
    )
    clean, faulty = suites.json_report(pytester, "-pbenchmark")["tests"]
    assert clean["violations"] == []
    (violation,) = faulty["violations"]
    assert (violation["rule"], violation["count"]) == ("train-mode", 3 * 2 + 1)  # plus the run that returns the result
