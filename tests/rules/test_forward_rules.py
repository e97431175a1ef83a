from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from pytest_evalmode.rules import Rule, Violation
from pytest_evalmode.rules.forward_rules import batch_stats, grad_mode, random_forward, train_mode
from pytest_evalmode.trace import ForwardCall, Observation
from tests.rules.facts import HERE, INSIDE, THERE, call, calls, observed

ForwardOf = Callable[[Observation], ForwardCall]

# Each rule with a forward that breaks it, for an observation.
RULES: dict[Rule, ForwardOf] = {
    train_mode: lambda observation: call(training=(observation,)),
    grad_mode: lambda observation: call(autograd=observation),
    batch_stats: lambda observation: call(batch_stats=(observation,)),
    random_forward: lambda observation: call(draws=(observation,)),
}
each_rule = pytest.mark.parametrize(("rule", "forward_of"), RULES.items(), ids=[rule.name for rule in RULES])


def only(rule: Rule, *forwards: ForwardCall) -> Violation:
    """Return the only violation of a rule."""
    (violation,) = rule.violations(calls(*forwards))
    return violation


@each_rule
def test_a_rule_reports_only_its_own_kind_of_observation(rule: Rule, forward_of: ForwardOf) -> None:
    for other, other_forward_of in RULES.items():
        assert len(rule.violations(calls(other_forward_of(observed("bn", "BatchNorm1d"))))) == (other is rule)


@each_rule
def test_a_clean_forward_breaks_no_rule(rule: Rule, forward_of: ForwardOf) -> None:
    assert rule.violations(calls()) == rule.violations(calls(call())) == []


@each_rule
def test_a_violation_has_the_rule_the_model_and_the_lines(rule: Rule, forward_of: ForwardOf) -> None:
    violation = only(rule, forward_of(observed("bn", "BatchNorm1d", cause=INSIDE)))
    assert (violation.rule, violation.model, violation.at, violation.cause) == (rule.name, "model", HERE, INSIDE)
    assert violation.remedy
    assert violation.finding.startswith("model.bn (BatchNorm1d) ")


@each_rule
def test_there_is_one_violation_per_model_in_the_order_in_which_they_ran(rule: Rule, forward_of: ForwardOf) -> None:
    first, second = (
        call(name, training=(f,), autograd=f, batch_stats=(f,), draws=(f,))
        for name in ("zeta", "alpha")
        for f in [observed("bn", "BatchNorm1d", model=name)]
    )
    violations = rule.violations(calls(first, second, first))
    assert [(v.model, v.count) for v in violations] == [("zeta", 2), ("alpha", 1)]


@each_rule
def test_equal_calls_are_counted_and_other_lines_are_listed(rule: Rule, forward_of: ForwardOf) -> None:
    f = observed("bn", "BatchNorm1d")
    here, there = (
        call(training=(f,), autograd=f, batch_stats=(f,), draws=(f,), at=at, count=count)
        for at, count in ((HERE, 3), (THERE, 2))
    )
    violation = only(rule, here, there)
    assert (violation.count, violation.at) == (5, HERE)
    assert violation.details == {"also_at": [str(THERE)]}
    assert only(rule, here).details == {}


@each_rule
def test_a_module_is_listed_once_with_its_known_cause(rule: Rule, forward_of: ForwardOf) -> None:
    without_cause, with_cause = (
        forward_of(observed("bn", "BatchNorm1d")),
        forward_of(observed("bn", "BatchNorm1d", cause=INSIDE)),
    )
    violation = only(rule, without_cause, with_cause)
    assert violation.subjects == ("model.bn (BatchNorm1d)",)
    assert violation.cause == INSIDE


@each_rule
def test_a_model_named_after_its_type_is_not_named_twice(rule: Rule, forward_of: ForwardOf) -> None:
    f = observed("", "Net", model="Net")
    violation = only(rule, call("Net", "Net", training=(f,), autograd=f, batch_stats=(f,), draws=(f,)))
    assert violation.message.startswith("Net ")


