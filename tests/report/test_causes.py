"""What to mend first, and what it explains."""

from __future__ import annotations

from typing import Any

from pytest_evalmode.report.causes import causes
from tests.report.records import test as guarded
from tests.report.records import violation


def found(*tests: dict[str, Any]) -> list[tuple[str, str | None, tuple[str, ...], int]]:
    return [(cause.what, cause.at, cause.rules, len(cause.tests)) for cause in causes(tests)]


def test_what_explains_most_tests_comes_first() -> None:
    tests = [
        guarded("test_a", violation("grad-mode", at="test_it.py:1")),
        guarded("test_b", violation("grad-mode", at="helpers.py:5")),
        guarded("test_c", violation("grad-mode", at="helpers.py:5")),
        guarded("test_d"),
    ]
    assert found(*tests) == [("", "helpers.py:5", ("grad-mode",), 2), ("", "test_it.py:1", ("grad-mode",), 1)]


def test_the_line_that_switched_the_mode_comes_before_the_fixture_and_the_call() -> None:
    fixtures = {"fixtures": {"net": "conftest.py:3"}}
    switched = guarded("test_a", violation(details={"since": "test_it.py:7"}), shown=fixtures)
    handed = guarded("test_b", violation(), shown=fixtures)
    made = guarded("test_c", violation())
    assert found(switched, handed, made) == [
        ("", "test_it.py:7", ("train-mode",), 1),
        ("fixture net", "conftest.py:3", ("train-mode",), 1),
        ("", "test_it.py:9", ("train-mode",), 1),
    ]


def test_a_model_inside_what_a_fixture_handed_over() -> None:
    fixtures = {"fixtures": {"zoo": "conftest.py:3"}}
    tests = [
        guarded(name, violation(model=model), shown=fixtures)
        for name, model in (("test_a", "zoo['small']"), ("test_b", "zoo.big"))
    ]
    assert found(*tests) == [("fixture zoo", "conftest.py:3", ("train-mode",), 2)]


def test_training_mode_explains_running_statistics_that_moved_with_it() -> None:
    moved = violation("state-mutated", subjects=["net.bn.running_mean", "net.bn.running_var"])
    assert found(guarded("test_a", violation(), moved)) == [("", "test_it.py:9", ("train-mode", "state-mutated"), 1)]


def test_it_does_not_explain_a_weight_of_another_module_or_model() -> None:
    weight = violation("state-mutated", subjects=["net.bn.running_mean", "net.fc.weight"])
    other = violation("state-mutated", model="other", subjects=["other.bn.running_mean"], at="a.py:1")
    assert len(found(guarded("test_a", violation(), weight, other))) == 3


def test_what_a_model_does_by_itself_is_mended_in_the_model() -> None:
    tests = [
        guarded(f"test_{i}", violation("random-forward", at=f"test_it.py:{i}", cause="nets.py:8")) for i in range(3)
    ]
    assert found(*tests) == [("", "nets.py:8", ("random-forward",), 3)]


def test_what_drifted_is_looked_for_in_what_ran_in_between() -> None:
    drift = violation("state-drifted", at=None, details={"between": ["test_it.py::test_train", "the set-up"]})
    assert found(guarded("test_a", drift)) == [("test_it.py::test_train", None, ("state-drifted",), 1)]


def test_a_violation_without_a_place_or_a_model() -> None:
    assert found(guarded("test_a", violation("no-forward", model=None, at=None, subjects=[]))) == [
        ("", None, ("no-forward",), 1)
    ]
