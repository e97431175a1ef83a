"""Output in pytest: short summary, annotations, debugger, header, JUnit, warnings and the final summary."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree

import pytest

from pytest_evalmode.observe.state import write_tracking
from tests import forked, suites

SUITE = """
@pytest.mark.inference
def test_dirty():
    infer(Net())

@pytest.mark.inference
def test_own():
    infer(Net())
    raise ValueError("own")

@pytest.mark.inference
def test_checks(evalmode):
    infer(Net())
    evalmode.check()
"""

LINE = "test_it.py:5"


@pytest.mark.parametrize("how", [suites.SERIALIZED, suites.XDIST_AGAIN, ("-vv",)])
def test_the_short_summary_has_only_the_headline(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, how: tuple[str, ...]
) -> None:
    monkeypatch.setenv("CI", "true")
    suites.write(pytester, SUITE)
    lines = suites.run(pytester, *how).outlines
    begin = next(n for n, line in enumerate(lines) if "short test summary info" in line)
    assert sorted(lines[begin + 1 : -1]) == [
        "FAILED test_it.py::test_checks - HygieneViolation: train-mode: Net ran once in training mode",
        "FAILED test_it.py::test_dirty - HygieneViolation: train-mode: Net ran once in training mode",
        "FAILED test_it.py::test_own - ValueError: own",
    ]


@suites.WORKERS
def test_a_report_points_at_the_line_at_fault(pytester: pytest.Pytester, workers: tuple[str, ...]) -> None:
    suites.write(pytester, SUITE)
    result = suites.run(pytester, "-k", "dirty", "--junit-xml=junit.xml", *workers)
    result.stdout.fnmatch_lines(["E   HygieneViolation: train-mode: *", f"{LINE}: HygieneViolation"])
    (failure,) = ElementTree.parse(pytester.path / "junit.xml").iter("failure")
    assert failure.get("message") == "HygieneViolation: train-mode: Net ran once in training mode"
    assert failure.text is not None
    assert failure.text.rstrip().endswith(f"{LINE}: HygieneViolation")


def test_the_traceback_has_the_location_for_annotations(pytester: pytest.Pytester) -> None:
    """pytest-github-actions-annotate-failures reads the location of the first traceback entry."""
    suites.write(pytester, SUITE)
    reports: Any = pytester.inline_run(*suites.PLAIN, "-k", "dirty").getreports("pytest_runtest_logreport")
    (entry,) = next(report.longrepr.reprtraceback.reprentries for report in reports if report.failed)
    assert (entry.reprfileloc.path, entry.reprfileloc.lineno) == ("test_it.py", 5)


@suites.WORKERS
def test_tb_line_prints_one_line(pytester: pytest.Pytester, workers: tuple[str, ...]) -> None:
    suites.write(pytester, SUITE)
    outlines = suites.run(pytester, "--tb=line", "-k", "dirty", *workers).outlines
    lines = [line for line in outlines if not line.startswith("[gw")]  # xdist names the worker
    begin = next(n for n, line in enumerate(lines) if "FAILURES" in line)
    assert lines[begin + 1].endswith(f"{LINE}: HygieneViolation: train-mode: Net ran once in training mode")
    assert lines[begin + 2].startswith("=")
    output = suites.run(pytester, "--tb=line", "-k", "own", *workers).stdout.str()
    assert "ValueError: own" in output
    assert "not clean either" not in output


def test_output_is_colored_if_pytest_uses_color(pytester: pytest.Pytester) -> None:
    suites.write(pytester, SUITE)
    output = suites.run(pytester, "-k", "dirty", "--color=yes").stdout.str()
    assert "\x1b[1m\x1b[31mE   HygieneViolation: train-mode" in output
    assert "\x1b[31m1 test guarded" in output
    assert "\x1b[" not in suites.run(pytester, "-k", "dirty", "--color=no").stdout.str()


@pytest.mark.parametrize(
    ("args", "header"),
    [
        ([], None),
        (["--evalmode-strict"], "evalmode: strict"),
        (["--evalmode=warn", "--evalmode-all"], "evalmode: warn, all tests guarded"),
        (["-o", "evalmode_mark=test_it.py"], "evalmode: guarded: test_it.py"),
        (["--evalmode-baseline=k.json", "--evalmode-update-baseline"], "evalmode: baseline *k.json (will be updated)"),
    ],
)
def test_the_header_shows_the_settings(pytester: pytest.Pytester, args: list[str], header: str | None) -> None:
    suites.write(pytester, SUITE)
    result = suites.run(pytester, *args, "-k", "dirty")
    if header is None:
        result.stdout.no_fnmatch_line("evalmode: *")
    else:
        result.stdout.fnmatch_lines([header])
    result = suites.run(pytester, "-q", *args, "-k", "dirty")
    result.stdout.no_fnmatch_line("evalmode: *")


def test_the_debugger_stops_at_the_line_at_fault(pytester: pytest.Pytester) -> None:
    suites.write(pytester, "@pytest.mark.inference\ndef test_it():\n    infer(Net())\n")
    result = forked.run_pytest(pytester.path, *suites.PLAIN, "--pdb", "test_it.py", stdin=b"q\n")
    pytest.LineMatcher(result.stdout.splitlines()).fnmatch_lines(["> *test_it.py(4)*", "-> infer(Net())"])


def test_a_warning_has_the_line_at_fault(pytester: pytest.Pytester) -> None:
    suites.write(pytester, SUITE)
    args = ("--evalmode=warn", "-k", "dirty")
    suites.run(pytester, *args).stdout.fnmatch_lines([f"*{LINE}: EvalModeWarning: train-mode: *"])
    result = suites.run(pytester, *args, "-W", "error")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*EvalModeWarning: train-mode: *"])
    filters = "default::pytest_evalmode.EvalModeWarning"
    suites.run(pytester, *args, "-W", "error", "-W", filters).assert_outcomes(passed=1, warnings=1)


SHARED = """
@pytest.fixture(scope="session")
def net():
    return Net()

