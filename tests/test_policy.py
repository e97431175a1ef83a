"""The marker and its arguments: where it may stand, what they excuse and nothing more, and what a wrong one says."""

from __future__ import annotations

import pytest

from pytest_evalmode import PolicyError, guard
from pytest_evalmode.policy import Policy, read_policy
from pytest_evalmode.rules import RULE_NAMES
from tests import suites

# Each place has one marked test, which is told, and one unmarked, which is not.
PLACES = {
    "function": """
@pytest.mark.inference
def test_marked():
    infer(Net())

def test_unmarked():
    infer(Net())
""",
    "function, with parentheses": """
@pytest.mark.inference()
def test_marked():
    infer(Net())

def test_unmarked():
    infer(Net())
""",
    "method": """
class TestIt:
    @pytest.mark.inference
    def test_marked(self):
        infer(Net())

    def test_unmarked(self):
        infer(Net())
""",
    "class": """
@pytest.mark.inference
class TestIt:
    def test_marked(self):
        infer(Net())

class TestOther:
    def test_unmarked(self):
        infer(Net())
""",
    "base class": """
@pytest.mark.inference
class Base:
    pass

class TestIt(Base):
    def test_marked(self):
        infer(Net())

class TestOther:
    def test_unmarked(self):
        infer(Net())
""",
    "unittest class": """
import unittest

@pytest.mark.inference
class TestIt(unittest.TestCase):
    def test_marked(self):
        infer(Net())

class TestOther(unittest.TestCase):
    def test_unmarked(self):
        infer(Net())
""",
    "method of a unittest class": """
import unittest

class TestIt(unittest.TestCase):
    @pytest.mark.inference
    def test_marked(self):
        infer(Net())

    def test_unmarked(self):
        infer(Net())
""",
    "param": """
@pytest.mark.parametrize("n", [pytest.param(1, marks=pytest.mark.inference, id="marked"), pytest.param(2, id="un")])
def test_(n):
    infer(Net())
""",
}


@pytest.mark.parametrize("place", PLACES)
def test_a_mark_guards_where_it_stands(pytester: pytest.Pytester, place: str) -> None:
    suites.write(pytester, PLACES[place])
    found = suites.outcomes(pytester)
    assert sorted(found.values()) == ["failed", "passed"]
    assert all(("marked" in nodeid and "unmarked" not in nodeid) == (found[nodeid] == "failed") for nodeid in found)


def test_a_mark_guards_a_whole_module_and_no_other(pytester: pytest.Pytester) -> None:
    body = "def test_it():\n    infer(Net())\n"
    marked = f"from nets import *\npytestmark = pytest.mark.inference\n{body}"
    suites.write(pytester, test_marked=marked, test_unmarked=f"from nets import *\n{body}")
    assert suites.outcomes(pytester) == {"test_marked.py::test_it": "failed", "test_unmarked.py::test_it": "passed"}


def test_the_marker_is_registered(pytester: pytest.Pytester) -> None:
    suites.write(pytester, PLACES["function"])
    suites.run(pytester, "--strict-markers").assert_outcomes(failed=1, passed=1)
    suites.run(pytester, "--markers").stdout.fnmatch_lines(
        ["@pytest.mark.inference(*allow=()*train=()*mutable=()*reason=None)*"]
    )


