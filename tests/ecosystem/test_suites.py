"""The rows that the ecosystem check makes of the reports of a test suite."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ecosystem", reason="the sdist has no ecosystem check")

from ecosystem.suites import MODES, Project, projects, rows

PROJECT = Project("net", "1.0", ("torch==2.13.0",), ("tests",))
TRAIN: dict[str, Any] = {
    "rule": "train-mode",
    "model": "ResNet",
    "subjects": ["ResNet.bn1 (BatchNorm2d)", "ResNet.bn2 (BatchNorm2d)"],
    "remedy": "call net.eval() before the first forward",
}
MUTATED: dict[str, Any] = {
    "rule": "state-mutated",
    "model": "ResNet",
    "subjects": ["ResNet.bn1.running_mean"],
    "remedy": "as a result; call net.eval()",
}


def written(folder: Path, violations: dict[str, list[dict[str, Any]]], oracle: dict[str, list[str]]) -> Path:
    """Write results in which each test passes, and fails under enforce for its violations."""
    tests = [{"nodeid": nodeid, "violations": some} for nodeid, some in violations.items()]
    for mode in MODES:
        failed = {nodeid: "failed" for nodeid, some in violations.items() if some and mode == "enforce"}
        (folder / f"{mode}.outcomes.json").write_text(json.dumps(dict.fromkeys(violations, "passed") | failed))
        (folder / f"{mode}.json").write_text(json.dumps({"tests": tests}))
    (folder / "oracle.json").write_text(json.dumps(oracle))
    return folder


def test_clean_suite_is_one_row(tmp_path: Path) -> None:
    folder = written(tmp_path, {"t.py::test_a": []}, {})
    assert list(rows(PROJECT, folder)) == [{"name": "net", "version": "1.0", "tests": 1, "guarded": 1, "judged": 0}]


def test_causes_are_counted_whatever_the_test_and_the_name(tmp_path: Path) -> None:
    other = TRAIN | {"model": "model", "subjects": ["model.norm (BatchNorm2d)"]}
    other["remedy"] = "call model.layers[0].eval() before the forward at tests/test_b.py:12"
    folder = written(tmp_path, {"t.py::test_a": [TRAIN, MUTATED], "t.py::test_b": [other, TRAIN]}, {})
    assert [row for row in rows(PROJECT, folder) if "fix" in row] == [
        {"name": "net", "rule": "state-mutated", "at": "running_mean", "fix": "", "count": 1},
        {"name": "net", "rule": "train-mode", "at": "BatchNorm2d", "fix": "call model.eval()", "count": 2},
    ]


def test_code_that_trains_is_one_cause(tmp_path: Path) -> None:
    remedy = "if the test trains on purpose (backward() at t.py:{}), wrap that part in `with evalmode.paused():`; else"
    some = [MUTATED | {"subjects": [f"net.{name}"], "remedy": remedy.format(line)} for line, name in enumerate("ab")]
    folder = written(tmp_path, {"t.py::test_a": some}, {})
    fix = "if the test trains on purpose, wrap that part in `with evalmode.paused():`"
    (row,) = [row for row in rows(PROJECT, folder) if "rule" in row and "fix" in row]
    assert row == {"name": "net", "rule": "state-mutated", "at": "", "fix": fix, "count": 1}


def test_outcome_that_warning_changes(tmp_path: Path) -> None:
    folder = written(tmp_path, {"t.py::test_a": [], "t.py::test_b": [TRAIN]}, {})
    (folder / "warn.outcomes.json").write_text(json.dumps({"t.py::test_a": "failed", "t.py::test_b": "passed"}))
    (row,) = [row for row in rows(PROJECT, folder) if "outcome" in row]
    assert (row["outcome"], row["off"], row["warn"]) == ("t.py::test_a", "passed", "failed")


def test_violation_that_does_not_fail_under_enforce(tmp_path: Path) -> None:
    folder = written(tmp_path, {"t.py::test_a": [TRAIN]}, {})
    (folder / "enforce.outcomes.json").write_text(json.dumps({"t.py::test_a": "passed"}))
    assert [row["outcome"] for row in rows(PROJECT, folder) if "outcome" in row] == ["t.py::test_a"]


def test_rules_on_which_the_oracle_disagrees(tmp_path: Path) -> None:
    folder = written(tmp_path, {"t.py::test_a": [TRAIN], "t.py::test_b": [TRAIN]}, {"t.py::test_a": ["grad-mode"]})
    assert [row for row in rows(PROJECT, folder) if "only" in row] == [
        {"name": "net", "only": "guard", "rule": "train-mode", "count": 2},
        {"name": "net", "only": "oracle", "rule": "grad-mode", "count": 1},
    ]


def test_everything_is_pinned() -> None:
    for project in projects():
        assert project.requirements[0].startswith("torch==")
        assert all("==" in requirement for requirement in project.requirements)
