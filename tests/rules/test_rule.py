"""Rules, the registry of all rules, and their application to the segments of a window."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from pytest_evalmode.policy import Policy
from pytest_evalmode.rules import RULE_NAMES, RULES, Violation, apply_rules
from pytest_evalmode.rules.rule import rule
from pytest_evalmode.trace import Trace
from tests.rules.facts import HERE, THERE, call, calls, changed, changes, observed


@rule("too-many", fires_when="there were more than two calls", remedy="call it less often", level="strict")
def too_many(trace: Trace) -> Iterator[Violation]:
    if len(trace.calls) > 2:
        yield Violation(model=None, subjects=(), message="many", finding="many calls")
    if len(trace.calls) > 3:
        yield Violation(model=None, subjects=(), message="far too many", finding="", remedy="stop")


def test_a_rule_adds_its_name_and_its_remedy_if_a_violation_has_none() -> None:
    assert too_many.violations(calls(call())) == []
    assert [(v.rule, v.remedy) for v in too_many.violations(calls(*[call()] * 4))] == [
        ("too-many", "call it less often"),
        ("too-many", "stop"),
    ]


def test_rule_names_are_unique_and_five_rules_are_default_rules() -> None:
    assert len(set(RULE_NAMES)) == len(RULES)
    assert {r.name for r in RULES if r.level == "default"} == {
        "train-mode",
        "grad-mode",
        "batch-stats",
        "random-forward",
        "state-mutated",
    }


@pytest.mark.parametrize("name", RULE_NAMES)
def test_every_rule_has_an_explanation(name: str) -> None:
    (found,) = (r for r in RULES if r.name == name)
    assert re.fullmatch(r"[a-z]+(-[a-z]+)+", name)
    assert found.level in ("default", "strict", "lock")
    assert found.fires_when
    assert found.remedy
    assert not found.fires_when.endswith(".")


NORM, DROP = observed("bn", "BatchNorm1d"), observed("drop", "Dropout")


def names(*segments: tuple[Trace, Policy]) -> list[str]:
    return [v.rule for v in apply_rules(segments)]


def test_a_clean_window_breaks_no_rule() -> None:
    assert names() == names((Trace(), Policy())) == names((calls(call()), Policy())) == []


def test_all_broken_rules_are_reported() -> None:
    both = Trace(calls=(call(training=(NORM,), autograd=observed("", "Net")),), changes=(changed("bn.running_mean"),))
    assert sorted(names((both, Policy()))) == ["grad-mode", "state-mutated", "train-mode"]


def test_allow_applies_to_its_rule_in_its_segment() -> None:
    trained = calls(call(training=(NORM,)))
    allowed, strict = Policy(allow=frozenset({"train-mode"})), Policy()
    assert names((trained, allowed)) == []
    assert names((trained, strict), (trained, allowed)) == ["train-mode"]
    assert names((changes(changed("w")), allowed)) == ["state-mutated"]


def test_train_and_mutable_apply_to_their_segment() -> None:
    trace = Trace(calls=(call(training=(DROP,)),), changes=(changed("queue"),))
    relaxed = Policy(train=("drop",), mutable=("queue",))
    assert names((trace, relaxed)) == []
    assert sorted(names((trace, relaxed), (trace, Policy()))) == ["state-mutated", "train-mode"]


def test_calls_of_all_segments_are_counted_together() -> None:
    first, second = (calls(call(training=(NORM,), at=at, count=2)) for at in (HERE, THERE))
    (violation,) = apply_rules([(first, Policy()), (second, Policy())])
    assert (violation.count, violation.at, violation.details) == (4, HERE, {"also_at": [str(THERE)]})


def test_calls_of_an_exempted_segment_are_not_counted() -> None:
    trained = calls(call(training=(NORM,)))
    (violation,) = apply_rules([(trained, Policy(allow=frozenset({"train-mode"}))), (trained, Policy())])
    assert violation.count == 1


def test_a_tensor_that_changed_twice_is_reported_once_with_its_first_change() -> None:
    first, again = (
        changes(changed("w", last_forward=HERE, max_abs=1.0, elements=1, numel=4)),
        changes(changed("w", last_forward=THERE)),
    )
    (violation,) = apply_rules([(first, Policy()), (again, Policy())])
    assert (violation.subjects, violation.at) == (("model.w",), HERE)
    assert "max |Δ| 1" in violation.finding


def test_a_change_that_is_exempted_only_at_first_is_reported() -> None:
    first, again = changes(changed("w", last_forward=HERE)), changes(changed("w", last_forward=THERE))
    (violation,) = apply_rules([(first, Policy(mutable=("w",))), (again, Policy())])
    assert violation.at == THERE


def test_applying_rules_does_not_modify_the_trace() -> None:
    trace = calls(call(training=(NORM, DROP)))
    apply_rules([(trace, Policy(train=("*",)))])
    assert trace == calls(call(training=(NORM, DROP)))