def test_outer_and_inner_marks_add_up(pytester: pytest.Pytester) -> None:
    suites.write(
        pytester,
        """
pytestmark = pytest.mark.inference(allow="train-mode", reason="module")

@pytest.mark.inference(mutable="fc.bias", reason="class")
class TestIt:
    @pytest.mark.inference(allow=["grad-mode"])
    @pytest.mark.inference(mutable=["fc.weight"], reason="function")
    @pytest.mark.parametrize("p", [pytest.param(0, marks=pytest.mark.inference(reason="param"))])
    def test_all(self, p):
        use(Net())

    @pytest.mark.inference(allow=["grad-mode"])
    def test_without_weight(self):
        use(Net())

    @pytest.mark.inference(mutable=["fc.weight"])
    def test_without_grad(self):
        use(Net())

@pytest.mark.inference(allow="grad-mode", mutable="fc.weight")
def test_without_bias():
    use(Net())

def use(net):
    net(torch.ones(2, 4))
    with torch.no_grad():
        net.fc.weight.add_(1)
        net.fc.bias.add_(1)
""",
    )
    tests = {test["nodeid"].rpartition("::")[2]: test for test in suites.json_report(pytester)["tests"]}
    found = {name: [(v["rule"], v["subjects"]) for v in test["violations"]] for name, test in tests.items()}
    assert found == {
        "test_all[0]": [],
        "test_without_weight": [("state-mutated", ["Net.fc.weight"])],
        "test_without_grad": [("grad-mode", ["Net (Net)"])],
        "test_without_bias": [("state-mutated", ["Net.fc.bias"])],
    }
    reason = tests["test_all[0]"]["reason"]
    assert [word for word in ("module", "class", "function", "param") if word not in reason] == []


# `test_it` trains `fc` and `drop`, records autograd and changes `fc.bias`: arguments, and what they leave of that.
@pytest.mark.parametrize(
    ("arguments", "left"),
    [
        ("", {"train-mode", "grad-mode", "state-mutated"}),
        ("allow='train-mode'", {"grad-mode", "state-mutated"}),
        ("allow=['train-mode', 'grad-mode']", {"state-mutated"}),
        ("allow=('state-mutated',)", {"train-mode", "grad-mode"}),
        ("allow={'train-mode', 'grad-mode', 'state-mutated'}", set()),
        ("allow='random-forward'", {"train-mode", "grad-mode", "state-mutated"}),
        ("allow=[]", {"train-mode", "grad-mode", "state-mutated"}),
        ("train='*'", {"grad-mode", "state-mutated"}),
        ("train=('fc', 'dr?p')", {"grad-mode", "state-mutated"}),
        ("train=['net.fc', 'net.drop']", {"grad-mode", "state-mutated"}),
        ("train='drop'", {"train-mode", "grad-mode", "state-mutated"}),
        ("train='fc.*'", {"train-mode", "grad-mode", "state-mutated"}),
        ("mutable='fc.bias'", {"train-mode", "grad-mode"}),
        ("mutable=['net.fc.*']", {"train-mode", "grad-mode"}),
        ("mutable='bias'", {"train-mode", "grad-mode", "state-mutated"}),
        ("mutable='fc'", {"train-mode", "grad-mode", "state-mutated"}),
        ("reason='because'", {"train-mode", "grad-mode", "state-mutated"}),
    ],
)
def test_what_arguments_excuse(pytester: pytest.Pytester, arguments: str, left: set[str]) -> None:
    suites.write(
        pytester,
        f"""
@pytest.fixture
def net():
    return Net()

@pytest.mark.inference({arguments})
def test_it(net):
    net(torch.ones(2, 4))
    with torch.no_grad():
        net.fc.bias.add_(1)
""",
    )
    (test,) = suites.json_report(pytester)["tests"]
    assert {violation["rule"] for violation in test["violations"]} == left
    assert test["outcome"] == ("failed" if left else "passed")


# A wrong mark, and what its error says: the argument, the nearest, the valid values.
WRONG = {
    "alow='train-mode'": ["'alow'", "did you mean 'allow'?", "valid: allow, train, mutable, reason"],
    "strict=True": ["'strict'", "valid: allow, train, mutable, reason"],
    "allow='train-mod'": ["allow='train-mod'", "did you mean 'train-mode'?", "valid: train-mode, grad-mode"],
    "allow=['grad-mode', 'batchstats']": ["allow='batchstats'", "did you mean 'batch-stats'?", "valid: train-mode"],
    "allow='zzzz'": ["allow='zzzz'", "valid: train-mode, grad-mode"],
    "allow=None": ["allow=None", "a string or a sequence of strings"],
    "train=3": ["train=3", "a string or a sequence of strings"],
    "train=[4]": ["train=[4]", "a string or a sequence of strings"],
    "mutable=['']": ["mutable=['']", "a string or a sequence of strings"],
    "mutable={'a': 1}": ["mutable={'a': 1}", "a string or a sequence of strings"],
    "reason=5": ["reason=5", "a string"],
    "'train-mode'": ["'train-mode' was given without a name", "allow=", "train=", "mutable=", "reason="],
}


