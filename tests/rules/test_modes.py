from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from pytest_evalmode.rules import Rule, Violation
from pytest_evalmode.rules.forward_rules import batch_stats, grad_mode, random_forward, train_mode
from pytest_evalmode.trace import ForwardCall, Observation
from tests.rules.facts import HERE, INSIDE, THERE, call, calls, observed

Fact = Callable[[Observation], ForwardCall]

# Each rule with the fact that it is about.
RULES: dict[Rule, Fact] = {
    train_mode: lambda finding: call(training=(finding,)),
    grad_mode: lambda finding: call(autograd=finding),
    batch_stats: lambda finding: call(batch_stats=(finding,)),
    random_forward: lambda finding: call(draws=(finding,)),
}
each_rule = pytest.mark.parametrize(("rule", "fact"), RULES.items(), ids=[rule.name for rule in RULES])


def only(rule: Rule, *these: ForwardCall) -> Violation:
    """The one violation of a rule."""
    (violation,) = rule.violations(calls(*these))
    return violation


@each_rule
def test_a_rule_speaks_of_its_own_fact_alone(rule: Rule, fact: Fact) -> None:
    for other, fact_of_other in RULES.items():
        assert len(rule.violations(calls(fact_of_other(observed("bn", "BatchNorm1d"))))) == (other is rule)


@each_rule
def test_silence_about_nothing(rule: Rule, fact: Fact) -> None:
    assert rule.violations(calls()) == rule.violations(calls(call())) == []


@each_rule
def test_where_and_under_which_name(rule: Rule, fact: Fact) -> None:
    violation = only(rule, fact(observed("bn", "BatchNorm1d", cause=INSIDE)))
    assert (violation.rule, violation.model, violation.at, violation.cause) == (rule.name, "model", HERE, INSIDE)
    assert violation.remedy
    assert violation.finding.startswith("model.bn (BatchNorm1d) ")


@each_rule
def test_one_violation_a_model_in_the_order_they_ran(rule: Rule, fact: Fact) -> None:
    first, second = (
        call(name, training=(f,), autograd=f, batch_stats=(f,), draws=(f,))
        for name in ("zeta", "alpha")
        for f in [observed("bn", "BatchNorm1d", model=name)]
    )
    violations = rule.violations(calls(first, second, first))
    assert [(v.model, v.count) for v in violations] == [("zeta", 2), ("alpha", 1)]


@each_rule
def test_equal_calls_are_counted_and_other_lines_told(rule: Rule, fact: Fact) -> None:
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
def test_a_module_is_named_once_and_with_the_cause_that_is_known(rule: Rule, fact: Fact) -> None:
    blind, seeing = fact(observed("bn", "BatchNorm1d")), fact(observed("bn", "BatchNorm1d", cause=INSIDE))
    violation = only(rule, blind, seeing)
    assert violation.subjects == ("model.bn (BatchNorm1d)",)
    assert violation.cause == INSIDE


@each_rule
def test_a_model_called_after_its_type_is_not_named_twice(rule: Rule, fact: Fact) -> None:
    f = observed("", "Net", model="Net")
    violation = only(rule, call("Net", "Net", training=(f,), autograd=f, batch_stats=(f,), draws=(f,)))
    assert violation.message.startswith("Net ")


@pytest.mark.parametrize(
    ("rule", "count", "message"),
    [
        (train_mode, 1, "model (Net) ran once in training mode"),
        (train_mode, 40, "model (Net) ran 40 times in training mode"),
        (grad_mode, 1, "model (Net) ran once with autograd recording"),
        (batch_stats, 2, "model (Net) ran 2 times on the statistics of the batch"),
        (random_forward, 1, "model (Net) drew random numbers in 1 forward in eval mode"),
        (random_forward, 2, "model (Net) drew random numbers in 2 forwards in eval mode"),
    ],
)
def test_headline(rule: Rule, count: int, message: str) -> None:
    f = observed("bn", "BatchNorm1d")
    ran = call(training=(f,), autograd=f, batch_stats=(f,), draws=(f,), count=count)
    assert only(rule, ran).message == message


@pytest.mark.parametrize(
    ("rule", "finding"),
    [
        (train_mode, "model.bn (BatchNorm1d) was in training mode: why so"),
        (grad_mode, "model.bn (BatchNorm1d) recorded autograd: why so"),
        (batch_stats, "model.bn (BatchNorm1d) used the batch's own statistics in eval mode: why so"),
        (random_forward, "model.bn (BatchNorm1d) drew random numbers in eval mode: why so"),
    ],
)
def test_sentence(rule: Rule, finding: str) -> None:
    assert only(rule, RULES[rule](observed("bn", "BatchNorm1d", why="why so"))).finding == finding


class TestTrainMode:
    def test_batch_norm_and_dropout_say_more_than_the_layers_that_share_their_flag(self) -> None:
        root, linear = observed("", "Net", mode_dependent=False), observed("head", "Linear", mode_dependent=False)
        norm, drop = observed("bn", "BatchNorm1d"), observed("drop", "Dropout")
        violation = only(train_mode, call(training=(root, linear, norm, drop)))
        assert violation.subjects == ("model.bn (BatchNorm1d)", "model.drop (Dropout)")
        assert violation.finding == "model.bn (BatchNorm1d) and 1 more of 7 modules were in training mode"

    def test_layers_are_named_where_nothing_says_more(self) -> None:
        layers = (
            observed("head", "Linear", mode_dependent=False),
            observed("embed", "Embedding", mode_dependent=False),
        )
        violation = only(train_mode, call(training=layers))
        assert violation.subjects == ("model.head (Linear)", "model.embed (Embedding)")

    def test_the_line_that_switched_them_is_told_where_it_was_one(self) -> None:
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

    def test_an_exemption_has_to_name_the_quiet_ones_too(self) -> None:
        quiet, norm = observed("head", "Linear", mode_dependent=False), observed("bn", "BatchNorm1d")
        assert only(train_mode, call(training=(quiet, norm))).train == ("head", "bn")

    @pytest.mark.parametrize(
        ("model", "training", "remedy"),
        [
            ("model", [("bn", "")], "call model.bn.eval() before the first forward"),
            ("model", [("", "")], "call model.eval() before the first forward"),
            ("net", [("bn", ""), ("drop", "")], "call net.eval() before the first forward"),
            # A type is no name that the user could write down.
            ("Net", [("bn", ""), ("drop", "")], "call model.eval() before the first forward"),
            # What eval() cannot reach is not to be told to eval().
            ("net", [("<GELU>", "no submodule")], "make it in __init__ and register it as a submodule"),
        ],
    )
    def test_remedy(self, model: str, training: list[tuple[str, str]], remedy: str) -> None:
        findings = tuple(observed(path, "Dropout", model=model, why=why) for path, why in training)
        assert only(train_mode, call(model, training=findings)).remedy.startswith(remedy)
