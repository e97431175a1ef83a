"""A matrix of kinds of tests and cases: a violation fails the call phase and changes nothing else."""

from __future__ import annotations

from pathlib import Path
from textwrap import indent

import pytest

from tests import suites

# A case: a decorator, the body of a test, and the expected outcome.  `net` is in training mode unless switched.
CASES = {
    "clean": ("", "infer(net.eval())", "passed"),
    "violation": ("", "infer(net)", "failed"),
    "own_failure": ("", "infer(net.eval())\nassert not net, 'own'", "failed"),
    "own_failure_and_violation": ("", "infer(net)\nraise ValueError('own')", "failed"),
    "own_failure_expected": ("@pytest.mark.xfail(raises=ValueError)", "infer(net)\nraise ValueError('own')", "xfailed"),
    "skip": ("", "infer(net)\npytest.skip('no data')", "skipped"),
    "xfail": ("@pytest.mark.xfail(strict=False)", "infer(net)", "xfailed"),
    "xfail_strict": ("@pytest.mark.xfail(strict=True)", "infer(net)", "xfailed"),
    "xfail_raises": ("@pytest.mark.xfail(raises=HygieneViolation, strict=True)", "infer(net)", "xfailed"),
    "xfail_raises_another": ("@pytest.mark.xfail(raises=ValueError)", "infer(net)", "failed"),
    "xfail_inside": ("", "infer(net)\npytest.xfail('later')", "xfailed"),
    "xfail_clean": ("@pytest.mark.xfail(strict=False)", "infer(net.eval())", "xpassed"),
    "xfail_strict_clean": ("@pytest.mark.xfail(strict=True)", "infer(net.eval())", "failed"),
}

# The outcomes that differ when nothing is guarded.
UNGUARDED = {
    "violation": "passed",
    "xfail": "xpassed",
    "xfail_strict": "failed",
    "xfail_raises": "failed",
    "xfail_raises_another": "xpassed",
}

HEADER = """
import asyncio
import unittest

import anyio
import pytest
from hypothesis import given, settings
from hypothesis.strategies import booleans
from nets import *
from pytest_evalmode import HygieneViolation

pytestmark = pytest.mark.inference


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.fixture
def net():
    return Net()
"""

# Kinds of tests: `{{case}}` is replaced by the name of the case, `{{mark}}` by its decorator.
KINDS = {
    "function": """
{mark}
def test_{case}(net):
    {body}
""",
    "method": """
class Test_{case}:
    {mark}
    def test_{case}(self, net):
        {body}
""",
    "testcase": """
class Test_{case}(unittest.TestCase):
    {mark}
    def test_{case}(self):
        net = Net()
        {body}
""",
    "anyio": """
{mark}
@pytest.mark.anyio
async def test_{case}(net):
    await anyio.sleep(0)
    {body}
""",
    "asyncio": """
{mark}
@pytest.mark.asyncio
async def test_{case}(net):
    await asyncio.sleep(0)
    {body}
""",
    "parametrized": """
{mark}
@pytest.mark.parametrize("n", [1])
def test_{case}(net, n):
    {body}
""",
    "hypothesis": """
{mark}
@settings(max_examples=3, database=None, deadline=None)
@given(booleans())
def test_{case}(n):
    net = Net()
    {body}
""",
    "subtests": """
{mark}
def test_{case}(net, subtests):
    with subtests.test():
        {body}
""",
    "subtest_of_testcase": """
class Test_{case}(unittest.TestCase):
    {mark}
    def test_{case}(self):
        net = Net()
        with self.subTest():
            {body}
""",
}

# A failure or skip ends only the subtest: the test continues, and its violations count.
SUBTESTS = {
    ("subtests", "skip"): "failed",
    ("subtests", "xfail_inside"): "failed",
    ("subtests", "own_failure_expected"): "failed",
    ("subtest_of_testcase", "skip"): "failed",
    ("subtest_of_testcase", "xfail_inside"): "failed",
    ("subtest_of_testcase", "own_failure_expected"): "failed",
    ("subtest_of_testcase", "own_failure"): "passed",  # pytest counts only the subtest
}
if not hasattr(pytest, "Subtests"):  # before pytest 9, the plugin pytest-subtests counts only the subtest as well
    SUBTESTS["subtests", "own_failure"] = "passed"

EXPECTED = {(kind, case): CASES[case][2] for kind in KINDS for case in CASES} | SUBTESTS


@pytest.fixture
def matrix(pytester: pytest.Pytester) -> pytest.Pytester:
    """Write every case as every kind of test."""
    suites.write(
        pytester,
        **{
            f"test_{kind}": HEADER
            + "".join(format_test(KINDS[kind], case, mark, body) for case, (mark, body, _) in CASES.items())
            for kind in KINDS
        },
    )
    return pytester


def format_test(template: str, case: str, mark: str, body: str) -> str:
    margin = next(line for line in template.splitlines() if "{body}" in line).partition("{")[0]
    return template.format(case=case, mark=mark, body=indent(body, margin).strip())


def cells(pytester: pytest.Pytester, *args: str) -> dict[tuple[str, str], str]:
    """Run the matrix; return the outcomes by kind and case."""
    return {cell(nodeid): outcome for nodeid, outcome in suites.outcomes(pytester, *args).items()}


def cell(nodeid: str) -> tuple[str, str]:
    file, _, name = nodeid.partition("::")
    return Path(file).stem.removeprefix("test_"), name.rpartition("test_")[2].partition("[")[0]


RERUN = pytest.param(("--reruns=1",), id="reruns", marks=pytest.mark.repetition)


@pytest.mark.parametrize("how", [suites.SERIALIZED, suites.XDIST_AGAIN, RERUN])
def test_outcome_of_every_kind_and_case(matrix: pytest.Pytester, how: tuple[str, ...]) -> None:
    assert cells(matrix, *how) == EXPECTED


@pytest.mark.parametrize("kind", KINDS)
def test_x_stops_at_the_violation(matrix: pytest.Pytester, kind: str) -> None:
    assert cells(matrix, "-x", f"test_{kind}.py") == {(kind, "clean"): "passed", (kind, "violation"): "failed"}


def test_lf_reruns_failed_tests_only(matrix: pytest.Pytester) -> None:
    cells(matrix)
    assert cells(matrix, "--lf") == {cell: outcome for cell, outcome in EXPECTED.items() if outcome == "failed"}


def test_without_the_guard_only_violations_are_missing(matrix: pytest.Pytester) -> None:
    kinds = KINDS.keys() - {"subtests", "subtest_of_testcase"}
    actual = cells(matrix, "--evalmode=off", *(f"test_{kind}.py" for kind in sorted(kinds)))
    assert actual == {(kind, case): UNGUARDED.get(case, CASES[case][2]) for kind in kinds for case in CASES}
