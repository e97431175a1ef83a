"""The strict rules, applied to facts built by hand."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest

from pytest_evalmode.policy import Policy
from pytest_evalmode.rules import RULES, Rule, Violation, apply_rules, rule
from pytest_evalmode.rules.exemptions import PolicySegments, unused_exemption
from pytest_evalmode.rules.forward_rules import no_forward, unregistered_module
from pytest_evalmode.rules.leak_rules import global_leaked, model_leaked
from pytest_evalmode.rules.state_rules import (
    attribute_mutated,
    buffer_mutated,
    input_mutated,
    partial_load,
    state_drifted,
    state_mutated,
)
from pytest_evalmode.trace import AttributeChange, Drift, Leak, Load, ModuleInfo, Trace
from tests.rules.facts import HERE, INSIDE, THERE, call, calls, changed, changes, observed


def attribute(name: str, before: str, after: str, path: str = "encoder") -> AttributeChange:
    return AttributeChange(ModuleInfo("model", path, "Encoder"), name, before, after)


def load(missing: str = "", unexpected: str = "", path: str = "") -> Trace:
    return Trace(
        loads=(Load(ModuleInfo("model", path, "Net"), HERE, tuple(missing.split()), tuple(unexpected.split())),)
    )


def drift(*paths: str, between: tuple[str, ...] = ()) -> Trace:
    return Trace(drifts=(Drift("model", tuple(map(changed, paths)), "test_a.py::test_old", between),))


def leaks(*changes: Leak) -> Trace:
    return Trace(leaks=changes)


MODEL_LEAK = Leak("model", "drop.training", False, True)
GLOBAL_LEAK = Leak(None, "default_dtype", "float32", "float64")

# Each strict rule with a trace that breaks only this rule.
FAULTS: dict[Rule, Trace] = {
    input_mutated: calls(call(inputs=("argument 0",))),
    buffer_mutated: changes(changed("steps", persistent=False)),
    attribute_mutated: calls(call(attributes=(attribute("mode", "'a'", "'b'"),))),
    unregistered_module: calls(call(unregistered=(observed("parts[0]", "Linear"),))),
    partial_load: load(missing="head.weight"),
    model_leaked: leaks(MODEL_LEAK),
    global_leaked: leaks(GLOBAL_LEAK),
    state_drifted: drift("fc.weight"),
    no_forward: Trace(needs_forward=True),
    unused_exemption: Trace(unused_exemptions=('train="drop"',)),
}
LOOK_ALIKES: dict[str, Trace] = {
    "nothing": Trace(),
    "a forward": calls(call()),
    "a marked test with a forward": Trace(needs_forward=True, forwards=1),
    "no forward in an unmarked test": Trace(needs_forward=False, forwards=0),
}


def only(rule: Rule, trace: Trace) -> Violation:
    (violation,) = rule.violations(trace)
    return violation


def test_faults_has_an_entry_for_every_strict_rule() -> None:
    strict = {each.name for each in RULES if each.level == "strict"}
    assert {rule.name for rule in FAULTS} == strict, "add a trace for the new rule to FAULTS"


@pytest.mark.parametrize("rule", FAULTS, ids=lambda rule: rule.name)
def test_each_trace_breaks_only_its_own_rule(rule: Rule) -> None:
    assert [other.name for other, trace in FAULTS.items() if rule.violations(trace)] == [rule.name]
    violation = only(rule, FAULTS[rule])
    assert violation.rule == rule.name
    assert violation.remedy
    assert "\n" not in violation.message + violation.finding


@pytest.mark.parametrize("trace", LOOK_ALIKES.values(), ids=LOOK_ALIKES)
def test_a_clean_trace_breaks_no_strict_rule(trace: Trace) -> None:
    assert apply_rules([(trace, Policy())], strict=True) == []


@pytest.mark.parametrize("rule", FAULTS, ids=lambda rule: rule.name)
def test_strict_rules_apply_only_with_strict(rule: Rule) -> None:
    segments = [(FAULTS[rule], Policy())]
    assert apply_rules(segments) == []
    expected = [] if rule is unused_exemption else [rule.name]  # apply_rules() finds unused exemptions itself
    assert [v.rule for v in apply_rules(segments, strict=True)] == expected


@pytest.mark.parametrize("rule", FAULTS, ids=lambda rule: rule.name)
def test_a_strict_rule_can_be_allowed(rule: Rule) -> None:
    allowing = Policy(allow=frozenset({rule.name}), exemptions=(("allow", rule.name),))
    assert apply_rules([(FAULTS[rule], allowing)], strict=True) == []


@pytest.mark.slow
def test_the_rules_do_not_import_torch() -> None:
    code = "import sys, pytest_evalmode.rules, pytest_evalmode.trace; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


# --- headlines


@pytest.mark.parametrize(
    ("rule", "trace", "message"),
    [
        (input_mutated, calls(call(inputs=("argument 0",))), "model (Net) changed its input in place"),
        (buffer_mutated, changes(changed("steps", persistent=False)), "model.steps changed"),
        (
            attribute_mutated,
            calls(call(attributes=(attribute("attention_type", "'block_sparse'", "'original_full'"),))),
            "model.encoder.attention_type: 'block_sparse' -> 'original_full'",
        ),
        (
            attribute_mutated,
            calls(call(attributes=(attribute("a", "1", "2"), attribute("b", "None", "3", path="")))),
            "model.encoder.a: 1 -> 2 (and 1 more)",
        ),
        (
            unregistered_module,
            calls(call(unregistered=(observed("parts[0]", "Linear"), observed("parts[1]", "Linear")))),
            "model (Net) ran 2 unregistered modules: model.parts[0] (Linear) and 1 more",
        ),
        (partial_load, load(missing="a b"), "model (Net) was loaded with 2 missing keys (a and 1 more)"),
        (
            partial_load,
            load("a", "b c", path="net"),
            "model.net (Net) was loaded with 1 missing key (a) and 2 unexpected keys (b and 1 more)",
        ),
        (model_leaked, leaks(MODEL_LEAK), "model.drop was left in training mode"),
        (model_leaked, leaks(Leak("model", "cache", "{}", "{'a': 1}")), "model.cache changed from {} to {'a': 1}"),
        (global_leaked, leaks(GLOBAL_LEAK), "torch default_dtype changed from float32 to float64"),
        (global_leaked, leaks(GLOBAL_LEAK, Leak(None, "threads", "1", "2")), "to float64 (and 1 more)"),
        (state_drifted, drift("a", "b"), "model.a and 1 more changed since the last guarded test"),
        (no_forward, Trace(needs_forward=True), "the test ran no model: the guard proved nothing"),
        (
            unused_exemption,
            Trace(unused_exemptions=('train="a"', 'allow="b"')),
            'unused exemptions: train="a", allow="b"',
        ),
    ],
)
def test_the_headline_names_the_subjects(rule: Rule, trace: Trace, message: str) -> None:
    assert message in only(rule, trace).message


@pytest.mark.parametrize("fact", ["inputs", "attributes", "unregistered"])
def test_forwards_of_one_model_are_one_violation(fact: str) -> None:
    values: dict[str, Any] = {
        "inputs": ("argument 0",),
        "attributes": (attribute("a", "1", "2"),),
        "unregistered": (observed("parts[0]", "Linear", cause=INSIDE),),
    }
    rule = {"inputs": input_mutated, "attributes": attribute_mutated, "unregistered": unregistered_module}[fact]
    here, there = (call(**{fact: values[fact]}, at=at, count=count) for at, count in ((HERE, 2), (THERE, 3)))
    violation = only(rule, calls(here, there))
    assert (violation.at, violation.count, violation.details["also_at"]) == (HERE, 5, [str(THERE)])
    assert len(violation.subjects) == 1


def test_an_attribute_is_reported_with_its_first_change() -> None:
    ran = [call(attributes=(attribute("n", str(i), str(i + 1)),)) for i in range(3)]
    violation = only(attribute_mutated, calls(*ran))
    assert violation.details["attributes"] == {"model.encoder.n": "0 -> 1"}


def test_the_changed_arguments_are_listed() -> None:
    ran = (call(inputs=("argument 0",)), call(inputs=("argument 'mask'", "argument 0")))
    assert only(input_mutated, calls(*ran)).details["arguments"] == ["argument 0", "argument 'mask'"]


def test_persistent_and_other_buffers_are_reported_by_different_rules() -> None:
    trace = changes(changed("running_mean"), changed("cache", persistent=False))
    assert only(state_mutated, trace).subjects == ("model.running_mean",)
    assert only(buffer_mutated, trace).subjects == ("model.cache",)
    assert only(buffer_mutated, trace).mutable == ("cache",)


# --- leaks


def test_leaks_of_models_and_of_torch_are_reported_separately() -> None:
    trace = leaks(MODEL_LEAK, GLOBAL_LEAK, Leak("other", "fc.weight.grad", None, "a tensor"))
    assert [(v.model, v.subjects) for v in model_leaked.violations(trace)] == [
        ("model", ("model.drop.training",)),
        ("other", ("other.fc.weight.grad",)),
    ]
    violation = only(global_leaked, trace)
    assert (violation.model, violation.subjects) == (None, ("torch default_dtype",))
    assert violation.details == {"leaks": {"torch default_dtype": "float32 -> float64"}}


def test_a_shared_model_that_the_test_put_in_eval_mode_is_put_there_by_its_fixture() -> None:
    """To restore it would undo the fix of train-mode."""
    to_eval = Leak("model", "drop.training", True, False)
    assert only(model_leaked, leaks(to_eval)).remedy.startswith("call eval() where the shared model is created")
    for other in (MODEL_LEAK, Leak("model", "fc.weight.requires_grad", True, False)):
        assert "eval()" not in only(model_leaked, leaks(to_eval, other)).remedy


# --- partial-load: common prefixes of the keys

PREFIXED = "module.0.weight module.0.bias"
CAUSES = {
    "all keys, from DataParallel": (load("0.weight 0.bias", PREFIXED), "prefix `module.`; strip it"),
    "all keys, from torch.compile": (load("fc.weight", "_orig_mod.fc.weight"), "prefix `_orig_mod.`; strip it"),
    "another prefix": (load("fc.weight fc.bias", "model.fc.weight model.fc.bias"), "prefix `model.`; strip it"),
    "the model is wrapped": (load(PREFIXED, "0.weight 0.bias"), "prefix `module.`; add it"),
    "none: a head is new": (load("head.weight head.bias"), ""),
    "none: an aux head is left over": (load(unexpected="aux.weight aux.bias"), ""),
    "none: two heads": (load("head.weight", "classifier.weight aux.weight"), ""),
}


@pytest.mark.parametrize(("trace", "cause"), CAUSES.values(), ids=CAUSES)
def test_a_common_prefix_of_the_keys_is_reported(trace: Trace, cause: str) -> None:
    finding = only(partial_load, trace).finding
    assert cause in finding
    assert ("prefix" in finding) == bool(cause)


def test_every_key_is_listed_and_the_remedy_names_allow() -> None:
    violation = only(partial_load, load("a b", "c"))
    assert violation.subjects == ("model.a", "model.b", "model.c")
    assert violation.details == {"missing": ["a", "b"], "unexpected": ["c"]}
    assert (violation.at, violation.count) == (HERE, 3)
    assert "allow=['partial-load']" in violation.remedy


def test_an_unregistered_module_in_training_mode_is_explained_by_train_mode() -> None:
    hidden, other = (
        observed(path, "Linear", why=why) for path, why in (("parts[0]", "no submodule"), ("parts[1]", ""))
    )
    for training, because in (((hidden,), ("train-mode",)), ((other,), ()), ((), ())):
        trace = calls(call(training=training, unregistered=(replace(hidden, why=""),)))
        assert only(unregistered_module, trace).because == because


# --- state-drifted: the tests run since


@pytest.mark.parametrize(
    ("between", "since"),
    [
        ((), "no test ran since"),
        (("t1",), "tests run since: t1"),
        (("t3", "t1", "t2"), "tests run since: t3, t1, t2"),
        (("t5", "t1", "t2", "t3", "t4"), "tests run since: t5, t1, t2 and 2 more"),
    ],
)
def test_tests_run_since_are_listed_in_the_given_order(between: tuple[str, ...], since: str) -> None:
    violation = only(state_drifted, drift("w", between=between))
    assert violation.finding == f"model.w changed after test_a.py::test_old ended; {since}"
    assert violation.details["between"] == list(between)
    assert violation.details["last_seen_by"] == "test_a.py::test_old"


# --- unused exemptions


@rule("too-slow", fires_when="a model ran more than nine times", remedy="run it less often", level="strict")
def too_slow(trace: Trace) -> list[Violation]:
    slow = [model for model in trace.models if model.forwards > 9]
    return [Violation(model=m.name, subjects=(m.name,), message="slow", finding="slow") for m in slow]


def declared(**arguments: str) -> Policy:
    """Return a policy as a marker declares it."""
    return Policy(
        allow=frozenset(arguments.get("allow", "").split()),
        train=tuple(arguments.get("train", "").split()),
        mutable=tuple(arguments.get("mutable", "").split()),
        exemptions=tuple((name, value) for name, values in arguments.items() for value in values.split()),
    )


def unused(segments: PolicySegments, **options: Any) -> list[str]:
    """Return the subjects of unused-exemption."""
    violations = apply_rules(segments, strict=True, user_rules=(too_slow,), **options)
    return [subject for v in violations if v.rule == "unused-exemption" for subject in v.subjects]


TRAINED = calls(call(training=(observed("drop", "Dropout"),), count=1))
CHANGED = changes(changed("bn.running_mean"))
CACHED = changes(changed("cache", persistent=False))
RAN = Trace(needs_forward=True, forwards=1)


@pytest.mark.parametrize(
    ("policy", "trace", "expected"),
    [
        (declared(train="drop"), TRAINED, []),
        (declared(train="model.drop"), TRAINED, []),
        (declared(train="bn"), TRAINED, ['train="bn"']),
        (declared(train="drop *"), TRAINED, []),
        (declared(mutable="bn.*"), CHANGED, []),
        (declared(mutable="cache"), CACHED, []),
        (declared(mutable="head.*"), CHANGED, ['mutable="head.*"']),
        (declared(allow="train-mode"), TRAINED, []),
        (declared(allow="grad-mode"), TRAINED, ['allow="grad-mode"']),
        (declared(allow="state-mutated"), CHANGED, []),
        (declared(allow="state-mutated"), CACHED, ['allow="state-mutated"']),
        (declared(allow="state-mutated", mutable="bn.*"), CHANGED, ['allow="state-mutated"']),
        (declared(allow="too-slow"), TRAINED, ['allow="too-slow"']),
        (declared(allow="no-forward"), Trace(needs_forward=True), []),
        (declared(allow="no-forward"), RAN, ['allow="no-forward"']),
        (declared(allow="unused-exemption"), RAN, []),
        (declared(allow="unused-exemption grad-mode"), RAN, []),
        (declared(train="a", mutable="b", allow="grad-mode"), RAN, ['train="a"', 'mutable="b"', 'allow="grad-mode"']),
        (Policy(train=("a",)), RAN, []),  # from the ini: checked over the whole suite
    ],
)
def test_an_exemption_that_matches_nothing_is_unused(policy: Policy, trace: Trace, expected: list[str]) -> None:
    assert unused([(trace, policy)]) == expected


def test_an_exemption_is_unused_only_in_the_segments_that_declare_it() -> None:
    mark, inner = declared(allow="train-mode"), declared(train="drop")
    both = mark | inner
    assert unused([(TRAINED, mark), (TRAINED, both), (RAN, mark)]) == []
    assert unused([(RAN, mark), (TRAINED, both)]) == ['allow="train-mode"']
    assert unused([(TRAINED, mark), (RAN, both)]) == ['train="drop"']
    assert unused([(RAN, mark), (RAN, inner)]) == ['allow="train-mode"', 'train="drop"']
    assert unused([(RAN, mark), (RAN, mark)]) == ['allow="train-mode"']


def test_allowing_no_forward_is_unused_if_any_segment_ran_a_model() -> None:
    policy = declared(allow="no-forward")
    assert unused([(Trace(), policy), (Trace(needs_forward=True, forwards=1), policy)]) == ['allow="no-forward"']
    assert unused([(Trace(), policy), (Trace(needs_forward=True), policy)]) == []


def test_an_unfinished_window_has_no_unused_exemptions() -> None:
    assert unused([(RAN, declared(train="drop"))], finished=False) == []


def test_a_segment_may_allow_a_rule_that_the_others_do_not() -> None:
    allowing = declared(allow="input-mutated")
    wrote = FAULTS[input_mutated]
    assert apply_rules([(RAN, Policy()), (wrote, allowing)], strict=True) == []
    assert [v.rule for v in apply_rules([(wrote, Policy()), (wrote, allowing)], strict=True)] == ["input-mutated"]


# --- state-drifted: torch's global state

WAS = Leak(None, "default_dtype", "float32", "float64")


@pytest.mark.parametrize(
    ("between", "changed_by", "since"),
    [
        ((), (), "no test ran since"),
        (("b", "a"), (), "tests run since: b, a"),
        (("b", "a"), ("a",), "it changed while a ran"),
    ],
)
def test_a_change_of_the_global_state_is_reported_with_the_tests_run_since(
    between: tuple[str, ...], changed_by: tuple[str, ...], since: str
) -> None:
    violation = only(state_drifted, Trace(drifts=(Drift(None, (WAS,), "test_old", between, changed_by),)))
    assert (violation.model, violation.subjects) == (None, ("torch default_dtype",))
    assert violation.finding == f"torch default_dtype changed from float32 to float64 after test_old ended; {since}"
