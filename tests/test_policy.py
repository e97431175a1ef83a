"""The marker: the tests that it applies to, the violations that its arguments exempt, and errors for invalid ones."""

from __future__ import annotations

import pytest

from pytest_evalmode import PolicyError, guard
from pytest_evalmode.policy import Policy, read_policy
from pytest_evalmode.rules import RULE_NAMES
from tests import suites

# Each place has a marked test, which fails, and an unmarked one, which passes.
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
def test_a_mark_guards_the_tests_it_applies_to(pytester: pytest.Pytester, place: str) -> None:
    suites.write(pytester, PLACES[place])
    found = suites.outcomes(pytester)
    assert sorted(found.values()) == ["failed", "passed"]
    assert all(("marked" in nodeid and "unmarked" not in nodeid) == (found[nodeid] == "failed") for nodeid in found)


def test_pytestmark_guards_its_own_module_only(pytester: pytest.Pytester) -> None:
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


# `test_it` has `fc` and `drop` in training mode, records autograd and changes `fc.bias`; the rules that still fire.
@pytest.mark.parametrize(
    ("arguments", "remaining"),
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
def test_arguments_exempt_matching_violations_only(
    pytester: pytest.Pytester, arguments: str, remaining: set[str]
) -> None:
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
    assert {violation["rule"] for violation in test["violations"]} == remaining
    assert test["outcome"] == ("failed" if remaining else "passed")


# Invalid arguments, and parts of their error message: the argument, a similar name, the valid names.
INVALID = {
    "alow='train-mode'": ["'alow'", "did you mean 'allow'?", "choose from allow, train, mutable, reason"],
    "strict=True": ["'strict'", "choose from allow, train, mutable, reason"],
    "allow='train-mod'": ["allow='train-mod'", "did you mean 'train-mode'?", "choose from train-mode, grad-mode"],
    "allow=['grad-mode', 'batchstats']": [
        "allow='batchstats'",
        "did you mean 'batch-stats'?",
        "choose from train-mode",
    ],
    "allow='zzzz'": ["allow='zzzz'", "choose from train-mode, grad-mode"],
    "allow=None": ["allow must", "not None", "must be a non-empty string or a sequence of them"],
    "train=3": ["train must", "not 3", "must be a non-empty string or a sequence of them"],
    "train=[4]": ["train must", "not [4]", "must be a non-empty string or a sequence of them"],
    "mutable=['']": ["mutable must", "not ['']", "must be a non-empty string or a sequence of them"],
    "mutable={'a': 1}": ["mutable must", "not {'a': 1}", "must be a non-empty string or a sequence of them"],
    "reason=5": ["reason must be a string, not 5"],
    "'train-mode'": ["takes keyword arguments only (allow=, train=, mutable=, reason=), got 'train-mode'"],
}


@pytest.fixture
def invalid_marks(pytester: pytest.Pytester) -> pytest.Pytester:
    """Write a suite with a test for each invalid mark, and one with a valid mark."""
    tests = (
        f"@pytest.mark.inference({mark})\ndef test_invalid_{n}():\n    infer(Net().eval())\n"
        for n, mark in enumerate(INVALID)
    )
    valid = "@pytest.mark.inference(reason='right')\ndef test_valid():\n    infer(Net().eval())\n"
    suites.write(pytester, "\n\n".join([*tests, valid]))
    return pytester


@suites.WORKERS
def test_an_invalid_argument_is_one_clear_error_of_its_test(
    invalid_marks: pytest.Pytester, workers: tuple[str, ...]
) -> None:
    result = suites.run(invalid_marks, *workers)
    result.assert_outcomes(errors=len(INVALID), passed=1)
    output = result.stdout.str().partition("= ERRORS =")[2].partition("short test summary")[0]
    for n, words in enumerate(INVALID.values()):
        message = output.partition(f"test_invalid_{n} _")[2].partition("\n____")[0]
        assert [word for word in ["@pytest.mark.inference", *words] if word not in message] == []
    assert suites.plugin_lines(result) == []
    assert "During handling" not in output


def test_only_similar_names_are_suggested(invalid_marks: pytest.Pytester) -> None:
    output = suites.run(invalid_marks).stdout.str()
    assert "unknown rule in allow='zzzz' (choose from" in output


def test_an_invalid_argument_of_a_class_mark_is_an_error_of_each_of_its_tests(pytester: pytest.Pytester) -> None:
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


def test_a_test_with_an_invalid_mark_does_not_run(pytester: pytest.Pytester) -> None:
    suites.write(pytester, "@pytest.mark.inference(alow='')\ndef test_it():\n    open('ran', 'w').close()\n")
    suites.run(pytester)
    assert not (pytester.path / "ran").exists()


def test_combined_policies_have_no_duplicates() -> None:
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
    with pytest.raises(
        PolicyError, match=r"^Policy\(\): train must be a non-empty string or a sequence of them, not \(1,\)"
    ):
        Policy(train=(1,))  # type: ignore[arg-type]


def test_an_error_names_the_given_place() -> None:
    with pytest.raises(
        PolicyError, match=r"^here: unknown rule in allow='train' \(did you mean 'train-mode'\? choose from "
    ):
        read_policy("here", {"allow": "train"}, RULE_NAMES)


def test_guard_validates_its_arguments_like_the_marker() -> None:
    message = r"guard\(\): unknown rule in allow='train-mod' \(did you mean 'train-mode'\?"
    with pytest.raises(PolicyError, match=message), guard(allow="train-mod"):
        pass
    with guard(allow=["train-mode"], train="*", mutable=("a", "b")):
        pass
