from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from pytest_evalmode.rules import Violation
from pytest_evalmode.rules.state_rules import state_mutated
from tests.rules.facts import HERE, THERE, call, calls, changed, changes, observed


def only(*paths: str, **facts: Any) -> Violation:
    (violation,) = state_mutated.violations(changes(*(changed(path, **facts) for path in paths)))
    return violation


def test_a_forward_alone_does_not_break_state_mutated() -> None:
    busy = call(training=(observed("bn", "BatchNorm1d"),), draws=(observed("drop", "Dropout"),))
    assert state_mutated.violations(changes()) == state_mutated.violations(calls(busy)) == []


def test_a_changed_tensor_is_reported() -> None:
    violation = only("head.weight", last_forward=HERE)
    assert violation.subjects == ("model.head.weight",)
    assert violation.message == "model.head.weight changed"
    assert (violation.rule, violation.model, violation.at, violation.count) == ("state-mutated", "model", HERE, 1)
    assert violation.mutable == ("head.weight",)


def test_after_training_mode_the_violation_is_at_the_forward_in_training_mode() -> None:
    """The model may have run in eval mode since."""
    trained = call(training=(observed("bn", "BatchNorm1d"),), at=THERE)
    trace = replace(changes(changed("bn.running_mean", last_forward=HERE)), calls=(trained, call(at=HERE)))
    (violation,) = state_mutated.violations(trace)
    assert violation.at == THERE


def test_several_tensors_are_listed_in_the_order_of_the_trace() -> None:
    violation = only("bn.running_mean", "head.weight", "bn.bias")
    assert violation.subjects == ("model.bn.running_mean", "model.head.weight", "model.bn.bias")
    assert violation.message == "model.bn.running_mean and 2 more changed"
    assert violation.count == 3
    assert violation.mutable == ("bn.running_mean", "head.weight", "bn.bias")


@pytest.mark.parametrize(
    ("facts", "extent"),
    [
        ({"elements": 64, "numel": 64, "max_abs": 0.03125}, "max |Δ| 0.031, 64 of 64 elements"),
        ({"elements": 1, "numel": 1, "max_abs": 1.0}, "max |Δ| 1, 1 of 1 element"),
        ({"elements": 3, "numel": 4}, "3 of 4 elements"),  # a change to or from NaN has no difference
        ({}, ""),
        ({"what": "shape", "before_and_after": "(4,) -> (8,)"}, "shape (4,) -> (8,)"),
        ({"what": "removed"}, "removed"),
    ],
)
def test_the_finding_says_how_much_a_tensor_changed(facts: dict[str, Any], extent: str) -> None:
    violation = only("table", **facts)
    assert violation.finding == f"model.table changed    {extent}".rstrip()
    assert violation.details == {"changes": {"model.table": extent}}


def test_there_is_one_violation_per_model() -> None:
    trace = changes(changed("w", "student"), changed("w", "teacher"), changed("b", "student"))
    assert [(v.model, v.subjects) for v in state_mutated.violations(trace)] == [
        ("student", ("student.w", "student.b")),
        ("teacher", ("teacher.w",)),
    ]
