"""Compatibility with pytest-benchmark and pytest-github-actions-annotate-failures."""

from __future__ import annotations

import pytest

from tests import suites

ANNOTATE = "-ppytest_github_actions_annotate_failures"
SUITE = """
@pytest.mark.inference
def test_dirty():
    infer(Net())

@pytest.mark.inference
def test_checks(evalmode):
    infer(Net())
    evalmode.check()

@pytest.mark.inference
def test_own():
    infer(Net())
    raise ValueError("own")
"""


@suites.WORKERS
def test_github_annotations_point_at_the_line_at_fault(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, workers: tuple[str, ...]
) -> None:
    pytest.importorskip("pytest_github_actions_annotate_failures")
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_WORKSPACE", str(pytester.path.parent))
    suites.write(pytester, SUITE)
    result = suites.run(pytester, ANNOTATE, *workers)
    annotations = sorted(line.partition("::error ")[2] for line in result.errlines if "::error " in line)
    headline = "HygieneViolation: train-mode: Net ran once in training mode"
    assert annotations == [
        f"file={pytester.path.name}/test_it.py,line=15::test_own%0A%0AValueError: own",
        f"file={pytester.path.name}/test_it.py,line=5::test_dirty%0A%0A{headline}",
        f"file={pytester.path.name}/test_it.py,line=9::test_checks%0A%0A{headline}",
    ]


def test_github_annotations_of_warnings_point_at_the_line_at_fault(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pytest_github_actions_annotate_failures")
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    suites.write(pytester, SUITE)
    result = suites.run(pytester, ANNOTATE, "--evalmode=warn", "-k", "dirty")
    assert any("::warning file=test_it.py,line=5::train-mode: Net ran once" in line for line in result.errlines)


BENCHMARKS = """
@pytest.mark.inference
def test_guarded(benchmark):
    benchmark(infer, Net().eval())

def test_not_guarded(benchmark):
    benchmark(infer, Net().eval())

@pytest.mark.inference
def test_not_timed():
    infer(Net().eval())
"""
NOTE = "pytest-benchmark's timings include the guard in 1 test: compare with --evalmode=off"


def test_the_summary_says_that_a_benchmark_includes_the_guard(pytester: pytest.Pytester) -> None:
    pytest.importorskip("pytest_benchmark")
    suites.write(pytester, BENCHMARKS)
    options = "-pbenchmark", "--benchmark-max-time=0.01"
    suites.run(pytester, *options).stdout.fnmatch_lines([NOTE])
    for quiet in (["-k", "not_guarded"], ["-k", "not_timed"], ["--evalmode=off"]):
        suites.run(pytester, *options, *quiet).stdout.no_fnmatch_line("*include the guard*")
