"""Compatibility with pytest-github-actions-annotate-failures."""

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
