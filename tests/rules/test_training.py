"""Remedies that fit what a test does on purpose; facts built by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pytest_evalmode.policy import Policy, PolicyError, read_policy
from pytest_evalmode.rules import Violation, apply_rules
from pytest_evalmode.rules.forward_rules import grad_mode, random_forward, train_mode
from pytest_evalmode.rules.state_rules import buffer_mutated, state_mutated
from pytest_evalmode.trace import ModelOperation, Trace
from tests.rules.facts import HERE, THERE, call, calls, changed, observed

STEP = ModelOperation(("model",), "SGD.step()", THERE)
BACKWARD = ModelOperation(("model",), "backward()", THERE)
RAN = call(training=(observed("bn", "BatchNorm1d"),), autograd=observed("", "Net", why="grad mode was on"))
TRAINED = replace(calls(RAN), changes=(changed("bn.running_mean", buffer=True), changed("head.weight")), steps=(STEP,))


def the(violations: list[Violation]) -> Violation:
    (violation,) = violations
    return violation


def test_a_test_that_trains_is_told_of_paused_and_never_to_call_eval() -> None:
    for rule in (train_mode, grad_mode, state_mutated):
        violation = the(rule.violations(TRAINED))
        assert "evalmode.paused()" in violation.remedy
        assert "SGD.step() at tests/test_net.py:40" in violation.remedy
        assert "eval()" not in violation.remedy
        assert violation.details["trained"] == "SGD.step() at tests/test_net.py:40"
        assert violation.never_intended


def test_the_optimizer_of_another_model_changes_no_remedy() -> None:
    other = replace(TRAINED, steps=(replace(STEP, models=("teacher",)),))
    assert the(train_mode.violations(other)).remedy == "call model.bn.eval() before the first forward"
    assert "inference_mode" in (the(grad_mode.violations(other)).remedy)
    assert "trained" not in the(state_mutated.violations(other)).details


def test_gradients_on_purpose_are_told_of_allow() -> None:
    violation = the(grad_mode.violations(replace(calls(RAN), gradients=(BACKWARD,))))
    assert violation.message.endswith("; backward() used the graph")
    assert violation.finding.endswith("the graph was used by backward() at tests/test_net.py:40")
    assert "allow=['grad-mode']" in violation.remedy
    assert "used" not in the(grad_mode.violations(calls(RAN))).message


def test_only_what_training_mode_moves_is_its_consequence() -> None:
    moved = replace(calls(RAN), changes=(changed("bn.running_mean", buffer=True),))
    assert the(state_mutated.violations(moved)).because == ("train-mode",)
    beside = replace(moved, changes=(*moved.changes, changed("head.calls", buffer=True)))
    assert the(state_mutated.violations(beside)).because == ()
    written = replace(calls(RAN), changes=(changed("head.weight"),))
    assert the(state_mutated.violations(written)).because == ()
    by_hand = the(state_mutated.violations(replace(written, gradients=(BACKWARD,))))
    assert "evalmode.paused()" in by_hand.remedy


def test_training_mode_explains_a_buffer_that_is_not_saved_as_well() -> None:
    for buffer, because in (("bn.mean", ("train-mode",)), ("rope.cos", ()), ("other.bn.mean", ())):
        moved = replace(calls(RAN), changes=(changed(buffer, buffer=True, persistent=False),))
        assert the(buffer_mutated.violations(moved)).because == because


def test_a_container_that_is_only_in_training_mode_moves_nothing() -> None:
    container = replace(
        calls(call(training=(observed("", "Net", mode_dependent=False),))), changes=(changed("n", buffer=True),)
    )
    assert the(state_mutated.violations(container)).because == ()


def test_an_export_is_told_to_call_eval_first() -> None:
    exported = call(training=(observed("drop", "Dropout"),), exported=True, all_training=True)
    violation = the(train_mode.violations(calls(exported)))
    assert violation.message == "model (Net) was exported in training mode"
    assert violation.remedy.startswith("call eval() before export")
    assert violation.at == HERE


def test_a_traced_model_that_ran_has_told_it_by_what_it_did() -> None:
    exported = call(
        "Net", at=THERE, training=(observed("drop", "Dropout"),), exported=True, graphs=frozenset({"graph"})
    )
    drew = call("graph", draws=(replace(observed("", "Net"), is_graph=True),))
    assert train_mode.violations(calls(exported, drew)) == []
    violation = the(random_forward.violations(calls(exported, drew)))
    assert violation.remedy.startswith("call eval() before export")
    assert violation.since == THERE


def test_what_another_graph_did_tells_nothing_of_an_export() -> None:
    exported = call("Net", training=(observed("drop", "Dropout"),), exported=True)
    drew = call("graph", draws=(replace(observed("", "Net"), is_graph=True),))
    assert the(train_mode.violations(calls(drew, exported))).message == "Net was exported in training mode"


def test_a_graph_that_ran_in_training_mode_is_told_where_it_was_made() -> None:
    dropout = (observed("drop", "Dropout", model="Net"),)
    exported = call("Net", at=THERE, training=dropout, exported=True, graphs=frozenset({"Net"}))
    violation = the(train_mode.violations(calls(call("Net", training=dropout), exported)))
    assert (violation.at, violation.count) == (THERE, 2)
    assert violation.remedy.startswith("call eval() before export")


def test_eval_mode_is_not_said_of_a_module_in_training_mode() -> None:
    violation = the(random_forward.violations(calls(call(draws=(replace(observed("", "Net"), training=True),)))))
    assert "eval mode" not in violation.message + violation.finding


@pytest.mark.parametrize(("all_training", "plain"), [(True, True), (False, False)])
def test_a_forgotten_eval_of_everything_is_plain(all_training: bool, plain: bool) -> None:
    ran = call(training=(observed("bn", "BatchNorm1d"),), all_training=all_training)
    assert the(train_mode.violations(calls(ran))).never_intended is plain


NAMES = frozenset({("model", "drop"), ("model", "bn"), ("model", "bn.running_mean"), ("model", "head.weight")})


def notes(trace: Trace, policy: Policy) -> tuple[str, ...]:
    return tuple(note for violation in apply_rules([(replace(trace, names=NAMES), policy)]) for note in violation.notes)


def test_an_exemption_that_names_nothing_is_told_with_the_nearest_name() -> None:
    dropped = calls(call(training=(observed("drop", "Dropout"),)))
    assert notes(dropped, Policy(train=("dropout",))) == ('train="dropout" matches no module; nearest: drop',)
    moved = Trace(changes=(changed("bn.running_mean"),))
    assert notes(moved, Policy(mutable=("bn.mean",))) == (
        'mutable="bn.mean" matches no tensor; nearest: bn.running_mean',
    )


@pytest.mark.parametrize("glob", ["bn", "head", "*norm*"])
def test_one_that_names_something_or_nothing_like_it_is_not(glob: str) -> None:
    """`head` is there by its weight alone, and like neither."""
    assert notes(calls(call(training=(observed("drop", "Dropout"),))), Policy(train=(glob,))) == ()


@pytest.mark.parametrize("reason", ["...", "…", " ... "])
def test_a_reason_that_was_pasted_as_it_was_printed_is_refused(reason: str) -> None:
    with pytest.raises(PolicyError, match="say why this is intended"):
        read_policy("@pytest.mark.inference", {"reason": reason}, ())
    assert read_policy("@pytest.mark.inference", {"reason": "samples ..."}, ()).reasons == ("samples ...",)
