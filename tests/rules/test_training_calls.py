"""Fixes for tests that train, compute gradients or export on purpose, on facts built by hand."""

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


def test_a_test_that_trains_is_advised_to_use_paused_and_never_eval() -> None:
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


def test_a_test_that_computes_gradients_is_advised_to_use_allow() -> None:
    violation = the(grad_mode.violations(replace(calls(RAN), gradients=(BACKWARD,))))
    assert violation.message.endswith("; backward() used the graph")
    assert violation.finding.endswith("the graph was used by backward() at tests/test_net.py:40")
    assert "allow=['grad-mode']" in violation.remedy
    assert "used" not in the(grad_mode.violations(calls(RAN))).message


def test_only_buffers_of_modules_in_training_mode_are_explained_by_it() -> None:
    moved = replace(calls(RAN), changes=(changed("bn.running_mean", buffer=True),))
    assert the(state_mutated.violations(moved)).because == ("train-mode",)
    other_buffer = replace(moved, changes=(*moved.changes, changed("head.calls", buffer=True)))
    assert the(state_mutated.violations(other_buffer)).because == ()
    written = replace(calls(RAN), changes=(changed("head.weight"),))
    assert the(state_mutated.violations(written)).because == ()
    backward = the(state_mutated.violations(replace(written, gradients=(BACKWARD,))))
    assert "evalmode.paused()" in backward.remedy


def test_training_mode_also_explains_a_non_persistent_buffer() -> None:
    for buffer, because in (("bn.mean", ("train-mode",)), ("rope.cos", ()), ("other.bn.mean", ())):
        moved = replace(calls(RAN), changes=(changed(buffer, buffer=True, persistent=False),))
        assert the(buffer_mutated.violations(moved)).because == because


def test_a_container_in_training_mode_explains_no_change() -> None:
    container = replace(
        calls(call(training=(observed("", "Net", mode_dependent=False),))), changes=(changed("n", buffer=True),)
    )
    assert the(state_mutated.violations(container)).because == ()


def test_an_export_in_training_mode_is_advised_to_call_eval_first() -> None:
    exported = call(training=(observed("drop", "Dropout"),), exported=True, all_training=True)
    violation = the(train_mode.violations(calls(exported)))
    assert violation.message == "model (Net) was exported in training mode"
    assert violation.remedy.startswith("call eval() before export")
    assert violation.at == HERE


def test_a_traced_graph_that_drew_random_numbers_is_reported_once_at_the_export() -> None:
    exported = call(
        "Net", at=THERE, training=(observed("drop", "Dropout"),), exported=True, graphs=frozenset({"graph"})
    )
    drew = call("graph", draws=(replace(observed("", "Net"), is_graph=True),))
    assert train_mode.violations(calls(exported, drew)) == []
    violation = the(random_forward.violations(calls(exported, drew)))
    assert violation.remedy.startswith("call eval() before export")
    assert violation.since == THERE


def test_a_draw_of_another_graph_does_not_replace_the_violation_of_an_export() -> None:
    exported = call("Net", training=(observed("drop", "Dropout"),), exported=True)
    drew = call("graph", draws=(replace(observed("", "Net"), is_graph=True),))
    assert the(train_mode.violations(calls(drew, exported))).message == "Net was exported in training mode"


def test_a_graph_that_ran_in_training_mode_is_reported_at_the_export() -> None:
    dropout = (observed("drop", "Dropout", model="Net"),)
    exported = call("Net", at=THERE, training=dropout, exported=True, graphs=frozenset({"Net"}))
    violation = the(train_mode.violations(calls(call("Net", training=dropout), exported)))
    assert (violation.at, violation.count) == (THERE, 2)
    assert violation.remedy.startswith("call eval() before export")


def test_the_message_does_not_claim_eval_mode_for_a_module_in_training_mode() -> None:
    violation = the(random_forward.violations(calls(call(draws=(replace(observed("", "Net"), training=True),)))))
    assert "eval mode" not in violation.message + violation.finding


@pytest.mark.parametrize(("all_training", "never_intended"), [(True, True), (False, False)])
def test_a_model_that_is_in_training_mode_as_a_whole_gets_no_exemption(
    all_training: bool, never_intended: bool
) -> None:
    ran = call(training=(observed("bn", "BatchNorm1d"),), all_training=all_training)
    assert the(train_mode.violations(calls(ran))).never_intended is never_intended


NAMES = frozenset({("model", "drop"), ("model", "bn"), ("model", "bn.running_mean"), ("model", "head.weight")})


def notes(trace: Trace, policy: Policy) -> tuple[str, ...]:
    return tuple(note for violation in apply_rules([(replace(trace, names=NAMES), policy)]) for note in violation.notes)


def test_an_exemption_that_matches_nothing_gets_a_note_with_the_nearest_name() -> None:
    dropped = calls(call(training=(observed("drop", "Dropout"),)))
    assert notes(dropped, Policy(train=("dropout",))) == ('train="dropout" matches no module; did you mean "drop"?',)
    moved = Trace(changes=(changed("bn.running_mean"),))
    assert notes(moved, Policy(mutable=("bn.mean",))) == (
        'mutable="bn.mean" matches no tensor; did you mean "bn.running_mean"?',
    )


def test_the_nearest_name_is_the_first_that_is_spelled_so() -> None:
    dropped = calls(call(training=(observed("dropout", "Dropout"), observed("block.dropout", "Dropout"))))
    (note,) = notes(dropped, Policy(train=("dropot",)))
    assert note.endswith('did you mean "dropout"?')


@pytest.mark.parametrize("glob", ["bn", "head", "*norm*"])
def test_an_exemption_that_matches_or_resembles_nothing_gets_no_note(glob: str) -> None:
    """`head` is only part of the name of a tensor, and resembles none of the names."""
    assert notes(calls(call(training=(observed("drop", "Dropout"),))), Policy(train=(glob,))) == ()


@pytest.mark.parametrize("reason", ["...", "…", " ... "])
def test_a_placeholder_as_reason_is_an_error(reason: str) -> None:
    with pytest.raises(PolicyError, match="replace the placeholder reason="):
        read_policy("@pytest.mark.inference", {"reason": reason}, ())
    assert read_policy("@pytest.mark.inference", {"reason": "samples ..."}, ()).reasons == ("samples ...",)
