"""When an xdist worker crashes, only the test that it ran is lost; reports and baseline are complete."""

from __future__ import annotations

import json

import jsonschema
import pytest

from tests import suites

SUITE = """
import ctypes
import os

@pytest.mark.inference
@pytest.mark.parametrize("n", range(4))
def test_before(n):
    infer(Net())

@pytest.mark.inference
def test_dies():
    if os.environ.get("DIE") == "exit":
        os._exit(3)
    if os.environ.get("DIE") == "fault":
        ctypes.string_at(0)
    infer(Net())

@pytest.mark.inference
@pytest.mark.parametrize("n", range(4))
def test_after(n):
    infer(Net())
"""
OTHERS = [f"test_{when}[{n}]" for when in ("before", "after") for n in range(4)]


@pytest.mark.xdist
@pytest.mark.parametrize("death", ["exit", pytest.param("fault", marks=pytest.mark.repetition)])
def test_a_crashed_worker_loses_only_its_test(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, death: str
) -> None:
    suites.write(pytester, SUITE)
    baseline = ("--evalmode-baseline=known.json", "--evalmode-update-baseline")
    suites.run(pytester, *baseline)
    before = (pytester.path / "known.json").read_text(encoding="utf-8")
    monkeypatch.setenv("DIE", death)
    paths = ("--evalmode-report=report.json", "--evalmode-html=page.html")
    result = suites.run(pytester, "-n2", *paths, *baseline)
    result.assert_outcomes(passed=8, failed=1)
    result.stdout.fnmatch_lines(
        ["*crashed while running*", "8 tests guarded, 1 model, 8 forwards: 8 violations in 8 tests (*"]
    )
    assert (pytester.path / "known.json").read_text(encoding="utf-8") == before
    report = json.loads((pytester.path / "report.json").read_text(encoding="utf-8"))
    jsonschema.validate(report, suites.SCHEMA)
    assert {test["nodeid"].partition("::")[2] for test in report["tests"]} == set(OTHERS)
    assert "test_after[3]" in (pytester.path / "page.html").read_text(encoding="utf-8")
    known = suites.run(pytester, "-n2", baseline[0])
    known.assert_outcomes(passed=8, failed=1)
    known.stdout.fnmatch_lines(["*8 known, 0 new*"])