@pytest.mark.parametrize(
    ("rule", "count", "message"),
    [
        (train_mode, 1, "model (Net) ran once in training mode"),
        (train_mode, 40, "model (Net) ran 40 times in training mode"),
        (grad_mode, 1, "model (Net) ran once with autograd recording"),
        (batch_stats, 2, "model (Net) ran 2 times with batch statistics"),
        (random_forward, 1, "model (Net) drew random numbers in 1 forward in eval mode"),
        (random_forward, 2, "model (Net) drew random numbers in 2 forwards in eval mode"),
    ],
)
def test_the_headline_says_how_often_the_model_ran(rule: Rule, count: int, message: str) -> None:
    f = observed("bn", "BatchNorm1d")
    ran = call(training=(f,), autograd=f, batch_stats=(f,), draws=(f,), count=count)
    assert only(rule, ran).message == message


@pytest.mark.parametrize(
    ("rule", "finding"),
    [
        (train_mode, "model.bn (BatchNorm1d) was in training mode: the reason"),
        (grad_mode, "model.bn (BatchNorm1d) recorded autograd: the reason"),
        (batch_stats, "model.bn (BatchNorm1d) used the batch's own statistics in eval mode: the reason"),
        (random_forward, "model.bn (BatchNorm1d) drew random numbers in eval mode: the reason"),
    ],
)
def test_the_finding_names_the_module_and_the_reason(rule: Rule, finding: str) -> None:
    assert only(rule, RULES[rule](observed("bn", "BatchNorm1d", why="the reason"))).finding == finding


class TestTrainMode:
    def test_mode_dependent_modules_come_instead_of_layers_in_the_same_mode(self) -> None:
        root, linear = observed("", "Net", mode_dependent=False), observed("head", "Linear", mode_dependent=False)
        norm, drop = observed("bn", "BatchNorm1d"), observed("drop", "Dropout")
        violation = only(train_mode, call(training=(root, linear, norm, drop)))
        assert violation.subjects == ("model.bn (BatchNorm1d)", "model.drop (Dropout)")
        assert violation.finding == "model.bn (BatchNorm1d) and 1 more of 7 modules were in training mode"

    def test_layers_are_listed_if_no_module_is_mode_dependent(self) -> None:
        layers = (
            observed("head", "Linear", mode_dependent=False),
            observed("embed", "Embedding", mode_dependent=False),
        )
        violation = only(train_mode, call(training=layers))
        assert violation.subjects == ("model.head (Linear)", "model.embed (Embedding)")

    def test_the_line_that_switched_all_modules_is_reported(self) -> None:
        norm, drop, head = (
            observed("bn", "BatchNorm1d"),
            observed("drop", "Dropout"),
            observed("head", "Linear", mode_dependent=False),
        )
        by_one = only(train_mode, call(training=(replace(norm, since=THERE), replace(drop, since=THERE), head)))
        assert (by_one.since, by_one.details) == (THERE, {"since": str(THERE)})
        for other in (None, HERE):
            by_two = only(train_mode, call(training=(replace(norm, since=THERE), replace(drop, since=other))))
            assert (by_two.since, by_two.details) == (None, {})

    def test_an_exemption_includes_the_modules_that_are_not_listed(self) -> None:
        linear, norm = observed("head", "Linear", mode_dependent=False), observed("bn", "BatchNorm1d")
        assert only(train_mode, call(training=(linear, norm))).train == ("head", "bn")

    @pytest.mark.parametrize(
        ("model", "training", "remedy"),
        [
            ("model", [("bn", "")], "call model.bn.eval() before the first forward"),
            ("model", [("", "")], "call model.eval() before the first forward"),
            ("net", [("bn", ""), ("drop", "")], "call net.eval() before the first forward"),
            # A type is not a name that the user can write.
            ("Net", [("bn", ""), ("drop", "")], "call model.eval() before the first forward"),
            # eval() does not reach an unregistered module.
            ("net", [("<GELU>", "no submodule")], "create it in __init__ and register it as a submodule"),
        ],
    )
    def test_the_remedy_names_the_module_or_the_model(
        self, model: str, training: list[tuple[str, str]], remedy: str
    ) -> None:
        findings = tuple(observed(path, "Dropout", model=model, why=why) for path, why in training)
        assert only(train_mode, call(model, training=findings)).remedy.startswith(remedy)
