"""The `evalmode` fixture."""

from __future__ import annotations

import pytest

from tests import suites
from tests.suites import broken_rules, guarded_tests


def test_asking_for_it_guards_an_unmarked_test(pytester: pytest.Pytester) -> None:
    assert broken_rules(
        pytester,
        """
@pytest.fixture
def asks(evalmode):
    return evalmode

@pytest.fixture
def asks_in_set_up(request):
    return request.getfixturevalue("evalmode")

def test_asks(evalmode):
    infer(Net())

def test_asks_by_another(asks):
    infer(Net())

@pytest.mark.usefixtures("evalmode")
def test_uses():
    infer(Net())

def test_in_set_up(asks_in_set_up):
    infer(Net())

def test_in_the_call(request):
    request.getfixturevalue("evalmode")
    infer(Net())

def test_before_it_asked(request):
    infer(Net())
    request.getfixturevalue("evalmode")
    infer(Net().eval())

def test_clean(evalmode):
    infer(Net().eval())

def test_does_not_ask():
    infer(Net())
""",
    ) == {
        "asks": ["train-mode"],
        "asks_by_another": ["train-mode"],
        "uses": ["train-mode"],
        "in_set_up": ["train-mode"],
        "in_the_call": ["train-mode"],
        "before_it_asked": [],
        "clean": [],
    }


def test_it_is_the_guard_that_the_mark_asked_for(pytester: pytest.Pytester) -> None:
    assert broken_rules(
        pytester,
        """
@pytest.mark.inference(allow="train-mode")
def test_in_the_arguments(evalmode):
    infer(Net())

@pytest.mark.inference(allow="train-mode")
def test_in_the_call(request):
    infer(Net())
    evalmode = request.getfixturevalue("evalmode")
    assert evalmode.violations == []
    Net().eval()(torch.ones(2, 4))
    assert [violation.rule for violation in evalmode.violations] == ["grad-mode"]
""",
    ) == {"in_the_arguments": [], "in_the_call": ["grad-mode"]}


def test_it_takes_the_exemptions_of_the_ini(pytester: pytest.Pytester) -> None:
    pytester.makeini("[pytest]\nevalmode_allow = train-mode")
    source = """
def test_static(evalmode):
    infer(Net())

def test_dynamic(request):
    request.getfixturevalue("evalmode")
    infer(Net())
"""
    assert broken_rules(pytester, source) == {"static": [], "dynamic": []}


def test_watch_returns_the_model_names_it_and_watches_what_never_runs(pytester: pytest.Pytester) -> None:
    suites.write(
        pytester,
        """
def change(net):
    with torch.no_grad():
        net.fc.bias.add_(1)

def test_watched(evalmode):
    net = Net().eval()
    assert evalmode.watch(net) is net
    change(net)

def test_named(evalmode):
    change(evalmode.watch(Net(), name="student"))

def test_changed_before(evalmode):
    net = Net()
    change(net)
    evalmode.watch(net)

def test_not_watched(evalmode):
    change(Net())
""",
    )
    subjects = {name: [v["subjects"] for v in test["violations"]] for name, test in guarded_tests(pytester).items()}
    assert subjects == {
        "watched": [["Net.fc.bias"]],
        "named": [["student.fc.bias"]],
        "changed_before": [],
        "not_watched": [],
    }


def test_watch_in_set_up_counts_from_the_call_on(pytester: pytest.Pytester) -> None:
    assert broken_rules(
        pytester,
        """
@pytest.fixture
def net(evalmode):
    net = evalmode.watch(Net())
    train(net)
    return net

def test_clean(net):
    infer(net)

def test_training(net):
    train(net)
""",
    ) == {"clean": [], "training": ["train-mode", "grad-mode", "state-mutated"]}


@pytest.mark.parametrize("wrong", ["'net'", "None", "Net", "torch.ones(1)"])
def test_watch_takes_a_model_and_says_so(pytester: pytest.Pytester, wrong: str) -> None:
    suites.write(
        pytester,
        f"""
def test_it(evalmode):
    with pytest.raises(TypeError, match=r"torch\\.nn\\.Module"):
        evalmode.watch({wrong})
""",
    )
    suites.run(pytester).assert_outcomes(passed=1)


def test_paused_is_for_code_that_may_train(pytester: pytest.Pytester) -> None:
    assert broken_rules(
        pytester,
        """
@pytest.fixture
def net():
    return Net().eval()

def test_paused(evalmode, net):
    infer(net)
    with evalmode.paused():
        train(net)
    infer(net)

def test_before(evalmode, net):
    train(net)
    with evalmode.paused():
        train(net)

def test_after(evalmode, net):
    with evalmode.paused():
        train(net)
    infer(net.train())

def test_nested(evalmode, net):
    with evalmode.paused():
        with evalmode.paused():
            train(net)
        train(net)
    infer(net)

def test_allow_inside_does_not_wake_it(evalmode, net):
    with evalmode.paused(), evalmode.allow("train-mode"):
        train(net)
    infer(net)

def test_left_by_an_exception(evalmode, net):
    with pytest.raises(ValueError):
        with evalmode.paused():
            raise ValueError
    infer(net.train())

def test_in_the_middle_of_a_change(evalmode, net):
    infer(net)
    with torch.no_grad():
        net.fc.bias.add_(1)
    with evalmode.paused():
        pass
    infer(net)
""",
    ) == {
        "paused": [],
        "before": ["train-mode", "grad-mode", "state-mutated"],
        "after": ["train-mode"],
        "nested": [],
        "allow_inside_does_not_wake_it": [],
        "left_by_an_exception": ["train-mode"],
        "in_the_middle_of_a_change": ["state-mutated"],
    }


