"""The printed failure: in every --tb style, as a note on a test's own failure, and in 80 columns."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pytest_evalmode import HygieneError, HygieneViolation, guard
from pytest_evalmode.rules import Violation
from tests import suites

STYLES = ("auto", "long", "short", "line", "native")

VIOLATION = """
@pytest.mark.inference
def test_it():
    infer(Net())
"""

# The body of a test that fails by itself, and the name of its exception.
OWN = {
    "assertion": ("infer(Net())\n    assert 1 == 2, 'own'", "AssertionError"),
    "exception": ("infer(Net())\n    raise KeyError('own')", "KeyError"),
    "pytest.fail": ("infer(Net())\n    pytest.fail('own')", "Failed"),
    "group": ("infer(Net())\n    raise ExceptionGroup('own', [ValueError(1)])", "ExceptionGroup"),
    "no traceback": ("infer(Net())\n    pytest.fail('own', pytrace=False)", "Failed"),
}


PRINTS_GROUPS_NATIVELY = pytest.version_tuple < (8, 4)
"""Whether pytest prints exception groups with all frames, including its own, in every style but `line`."""


def frames_added(result: pytest.RunResult, style: str) -> list[str]:
    """Return lines that no user should see, without those that pytest itself prints in the native style."""
    return suites.plugin_lines(result, "pytest_evalmode") if style == "native" else suites.plugin_lines(result)


@pytest.fixture
def marked(pytester: pytest.Pytester) -> pytest.Pytester:
    suites.write(pytester, VIOLATION)
    return pytester


@pytest.mark.parametrize("style", STYLES)
def test_a_violation_is_printed_in_full_without_frames_in_every_style(marked: pytest.Pytester, style: str) -> None:
    result = suites.run(marked, f"--tb={style}")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*train-mode: Net ran once in training mode*"])
    if style != "line":  # this style prints one line per failure
        result.stdout.fnmatch_lines(["*nets.py:*return net(torch.ones(2, 4))*", "*fix: ?*"])
    assert suites.plugin_lines(result) == []


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("own", OWN)
def test_violations_are_a_note_on_the_tests_own_failure(pytester: pytest.Pytester, own: str, style: str) -> None:
    body, kind = OWN[own]
    suites.write(pytester, f"@pytest.mark.inference\ndef test_it():\n    {body}\n")
    result = suites.run(pytester, f"--tb={style}")
    result.assert_outcomes(failed=1)
    output = result.stdout.str()
    assert kind in output
    assert "own" in output
    assert "HygieneViolation" not in output
    if style != "line":
        assert output.count("train-mode: Net ran once in training mode") == 1
    natively = own == "group" and PRINTS_GROUPS_NATIVELY and style != "line"
    assert frames_added(result, "native" if natively else style) == []


@pytest.mark.parametrize("style", STYLES)
def test_a_failure_of_a_clean_test_has_no_note(pytester: pytest.Pytester, style: str) -> None:
    suites.write(pytester, "@pytest.mark.inference\ndef test_it():\n    infer(Net().eval())\n    assert 0, 'own'\n")
    result = suites.run(pytester, f"--tb={style}")
    result.assert_outcomes(failed=1)
    assert "inference was not clean" not in result.stdout.str()


@pytest.mark.parametrize("style", STYLES)
def test_a_testcase_is_printed_like_a_function(pytester: pytest.Pytester, style: str) -> None:
    suites.write(
        pytester,
        """
import unittest

@pytest.mark.inference
class TestIt(unittest.TestCase):
    def test_violation(self):
        infer(Net())

    def test_own(self):
        infer(Net())
        self.assertEqual(1, 2, "own")
""",
    )
    result = suites.run(pytester, f"--tb={style}")
    result.assert_outcomes(failed=2)
    output = result.stdout.str()
    assert "AssertionError: 1 != 2 : own" in output
    if style != "line":
        assert output.count("fix: call net.eval()") == 2
    assert suites.plugin_lines(result) == []


# When the model raises, the guard is between it and the test on the stack.
FAILING = """
class Failing(Net):
    def forward(self, x):
        return super().forward(x) @ torch.ones(7)

@pytest.mark.inference
def test_it():
    infer(Failing())
"""


@pytest.mark.parametrize("style", STYLES)
def test_an_exception_inside_a_forward_shows_no_frame_of_the_guard(pytester: pytest.Pytester, style: str) -> None:
    suites.write(pytester, FAILING)
    result = suites.run(pytester, f"--tb={style}")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*RuntimeError: *"])
    assert frames_added(result, style) == []


@pytest.mark.parametrize("style", ["short", "no"])
def test_the_short_summary_keeps_the_rule_in_80_columns(
    marked: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, style: str
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for name in ("CI", "BUILD_NUMBER"):
        monkeypatch.delenv(name, raising=False)
    result = suites.run(marked, "-ra", f"--tb={style}")
    (line,) = [line for line in result.outlines if line.startswith("FAILED")]
    assert line.startswith("FAILED test_it.py::test_it - HygieneViolation: train-mode: Net ran once")
    assert len(line) <= 80


@pytest.mark.parametrize(
    ("fault", "rule"),
    [
        ("infer(Net())", "train-mode"),
        ("Net().eval()(torch.ones(2, 4))", "grad-mode"),
        ("net = Net().eval(); infer(net); net.fc.bias.data.add_(1)", "state-mutated"),
        ("infer(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, track_running_stats=False)).eval())", "batch-stats"),
        ("infer(Careless().eval())", "random-forward"),
    ],
)
def test_the_headline_names_the_rule(pytester: pytest.Pytester, fault: str, rule: str) -> None:
    suites.write(
        pytester,
        f"""
class Careless(Net):
    def forward(self, x):
        return nn.functional.dropout(super().forward(x))

@pytest.mark.inference
def test_it():
    {fault}
""",
    )
    result = suites.run(pytester, "--tb=line")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines([f"*: HygieneViolation: {rule}: *", f"FAILED *HygieneViolation: {rule}: *"])


def test_the_headline_counts_further_violations(pytester: pytest.Pytester) -> None:
    suites.write(pytester, "@pytest.mark.inference\ndef test_it():\n    Net()(torch.ones(2, 4))\n")
    suites.run(pytester).stdout.fnmatch_lines(
        ["E   HygieneViolation: train-mode: Net ran once in training mode (+1 more)", "*grad-mode *"]
    )


def test_hygiene_violation_is_a_pytest_failure_with_violations() -> None:
    violation = Violation(rule="train-mode", model="net", subjects=("net (Net)",), message="net ran", finding="it ran")
    error = HygieneViolation([violation])
    assert isinstance(error, pytest.fail.Exception)
    assert error.violations == (violation,)
    assert str(error).splitlines()[0] == "train-mode: net ran"


def test_hygiene_error_is_an_assertion_error_with_violations() -> None:
    with pytest.raises(HygieneError) as raised, torch.no_grad(), guard():
        nn.Linear(2, 2)(torch.ones(1, 2))
    assert isinstance(raised.value, AssertionError)
    assert [violation.rule for violation in raised.value.violations] == ["train-mode"]
