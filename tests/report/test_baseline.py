"""What a baseline says, what is stale in it, and what an update leaves."""

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


def seen(*broken: tuple[str, str | None], finished: bool = True) -> ObservedViolations:
    return ObservedViolations(frozenset(broken), finished)


def test_it_is_sorted_with_one_line_a_violation() -> None:
    assert format_baseline(KNOWN) == WRITTEN


def test_what_is_written_is_read() -> None:
    assert parse_baseline(format_baseline(KNOWN)) == KNOWN
    assert parse_baseline(format_baseline({})) == {}


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("", "it is no JSON"),
        ("<<<<<<< HEAD", "it is no JSON"),
        ("[]", "no table of known violations"),
        ('{"schema": 1}', "no table of known violations"),
        ('{"schema": 1, "known": []}', "no table of known violations"),
        ('{"schema": 2, "known": {}}', "its schema is 2"),
        ('{"known": {}}', "its schema is None"),
        ('{"schema": 1, "known": {"t.py::a": []}}', "t.py::a is no table"),
        ('{"schema": 1, "known": {"t.py::a": {"train-mode": "net"}}}', "train-mode of t.py::a"),
        ('{"schema": 1, "known": {"t.py::a": {"train-mode": [1]}}}', "train-mode of t.py::a"),
    ],
)
def test_what_is_broken_is_told(written: str, said: str) -> None:
    with pytest.raises(BaselineError, match=said):
        parse_baseline(written)


def test_what_a_finished_test_no_longer_breaks_is_stale() -> None:
    ran = {"t.py::b": seen(("train-mode", "net"), ("batch-stats", "net"))}
    assert find_stale(KNOWN, ran) == [("t.py::b", "grad-mode (net)"), ("t.py::b", "train-mode (encoder)")]
    assert find_stale(KNOWN, {"t.py::b": seen(finished=False)}) == []
    assert find_stale(KNOWN, {"t.py::new": seen()}) == []


def test_an_update_replaces_what_ran_and_keeps_the_rest() -> None:
    ran = {"t.py::b": seen(("train-mode", "net")), "t.py::new": seen(("grad-mode", "net")), "t.py::clean": seen()}
    assert merge_observed(KNOWN, ran, is_gone=lambda _: False) == {
        "t.py::a[ü-1]": KNOWN["t.py::a[ü-1]"],
        "t.py::b": {("train-mode", "net")},
        "t.py::new": {("grad-mode", "net")},
    }


def test_an_update_drops_what_is_gone() -> None:
    assert merge_observed(KNOWN, {}, is_gone=lambda nodeid: nodeid == "t.py::b").keys() == {"t.py::a[ü-1]"}
    assert merge_observed(KNOWN, {"t.py::b": seen()}, is_gone=lambda _: False).keys() == {"t.py::a[ü-1]"}


def test_a_test_that_did_not_come_to_its_end_keeps_its_entries() -> None:
    ran = {"t.py::b": seen(("batch-stats", "net"), finished=False)}
    assert merge_observed(KNOWN, ran, is_gone=lambda _: False)["t.py::b"] == KNOWN["t.py::b"] | {("batch-stats", "net")}


def test_the_text_is_json_as_the_contract_has_it() -> None:
    assert json.loads(format_baseline({"t.py::a": frozenset({("train-mode", "net")})})) == {
        "schema": 1,
        "known": {"t.py::a": {"train-mode": ["net"]}},
    }