def test_allow_is_for_a_part_of_the_test(pytester: pytest.Pytester) -> None:
    assert broken_rules(
        pytester,
        """
@pytest.fixture
def net():
    return Net()

def test_inside(evalmode, net):
    with evalmode.allow("train-mode", reason="Monte Carlo"):
        infer(net)

def test_outside(evalmode, net):
    with evalmode.allow("train-mode"):
        infer(net)
    infer(net)

def test_another(evalmode, net):
    with evalmode.allow("grad-mode", "state-mutated"):
        infer(net)

def test_several(evalmode, net):
    with evalmode.allow("train-mode", "grad-mode"):
        net(torch.ones(2, 4))

def test_train(evalmode, net):
    with evalmode.allow(train=["fc", "drop"]):
        infer(net)

def test_train_another(evalmode, net):
    with evalmode.allow(train="fc"):
        infer(net)

def test_mutable(evalmode, net):
    infer(net.eval())
    with evalmode.allow(mutable="fc.bias"):
        net.fc.bias.data.add_(1)

def test_mutable_then_not(evalmode, net):
    infer(net.eval())
    with evalmode.allow(mutable="fc.bias"):
        net.fc.bias.data.add_(1)
    net.fc.bias.data.add_(1)

def test_nested(evalmode, net):
    with evalmode.allow("train-mode"), evalmode.allow("grad-mode"):
        net(torch.ones(2, 4))

@pytest.mark.inference(allow="grad-mode")
def test_adds_to_the_mark(evalmode, net):
    with evalmode.allow("train-mode"):
        net(torch.ones(2, 4))
""",
    ) == {
        "inside": [],
        "outside": ["train-mode"],
        "another": ["train-mode"],
        "several": [],
        "train": [],
        "train_another": ["train-mode"],
        "mutable": [],
        "mutable_then_not": ["state-mutated"],
        "nested": [],
        "adds_to_the_mark": [],
    }


def test_the_reason_of_a_part_is_reported(pytester: pytest.Pytester) -> None:
    suites.write(
        pytester,
        "def test_it(evalmode):\n    with evalmode.allow('train-mode', reason='Monte Carlo'):\n        infer(Net())\n",
    )
    assert guarded_tests(pytester)["it"]["reason"] == "Monte Carlo"


def test_a_wrong_argument_of_allow_fails_the_test_that_gave_it(pytester: pytest.Pytester) -> None:
    suites.write(
        pytester,
        """
def test_rule(evalmode):
    with evalmode.allow("train-mod"):
        pass

def test_glob(evalmode):
    with evalmode.allow(train=3):
        pass
""",
    )
    result = suites.run(pytester)
    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines(
        [
            "*PolicyError: evalmode.allow(): allow='train-mod' is no rule; did you mean 'train-mode'? valid: *",
            "*PolicyError: evalmode.allow(): train=3 *",
        ]
    )


def test_violations_and_check_tell_what_was_found_so_far(pytester: pytest.Pytester) -> None:
    suites.write(
        pytester,
        """
from pytest_evalmode import HygieneViolation

def test_it(evalmode):
    net = evalmode.watch(Net().eval())
    infer(net)
    evalmode.check()
    assert evalmode.violations == []
    infer(net.train())
    assert [violation.rule for violation in evalmode.violations] == ["train-mode"]
    with pytest.raises(HygieneViolation, match="train-mode: Net ran once"):
        evalmode.check()
    net.fc.bias.data.add_(1)
    assert [violation.rule for violation in evalmode.violations] == ["train-mode", "state-mutated"]
    assert [violation.rule for violation in evalmode.violations] == ["train-mode", "state-mutated"]
    infer(net)
    assert evalmode.violations[0].count == 2

def test_check_ends_the_test(evalmode):
    infer(Net())
    evalmode.check()
    raise ValueError("not reached")
""",
    )
    result = suites.run(pytester)
    result.assert_outcomes(failed=2)
    assert "not reached" not in result.stdout.str().partition("short test summary")[2]
    counts = {name: [v["count"] for v in test["violations"]] for name, test in guarded_tests(pytester).items()}
    assert counts == {"it": [2, 1], "check_ends_the_test": [1]}


def test_what_check_raises_is_told_as_the_verdict_is(pytester: pytest.Pytester) -> None:
    suites.write(pytester, "def test_it(evalmode):\n    infer(Net())\n    evalmode.check()\n")
    result = suites.run(pytester)
    assert suites.plugin_lines(result) == []
    assert result.stdout.str().count("fix: call model.eval()") == 1


def test_it_does_nothing_when_off(pytester: pytest.Pytester) -> None:
    suites.write(
        pytester,
        """
def test_static(evalmode):
    net = Net()
    assert evalmode.watch(net, name="net") is net
    infer(net)
    with evalmode.paused():
        infer(net)
    with evalmode.allow("train-mode", reason="none"):
        infer(net)
    evalmode.check()
    assert evalmode.violations == []

def test_dynamic(request):
    evalmode = request.getfixturevalue("evalmode")
    infer(evalmode.watch(Net()))
    evalmode.check()

@pytest.mark.inference
def test_marked(evalmode):
    infer(evalmode.watch(Net()))
    evalmode.check()
""",
    )
    result = suites.run(pytester, "--evalmode=off")
    result.assert_outcomes(passed=3)
    result.stdout.no_fnmatch_line("*= evalmode =*")


def test_each_test_has_a_guard_of_its_own(pytester: pytest.Pytester) -> None:
    assert broken_rules(
        pytester,
        """
@pytest.fixture(scope="module")
def net():
    return Net().eval()

def test_first(evalmode, net):
    net.fc.bias.data.add_(1)
    evalmode.watch(Net(), name="other")

def test_second(evalmode, net):
    infer(net)
    assert evalmode.violations == []
""",
    ) == {"first": ["state-mutated"], "second": []}