@pytest.mark.inference
@pytest.mark.parametrize("n", range(3))
def test_it(net, n):
    infer(net)
"""


def test_a_shared_cause_is_reported_once(pytester: pytest.Pytester) -> None:
    suites.write(pytester, SHARED)
    lines = suites.run(pytester).outlines
    begin = lines.index("by rule: train-mode 3")
    cause = lines[begin + 2]
    assert lines[begin + 1] == "by cause:"
    assert cause.endswith("train-mode in 3 tests")
    assert "fixture net, test_it.py:" in cause
    assert lines[begin + 3] == "to explain a rule, run: pytest --evalmode-rules train-mode"


def test_quiet_prints_one_line(pytester: pytest.Pytester) -> None:
    suites.write(pytester, SHARED)
    lines = suites.run(pytester, "-q", "--tb=no", "-rN").outlines
    (summary,) = [line for line in lines if "guard" in line or "rule" in line or "evalmode" in line]
    assert summary.startswith("3 tests guarded, ")


def test_dropped_violations_are_counted_and_not_called_clean(pytester: pytest.Pytester) -> None:
    suites.write(pytester, SHARED, conftest="def pytest_evalmode_violation(item, violation):\n    return False\n")
    result = suites.run(pytester)
    result.assert_outcomes(passed=3)
    result.stdout.fnmatch_lines(["3 tests guarded, *: no violations *", "dropped by a hook: 3 violations in 3 tests"])
    result.stdout.no_fnmatch_line("*all clean*")


LARGE = """
from pytest_evalmode.observe.state import write_tracking

@pytest.mark.inference
def test_it():
    with torch.no_grad():
        nn.Linear(2048, 4096).eval()(torch.ones(1, 2048))
    assert write_tracking.tracker() is None
"""


def test_full_read_disables_write_tracking(pytester: pytest.Pytester) -> None:
    suites.write(pytester, LARGE)
    suites.run(pytester, "--evalmode-full-read").assert_outcomes(passed=1)


@pytest.mark.skipif(write_tracking.tracker() is None, reason="the kernel does not track writes")
def test_write_tracking_is_enabled_again_after_a_session_with_full_read(pytester: pytest.Pytester) -> None:
    suites.write(pytester, LARGE)
    suites.run(pytester, "--evalmode-full-read")
    assert write_tracking.tracker() is not None
