"""Baseline files: their format, stale entries and updates."""

from __future__ import annotations

import json

import pytest

from pytest_evalmode.report.baseline import (
    BaselineError,
    KnownViolations,
    ObservedViolations,
    find_stale,
    format_baseline,
    merge_observed,
    parse_baseline,
)

KNOWN: KnownViolations = {
    "t.py::b": frozenset({("train-mode", "net"), ("grad-mode", "net"), ("train-mode", "encoder")}),
    "t.py::a[ü-1]": frozenset({("global-leaked", None), ("global-leaked", "net")}),
}

WRITTEN = """{
 "schema": 1,
 "known": {
  "t.py::a[ü-1]": {
   "global-leaked": [
    null,
    "net"
   ]
  },
  "t.py::b": {
   "grad-mode": [
    "net"
   ],
   "train-mode": [
    "encoder",
    "net"
   ]
  }
 }
}
"""


def observed(*violations: tuple[str, str | None], finished: bool = True) -> ObservedViolations:
    return ObservedViolations(frozenset(violations), finished)


def test_a_baseline_is_sorted_with_one_line_per_violation() -> None:
    assert format_baseline(KNOWN) == WRITTEN


def test_parsing_a_formatted_baseline_returns_it() -> None:
    assert parse_baseline(format_baseline(KNOWN)) == KNOWN
    assert parse_baseline(format_baseline({})) == {}


@pytest.mark.parametrize(
    ("content", "error"),
    [
        ("", "invalid JSON"),
        ("<<<<<<< HEAD", "invalid JSON"),
        ("[]", 'the table "known" is missing'),
        ('{"schema": 1}', 'the table "known" is missing'),
        ('{"schema": 1, "known": []}', 'the table "known" is missing'),
        ('{"schema": 2, "known": {}}', "unsupported schema 2"),
        ('{"known": {}}', "unsupported schema None"),
        ('{"schema": 1, "known": {"t.py::a": []}}', "t.py::a is not a table"),
        ('{"schema": 1, "known": {"t.py::a": {"train-mode": "net"}}}', "train-mode of t.py::a"),
        ('{"schema": 1, "known": {"t.py::a": {"train-mode": [1]}}}', "train-mode of t.py::a"),
    ],
)
def test_a_broken_baseline_is_an_error(content: str, error: str) -> None:
    with pytest.raises(BaselineError, match=error):
        parse_baseline(content)


def test_a_violation_that_a_finished_test_no_longer_has_is_stale() -> None:
    ran = {"t.py::b": observed(("train-mode", "net"), ("batch-stats", "net"))}
    assert find_stale(KNOWN, ran) == [("t.py::b", "grad-mode (net)"), ("t.py::b", "train-mode (encoder)")]
    assert find_stale(KNOWN, {"t.py::b": observed(finished=False)}) == []
    assert find_stale(KNOWN, {"t.py::new": observed()}) == []


def test_an_update_replaces_the_entries_of_tests_that_ran_and_keeps_the_others() -> None:
    ran = {
        "t.py::b": observed(("train-mode", "net")),
        "t.py::new": observed(("grad-mode", "net")),
        "t.py::clean": observed(),
    }
    assert merge_observed(KNOWN, ran, is_gone=lambda _: False) == {
        "t.py::a[ü-1]": KNOWN["t.py::a[ü-1]"],
        "t.py::b": {("train-mode", "net")},
        "t.py::new": {("grad-mode", "net")},
    }


def test_an_update_drops_tests_that_no_longer_exist() -> None:
    assert merge_observed(KNOWN, {}, is_gone=lambda nodeid: nodeid == "t.py::b").keys() == {"t.py::a[ü-1]"}
    assert merge_observed(KNOWN, {"t.py::b": observed()}, is_gone=lambda _: False).keys() == {"t.py::a[ü-1]"}


def test_a_test_that_did_not_finish_keeps_its_entries() -> None:
    ran = {"t.py::b": observed(("batch-stats", "net"), finished=False)}
    assert merge_observed(KNOWN, ran, is_gone=lambda _: False)["t.py::b"] == KNOWN["t.py::b"] | {("batch-stats", "net")}


def test_a_baseline_has_the_json_structure_of_the_contract() -> None:
    assert json.loads(format_baseline({"t.py::a": frozenset({("train-mode", "net")})})) == {
        "schema": 1,
        "known": {"t.py::a": {"train-mode": ["net"]}},
    }
