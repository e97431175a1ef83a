"""The models that fixtures and base classes pass to a test."""

from __future__ import annotations

import pytest

from tests import suites
from tests.suites import broken_rules, guarded_tests

# Values of a shared fixture, and the name of the changed tensor, which starts with that of the fixture.
HOLDERS = {
    "itself": ("net", "shared.fc.bias"),
    "dict": ("{'a': net}", "shared['a'].fc.bias"),
    "list": ("[1, net]", "shared[1].fc.bias"),
    "tuple": ("(net,)", "shared[0].fc.bias"),
    "object": ("Holder(net)", "shared.net.fc.bias"),
    "dataclass": ("Data(net)", "shared.net.fc.bias"),
    "nested": ("{'a': [Holder(net)]}", "shared['a'][0].net.fc.bias"),
}


@pytest.mark.parametrize("holder", HOLDERS)
@pytest.mark.parametrize("scope", ["function", "class", "module", "package", "session"])
def test_models_in_shared_fixtures_are_watched_from_the_start(
    pytester: pytest.Pytester, holder: str, scope: str
) -> None:
    value, name = HOLDERS[holder]
    suites.write(
        pytester,
        f"""
from dataclasses import dataclass

class Holder:
    def __init__(self, net):
        self.net = net

@dataclass
class Data:
    net: object

NET = Net().eval()

@pytest.fixture(scope="{scope}")
def shared():
    net = NET
    return {value}

@pytest.mark.inference
def test_it(shared):
    NET.fc.bias.data.add_(1)
""",
    )
    subjects = [violation["subjects"] for violation in guarded_tests(pytester)["it"]["violations"]]
    assert subjects == ([] if scope == "function" else [[name]])


def test_a_fixture_set_up_in_the_call_is_not_checked_but_its_models_are(
    pytester: pytest.Pytester,
) -> None:
    source = """
@pytest.fixture(scope="module")
def trained():
    net = Net()
    train(net)
    return net

@pytest.fixture
def own():
    net = Net()
    train(net)
    return net

@pytest.fixture
def failing():
    train(Net())
    raise LookupError

@pytest.mark.inference
@pytest.mark.parametrize("name", ["trained", "own"])
def test_clean(request, name):
    infer(request.getfixturevalue(name))

@pytest.mark.inference
def test_forgotten(request):
    infer(request.getfixturevalue("own").train())

@pytest.mark.inference
def test_failing(request):
    with pytest.raises(LookupError):
        request.getfixturevalue("failing")
    infer(Net())

def test_requests(evalmode, request):
    infer(request.getfixturevalue("own"))

def test_requests_in_the_call(request):
    request.getfixturevalue("evalmode")
    infer(request.getfixturevalue("own").train())

@pytest.fixture(scope="class")
def late():
    return Net().eval()

@pytest.mark.inference
class TestLate:
    def test_writes(self, request):
        request.getfixturevalue("late").fc.bias.data.add_(1)
"""
    suites.write(pytester, source)
    tests = suites.json_report(pytester)["tests"]
    violations = {t["nodeid"].rpartition("::")[2]: [v["rule"] for v in t["violations"]] for t in tests}
    assert violations == {
        "test_clean[trained]": [],
        "test_clean[own]": [],
        "test_forgotten": ["train-mode"],
        "test_failing": ["train-mode"],
        "test_requests": [],
        "test_requests_in_the_call": ["train-mode"],
        "test_writes": ["state-mutated"],
    }
    (named,) = (test["violations"] for test in tests if test["nodeid"].endswith("test_forgotten"))
    assert named[0]["model"] == "own"


def test_models_on_a_base_class_are_shared(pytester: pytest.Pytester) -> None:
    assert broken_rules(
        pytester,
        """
import unittest

class Base(unittest.TestCase):
    net = Net().eval()

@pytest.mark.inference
class TestIt(Base):
    def test_writes(self):
        self.net.fc.bias.data.add_(1)
""",
    ) == {"writes": ["state-mutated"]}


FORGETFUL = """
@pytest.fixture(scope="module")
@some_decorator
def net():
    return Net()

@pytest.fixture
def parts(net):
    return {"net": net}

@pytest.mark.inference
@pytest.mark.parametrize("n", range(3))
def test_whole(net, n):
    infer(net)

@pytest.mark.inference
def test_inside(parts):
    infer(parts["net"])

@pytest.mark.inference
@pytest.mark.parametrize("given", [Net()])
def test_parameter(given):
    infer(given)
"""


def test_the_fixture_that_forgot_eval_is_named_in_each_message(pytester: pytest.Pytester) -> None:
    decorator = "def some_decorator(function):\n    return function\n"
    suites.write(pytester, decorator + FORGETFUL)
    tests = suites.json_report(pytester)["tests"]
    lines = (pytester.path / "test_it.py").read_text(encoding="utf-8").splitlines()
    where = f"test_it.py:{lines.index('def net():') + 1}"
    violations = {test["nodeid"].partition("::")[2].partition("[")[0]: test["violations"][0] for test in tests}
    for test in ("test_whole", "test_inside"):
        details = violations[test]["details"]
        assert (details["fixture"], details["fixture_at"]) == ("net", where)
    assert "fixture" not in violations["test_parameter"]["details"]
    assert suites.run(pytester).stdout.str().count(f"from fixture net: {where}  def net():") == 4