@pytest.fixture
def wrong(pytester: pytest.Pytester) -> pytest.Pytester:
    """A test for each wrong mark, and one that is right."""
    tests = (
        f"@pytest.mark.inference({mark})\ndef test_wrong_{n}():\n    infer(Net().eval())\n"
        for n, mark in enumerate(WRONG)
    )
    right = "@pytest.mark.inference(reason='right')\ndef test_right():\n    infer(Net().eval())\n"
    suites.write(pytester, "\n\n".join([*tests, right]))
    return pytester


@pytest.mark.parametrize("workers", [(), ("-n2",)], ids=["alone", "xdist"])
def test_a_wrong_argument_is_one_clear_error_of_its_test(wrong: pytest.Pytester, workers: tuple[str, ...]) -> None:
    result = suites.run(wrong, *workers)
    result.assert_outcomes(errors=len(WRONG), passed=1)
    said = result.stdout.str().partition("= ERRORS =")[2].partition("short test summary")[0]
    for n, words in enumerate(WRONG.values()):
        message = said.partition(f"test_wrong_{n} _")[2].partition("\n____")[0]
        assert [word for word in ["@pytest.mark.inference", *words] if word not in message] == []
    assert suites.plugin_lines(result) == []
    assert "During handling" not in said


def test_a_suggestion_is_made_only_of_what_is_near(wrong: pytest.Pytester) -> None:
    said = suites.run(wrong).stdout.str()
    assert "allow='zzzz' is no rule; valid:" in said


def test_a_wrong_argument_anywhere_is_an_error_of_each_test_below(pytester: pytest.Pytester) -> None:
    suites.write(
        pytester,
        """
@pytest.mark.inference(alow="train-mode")
class TestIt:
    def test_a(self):
        pass

    @pytest.mark.inference(allow="train-mode")
    def test_b(self):
        pass

def test_c():
    pass
""",
    )
    suites.run(pytester).assert_outcomes(errors=2, passed=1)


def test_a_test_with_a_wrong_mark_does_not_run(pytester: pytest.Pytester) -> None:
    suites.write(pytester, "@pytest.mark.inference(alow='')\ndef test_it():\n    open('ran', 'w').close()\n")
    suites.run(pytester)
    assert not (pytester.path / "ran").exists()


def test_policies_add_up_without_repeating() -> None:
    outer = Policy(frozenset({"train-mode"}), ("bn*",), ("bn*.mean",), ("why",))
    inner = Policy(frozenset({"grad-mode"}), ("drop", "bn*"), ("bn*.mean",), ("why", "how"))
    both = outer | inner
    assert both.allow == {"train-mode", "grad-mode"}
    assert (both.train, both.mutable, both.reasons) == (("bn*", "drop"), ("bn*.mean",), ("why", "how"))
    assert outer | Policy() == outer


def test_a_policy_takes_one_string_or_any_collection() -> None:
    plain = Policy(frozenset({"train-mode"}), ("bn",))
    assert Policy(allow=["train-mode"], train="bn") == plain  # type: ignore[arg-type]
    assert Policy() | Policy(allow={"train-mode"}, train=["bn"]) == plain  # type: ignore[arg-type]
    with pytest.raises(PolicyError, match=r"^Policy\(\): train=\(1,\) is no name; it takes a string or a sequence"):
        Policy(train=(1,))  # type: ignore[arg-type]


def test_an_error_names_the_place_that_it_was_given() -> None:
    with pytest.raises(PolicyError, match=r"^here: allow='train' is no rule; did you mean 'train-mode'\? valid: "):
        read_policy("here", {"allow": "train"}, RULE_NAMES)


def test_guard_reads_its_arguments_as_the_marker_does() -> None:
    said = r"guard\(\): allow='train-mod' is no rule; did you mean 'train-mode'\?"
    with pytest.raises(PolicyError, match=said), guard(allow="train-mod"):
        pass
    with guard(allow=["train-mode"], train="*", mutable=("a", "b")):
        pass
