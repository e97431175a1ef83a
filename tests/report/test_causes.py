"""Root causes: which violation explains which, where to fix it, and the same causes in all reports."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from pytest_evalmode.policy import Policy
from pytest_evalmode.report.causes import RootCause, find_explanations, group_by_cause, root_causes, summarize_causes
from pytest_evalmode.report.markdown import render_step_summary
from pytest_evalmode.report.page import render_page
from pytest_evalmode.report.records import serialize_record
from pytest_evalmode.report.summary import detail_lines
from pytest_evalmode.rules import Violation
from pytest_evalmode.trace import Site
from tests.report.records import test as guarded
from tests.report.records import violation as recorded

CALL = Site("test_it.py", 9, "net(x)")
SWITCH = Site("test_it.py", 7, "net.train()")
INSIDE = Site("nets.py", 8, "x = F.dropout(x)")
FIXTURE = Site("conftest.py", 3, "def net():")


def violation(rule: str = "train-mode", **facts: Any) -> Violation:
    defaults = {"model": "net", "subjects": ("net.bn (BatchNorm1d)",), "at": CALL, "message": "", "finding": ""}
    return Violation(**{"rule": rule, **defaults, **facts})


CHANGED = violation("state-mutated", subjects=("net.bn.running_mean",), because=("train-mode",))


def place(violation: Violation) -> tuple[str, str | None]:
    (root,) = root_causes([violation])
    assert root.rule == violation.rule
    return root.name, root.at


def test_a_consequence_has_the_root_cause_of_its_explanation() -> None:
    training = violation(since=SWITCH)
    recording = violation("grad-mode")
    expected = RootCause("train-mode", "", "test_it.py:7")
    assert root_causes([training, recording, CHANGED]) == [
        expected,
        RootCause("grad-mode", "", "test_it.py:9"),
        expected,
    ]


def test_a_violation_of_another_model_explains_nothing() -> None:
    teacher = violation(model="teacher", subjects=("teacher.bn (BatchNorm1d)",))
    assert find_explanations([teacher, CHANGED]) == [teacher, CHANGED]
    part = violation(model="net.encoder", subjects=("net.encoder.bn (BatchNorm1d)",))
    assert find_explanations([part, CHANGED]) == [part, part]
    similar_name = violation(model="network", subjects=("network.bn (BatchNorm1d)",))
    assert find_explanations([similar_name, CHANGED]) == [similar_name, CHANGED]


def test_a_consequence_is_explained_by_the_fault_of_its_own_model() -> None:
    first, second = violation(model="other", subjects=("other.bn (BatchNorm1d)",)), violation()
    assert find_explanations([first, second, CHANGED])[2] == second


def test_a_cause_may_have_a_cause_itself() -> None:
    chain = [
        violation(),
        violation("batch-stats", because=("train-mode",)),
        violation("own", because=("batch-stats",)),
    ]
    assert {root.rule for root in root_causes(chain)} == {"train-mode"}


def test_rules_that_explain_each_other_do_not_loop() -> None:
    a, b = violation("a", because=("b",)), violation("b", because=("a",))
    assert find_explanations([a, b]) == [a, a]
    assert find_explanations([b, a]) == [b, b]


def test_the_line_that_switched_the_mode_comes_before_the_fixture_and_the_call() -> None:
    provided = violation(fixture="net", fixture_at=FIXTURE)
    assert place(replace(provided, since=SWITCH)) == ("", "test_it.py:7")
    assert place(provided) == ("fixture net", "conftest.py:3")
    assert place(violation()) == ("", "test_it.py:9")


@pytest.mark.parametrize("rule", ["batch-stats", "random-forward", "unregistered-module", "attribute-mutated"])
def test_a_fault_of_the_models_own_code_is_fixed_in_the_model(rule: str) -> None:
    assert place(violation(rule, cause=INSIDE, fixture="net", fixture_at=FIXTURE)) == ("", "nets.py:8")
    assert place(violation(rule, cause=INSIDE, since=SWITCH)) == ("", "test_it.py:7")  # the export of the graph
    assert place(violation(rule)) == ("", "test_it.py:9")


def test_autograd_is_fixed_at_the_call_and_not_in_the_fixture() -> None:
    assert place(violation("grad-mode", cause=INSIDE, fixture="net", fixture_at=FIXTURE)) == ("", "test_it.py:9")


def test_the_cause_of_a_drift_is_a_test_that_ran_in_between() -> None:
    drift = violation("state-drifted", at=None, details={"between": ["test_it.py::test_a", "test_it.py::test_b"]})
    assert place(drift) == ("test_it.py::test_a", None)
    known = {"between": ["test_it.py::test_a", "test_it.py::test_b"], "changed_by": ["test_it.py::test_b"]}
    assert place(replace(drift, details=known)) == ("test_it.py::test_b", None)


def test_the_details_of_a_user_rule_may_be_of_any_type() -> None:
    own = violation("own", details={"between": 3, "since": ["x"], "fixture": None, "changed_by": 1})
    assert place(own) == ("", "test_it.py:9")


def test_without_a_line_the_cause_is_the_fixture_or_the_model() -> None:
    assert place(violation("model-leaked", at=None, fixture="net", fixture_at=FIXTURE)) == (
        "fixture net",
        "conftest.py:3",
    )
    assert place(violation("model-leaked", at=None)) == ("net", None)
    assert place(violation("no-forward", at=None, model=None, subjects=())) == ("", None)


def summaries(*tests: dict[str, Any]) -> list[tuple[str, str | None, tuple[str, ...], int]]:
    return [(cause.name, cause.at, cause.rules, len(cause.tests)) for cause in summarize_causes(tests)]


def test_the_cause_that_explains_most_tests_comes_first() -> None:
    tests = [
        guarded("test_a", recorded("grad-mode", at="test_it.py:1")),
        guarded("test_b", recorded("grad-mode", at="helpers.py:5")),
        guarded("test_c", recorded("grad-mode", at="helpers.py:5")),
        guarded("test_d"),
    ]
    assert summaries(*tests) == [("", "helpers.py:5", ("grad-mode",), 2), ("", "test_it.py:1", ("grad-mode",), 1)]


def test_a_cause_has_the_rules_of_its_consequences() -> None:
    training, changed = recorded(), recorded("state-mutated", root=["train-mode", "", "test_it.py:9"])
    assert summaries(guarded("test_a", training), guarded("test_b", training, changed)) == [
        ("", "test_it.py:9", ("train-mode", "state-mutated"), 2)
    ]


def test_a_cause_has_the_message_of_the_violation_that_is_the_cause() -> None:
    changed = recorded("state-mutated", root=["train-mode", "", "test_it.py:9"])
    (cause,) = summarize_causes([guarded("test_a", changed), guarded("test_b", recorded(), changed)])
    assert (cause.message, cause.test) == ("train-mode, the headline", "test_it.py::test_b")
    (alone,) = summarize_causes([guarded("test_a", changed)])  # the other one is known
    assert alone.message == "state-mutated, the headline"


def test_a_consequence_is_grouped_with_the_violation_of_its_model() -> None:
    root = ["train-mode", "", "test_it.py:9"]
    first, second = recorded(model="other"), recorded()
    changed = recorded("state-mutated", root=root)
    assert group_by_cause([first, second, changed]) == [(first, []), (second, [changed])]
    assert group_by_cause([first, changed]) == [(first, [changed])]
    recording = recorded("grad-mode", root=root)
    assert group_by_cause([recording, changed]) == [(recording, []), (changed, [])]  # their explanation is known


PROVIDED: dict[str, Any] = {
    "fixture": "net",
    "fixture_at": FIXTURE,
    "details": {"fixture": "net", "fixture_at": str(FIXTURE)},
}
"""The fields that `add_fixture()` sets."""


@pytest.mark.parametrize(
    ("violations", "expected"),
    [
        ([violation(**PROVIDED)], "fixture net, conftest.py:3  train-mode"),
        ([violation(**PROVIDED), CHANGED], "fixture net, conftest.py:3  train-mode, state-mutated"),
        ([violation(since=SWITCH, details={"since": str(SWITCH)}), CHANGED], "test_it.py:7  train-mode, state-mutated"),
        ([violation("grad-mode", cause=INSIDE, **PROVIDED)], "test_it.py:9  grad-mode"),
        ([violation("random-forward", cause=INSIDE, **PROVIDED)], "nets.py:8  random-forward"),
        ([violation("batch-stats", since=SWITCH)], "test_it.py:7  batch-stats"),
        ([violation("state-drifted", at=None, details={"between": ["a.py::b"]})], "a.py::b  state-drifted"),
        ([violation("model-leaked", at=None)], "net  model-leaked"),
    ],
)
def test_all_summaries_show_the_same_cause(violations: list[Violation], expected: str) -> None:
    tests = [record(name, violations) for name in ("test_a", "test_b")]
    lines = [line.text for line in detail_lines(tests)]
    assert lines[lines.index("by cause:") + 1 :][:1] == [f"  {expected} in 2 tests"]

    place, _, rules = expected.partition("  ")
    step = render_step_summary(tests)
    shown = render_page(tests, mode="enforce", strict=False)
    for part in place.split(", "):
        assert part in step.partition("(")[0]
        assert f">{part}</code>" in shown or f"{part}</strong>" in shown
    assert f"({rules}): " in step
    assert shown.count("explains <strong>2 tests</strong>") == step.count("explains 2 tests") == 1


def test_a_violation_without_a_place_is_not_listed_as_a_cause() -> None:
    violations = [violation("no-forward", at=None, model=None, subjects=())]
    tests = [record(name, violations) for name in ("test_a", "test_b")]
    assert not any("cause" in line.text for line in detail_lines(tests))


def record(name: str, violations: list[Violation]) -> dict[str, Any]:
    return {**guarded(name), "outcome": "failed", **json.loads(serialize_record(violations, [], Policy(), 0.0))}
