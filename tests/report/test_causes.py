"""What explains a violation and where that is to be mended; the same in the summary, on the page and elsewhere."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from pytest_evalmode.policy import Policy
from pytest_evalmode.report.causes import RootCause, find_explanations, group_by_cause, root_causes, summarize_causes
from pytest_evalmode.report.ledger import Ledger, serialize_record
from pytest_evalmode.report.markdown import render_step_summary
from pytest_evalmode.report.page import render_page
from pytest_evalmode.report.summary import detail_lines
from pytest_evalmode.rules import Violation
from pytest_evalmode.trace import Site
from tests.report.records import test as guarded
from tests.report.records import totals
from tests.report.records import violation as recorded

CALL = Site("test_it.py", 9, "net(x)")
SWITCH = Site("test_it.py", 7, "net.train()")
INSIDE = Site("nets.py", 8, "x = F.dropout(x)")
FIXTURE = Site("conftest.py", 3, "def net():")


def violation(rule: str = "train-mode", **facts: Any) -> Violation:
    told = {"model": "net", "subjects": ("net.bn (BatchNorm1d)",), "at": CALL, "message": "", "finding": ""}
    return Violation(**{"rule": rule, **told, **facts})


MOVED = violation("state-mutated", subjects=("net.bn.running_mean",), because=("train-mode",))


def place(violation: Violation) -> tuple[str, str | None]:
    (root,) = root_causes([violation])
    assert root.rule == violation.rule
    return root.name, root.at


def test_what_follows_from_a_violation_has_the_root_of_that() -> None:
    training = violation(since=SWITCH)
    recording = violation("grad-mode")
    expected = RootCause("train-mode", "", "test_it.py:7")
    assert root_causes([training, recording, MOVED]) == [expected, RootCause("grad-mode", "", "test_it.py:9"), expected]


def test_what_another_model_did_explains_nothing() -> None:
    teacher = violation(model="teacher", subjects=("teacher.bn (BatchNorm1d)",))
    assert find_explanations([teacher, MOVED]) == [teacher, MOVED]
    part = violation(model="net.encoder", subjects=("net.encoder.bn (BatchNorm1d)",))
    assert find_explanations([part, MOVED]) == [part, part]
    alike = violation(model="network", subjects=("network.bn (BatchNorm1d)",))
    assert find_explanations([alike, MOVED]) == [alike, MOVED]


def test_the_same_fault_of_a_second_model_explains_what_became_of_that() -> None:
    first, second = violation(model="other", subjects=("other.bn (BatchNorm1d)",)), violation()
    assert find_explanations([first, second, MOVED])[2] == second


def test_a_cause_that_has_a_cause() -> None:
    chain = [
        violation(),
        violation("batch-stats", because=("train-mode",)),
        violation("own", because=("batch-stats",)),
    ]
    assert {root.rule for root in root_causes(chain)} == {"train-mode"}


def test_rules_that_explain_each_other_end() -> None:
    a, b = violation("a", because=("b",)), violation("b", because=("a",))
    assert find_explanations([a, b]) == [a, a]
    assert find_explanations([b, a]) == [b, b]


def test_the_line_that_brought_it_about_comes_before_the_fixture_and_the_call() -> None:
    handed = violation(fixture="net", fixture_at=FIXTURE)
    assert place(replace(handed, since=SWITCH)) == ("", "test_it.py:7")
    assert place(handed) == ("fixture net", "conftest.py:3")
    assert place(violation()) == ("", "test_it.py:9")


@pytest.mark.parametrize("rule", ["batch-stats", "random-forward", "unregistered-module", "attribute-mutated"])
def test_what_a_model_does_by_itself_is_mended_in_the_model(rule: str) -> None:
    assert place(violation(rule, cause=INSIDE, fixture="net", fixture_at=FIXTURE)) == ("", "nets.py:8")
    assert place(violation(rule, cause=INSIDE, since=SWITCH)) == ("", "test_it.py:7")  # which made the graph
    assert place(violation(rule)) == ("", "test_it.py:9")


def test_autograd_is_for_the_call_to_stop_whatever_handed_the_model_over() -> None:
    assert place(violation("grad-mode", cause=INSIDE, fixture="net", fixture_at=FIXTURE)) == ("", "test_it.py:9")


def test_what_drifted_is_looked_for_in_what_ran_in_between() -> None:
    drift = violation("state-drifted", at=None, details={"between": ["test_it.py::test_a", "test_it.py::test_b"]})
    assert place(drift) == ("test_it.py::test_a", None)
    known = {"between": ["test_it.py::test_a", "test_it.py::test_b"], "changed_by": ["test_it.py::test_b"]}
    assert place(replace(drift, details=known)) == ("test_it.py::test_b", None)


def test_the_details_of_a_teams_rule_are_its_own() -> None:
    own = violation("own", details={"between": 3, "since": ["x"], "fixture": None, "changed_by": 1})
    assert place(own) == ("", "test_it.py:9")


def test_without_a_line_the_fixture_or_the_model_is_told() -> None:
    assert place(violation("model-leaked", at=None, fixture="net", fixture_at=FIXTURE)) == (
        "fixture net",
        "conftest.py:3",
    )
    assert place(violation("model-leaked", at=None)) == ("net", None)
    assert place(violation("no-forward", at=None, model=None, subjects=())) == ("", None)


def found(*tests: dict[str, Any]) -> list[tuple[str, str | None, tuple[str, ...], int]]:
    return [(cause.name, cause.at, cause.rules, len(cause.tests)) for cause in summarize_causes(tests)]


def test_what_explains_most_tests_comes_first() -> None:
    tests = [
        guarded("test_a", recorded("grad-mode", at="test_it.py:1")),
        guarded("test_b", recorded("grad-mode", at="helpers.py:5")),
        guarded("test_c", recorded("grad-mode", at="helpers.py:5")),
        guarded("test_d"),
    ]
    assert found(*tests) == [("", "helpers.py:5", ("grad-mode",), 2), ("", "test_it.py:1", ("grad-mode",), 1)]


def test_it_is_told_with_the_rules_of_all_that_follows_from_it() -> None:
    training, moved = recorded(), recorded("state-mutated", root=["train-mode", "", "test_it.py:9"])
    assert found(guarded("test_a", training), guarded("test_b", training, moved)) == [
        ("", "test_it.py:9", ("train-mode", "state-mutated"), 2)
    ]


def test_it_is_told_in_the_words_of_the_violation_that_is_the_cause() -> None:
    moved = recorded("state-mutated", root=["train-mode", "", "test_it.py:9"])
    (cause,) = summarize_causes([guarded("test_a", moved), guarded("test_b", recorded(), moved)])
    assert (cause.message, cause.test) == ("train-mode, the headline", "test_it.py::test_b")
    (alone,) = summarize_causes([guarded("test_a", moved)])  # the baseline lists the other
    assert alone.message == "state-mutated, the headline"


def test_what_follows_stands_beneath_the_violation_of_its_model() -> None:
    root = ["train-mode", "", "test_it.py:9"]
    first, second = recorded(model="other"), recorded()
    moved = recorded("state-mutated", root=root)
    assert group_by_cause([first, second, moved]) == [(first, []), (second, [moved])]
    assert group_by_cause([first, moved]) == [(first, [moved])]
    recording = recorded("grad-mode", root=root)
    assert group_by_cause([recording, moved]) == [(recording, []), (moved, [])]  # the baseline lists what explains them


HANDED: dict[str, Any] = {
    "fixture": "net",
    "fixture_at": FIXTURE,
    "details": {"fixture": "net", "fixture_at": str(FIXTURE)},
}
"""As `handed_by` enters it."""


@pytest.mark.parametrize(
    ("violations", "told"),
    [
        ([violation(**HANDED)], "fixture net, conftest.py:3  train-mode"),
        ([violation(**HANDED), MOVED], "fixture net, conftest.py:3  train-mode, state-mutated"),
        ([violation(since=SWITCH, details={"since": str(SWITCH)}), MOVED], "test_it.py:7  train-mode, state-mutated"),
        ([violation("grad-mode", cause=INSIDE, **HANDED)], "test_it.py:9  grad-mode"),
        ([violation("random-forward", cause=INSIDE, **HANDED)], "nets.py:8  random-forward"),
        ([violation("batch-stats", since=SWITCH)], "test_it.py:7  batch-stats"),
        ([violation("state-drifted", at=None, details={"between": ["a.py::b"]})], "a.py::b  state-drifted"),
        ([violation("model-leaked", at=None)], "net  model-leaked"),
    ],
)
def test_summary_page_and_step_summary_tell_the_same_root(violations: list[Violation], told: str) -> None:
    ledger = Ledger()
    for name in ("test_a", "test_b"):
        ledger.add(name, "failed", as_it_travels(violations))
    lines = [line.text for line in detail_lines(ledger, None)]
    assert lines[lines.index("by cause:") + 1 :][:1] == [f"  {told} in 2 tests"]

    place, _, rules = told.partition("  ")
    tests = list(ledger.tests)
    step = render_step_summary(tests, totals(tests))
    shown = render_page(tests, totals=totals(tests), mode="enforce", strict=False)
    for part in place.split(", "):
        assert part in step.partition("(")[0]
        assert f">{part}</code>" in shown or f"{part}</strong>" in shown
    assert f"({rules}): " in step
    assert shown.count("explains <strong>2 tests</strong>") == step.count("explains 2 tests") == 1


def test_what_has_no_place_is_no_cause_to_tell() -> None:
    ledger = Ledger()
    for name in ("test_a", "test_b"):
        ledger.add(name, "failed", as_it_travels([violation("no-forward", at=None, model=None, subjects=())]))
    assert not any("cause" in line.text for line in detail_lines(ledger, None))


def as_it_travels(violations: list[Violation]) -> str:
    return serialize_record(
        policy=Policy(), models=[], violations=violations, seconds=0.0, exemptions=[], guard_failed=False
    )
