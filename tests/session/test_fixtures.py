"""The `evalmode` fixture."""

from __future__ import annotations

import pytest

from tests import suites
from tests.suites import broken_rules, guarded_tests


def test_requesting_the_fixture_guards_an_unmarked_test(pytester: pytest.Pytester) -> None:
    assert broken_rules(
        pytester,
        """
@pytest.fixture
def indirect(evalmode):
    return evalmode

@pytest.fixture
def requests_in_setup(request):
    return request.getfixturevalue("evalmode")

def test_requests(evalmode):
    infer(Net())

def test_requests_indirectly(indirect):
    infer(Net())

@pytest.mark.usefixtures("evalmode")
def test_uses():
    infer(Net())

def test_in_setup(requests_in_setup):
    infer(Net())

def test_in_the_call(request):
    request.getfixturevalue("evalmode")
    infer(Net())

def test_before_the_request(request):
    infer(Net())
    request.getfixturevalue("evalmode")
    infer(Net().eval())

def test_clean(evalmode):
    infer(Net().eval())

def test_does_not_request():
    infer(Net())
""",
    ) == {
        "requests": ["train-mode"],
        "requests_indirectly": ["train-mode"],
        "uses": ["train-mode"],
        "in_setup": ["train-mode"],
        "in_the_call": ["train-mode"],
        "before_the_request": [],
        "clean": [],
    }


def test_the_fixture_returns_the_guard_of_a_marked_test(pytester: pytest.Pytester) -> None:
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


def test_the_fixture_uses_the_exemptions_of_the_ini(pytester: pytest.Pytester) -> None:
    pytester.makeini("[pytest]\nevalmode_allow = train-mode")
    source = """
def test_static(evalmode):
    infer(Net())

def test_dynamic(request):
    request.getfixturevalue("evalmode")
    infer(Net())
"""
    assert broken_rules(pytester, source) == {"static": [], "dynamic": []}


def test_watch_returns_and_names_a_model_and_watches_it_even_if_it_never_runs(pytester: pytest.Pytester) -> None:
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


def test_a_model_watched_in_setup_is_checked_from_the_call_on(pytester: pytest.Pytester) -> None:
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


@pytest.mark.parametrize("value", ["'net'", "None", "Net", "torch.ones(1)"])
def test_watch_accepts_models_only(pytester: pytest.Pytester, value: str) -> None:
    suites.write(
        pytester,
        f"""
def test_it(evalmode):
    with pytest.raises(TypeError, match=r"torch\\.nn\\.Module"):
        evalmode.watch({value})
""",
    )
    suites.run(pytester).assert_outcomes(passed=1)


def test_paused_excludes_code_that_trains(pytester: pytest.Pytester) -> None:
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

def test_allow_inside_stays_paused(evalmode, net):
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
        "allow_inside_stays_paused": [],
        "left_by_an_exception": ["train-mode"],
        "in_the_middle_of_a_change": ["state-mutated"],
    }


def test_allow_applies_to_a_part_of_the_test(pytester: pytest.Pytester) -> None:
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


def test_the_reason_given_to_allow_is_reported(pytester: pytest.Pytester) -> None:
    suites.write(
        pytester,
        "def test_it(evalmode):\n    with evalmode.allow('train-mode', reason='Monte Carlo'):\n        infer(Net())\n",
    )
    assert guarded_tests(pytester)["it"]["reason"] == "Monte Carlo"


def test_an_invalid_argument_of_allow_fails_its_test(pytester: pytest.Pytester) -> None:
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
            "*PolicyError: evalmode.allow(): unknown rule in allow='train-mod' (did you mean 'train-mode'? choose *",
            "*PolicyError: evalmode.allow(): train must be *, not 3",
        ]
    )


def test_violations_and_check_report_violations_so_far(pytester: pytest.Pytester) -> None:
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


def test_an_error_of_check_is_printed_like_that_of_the_end(pytester: pytest.Pytester) -> None:
    suites.write(pytester, "def test_it(evalmode):\n    infer(Net())\n    evalmode.check()\n")
    result = suites.run(pytester)
    assert suites.plugin_lines(result) == []
    assert result.stdout.str().count("fix: call net.eval()") == 1


def test_the_fixture_does_nothing_when_guarding_is_off(pytester: pytest.Pytester) -> None:
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


def test_each_test_has_its_own_guard(pytester: pytest.Pytester) -> None:
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
