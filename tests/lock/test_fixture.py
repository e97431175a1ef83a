"""`evalmode_lock` as a user meets it: locks, fails with the diagnosis, and loses and overwrites nothing."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

import pytest

from tests import suites

# An inner run forgets what it imports: torch and numpy cannot be imported twice.
for _name in ("numpy", "safetensors.numpy", "torch.distributed.tensor", "pytest_evalmode.lock.running_lock"):
    import_module(_name)

UPDATE = "--evalmode-update-lock"

# What the environment asks for is changed; the lock is written without it.
LOCKS = """
import os

CHANGED = os.environ.get("CHANGED", "")

@pytest.fixture
def net():
    torch.manual_seed(0)
    net = Net().eval()
    if CHANGED == "model":
        net.fc.weight.data.add_(1)
    return net

@pytest.fixture
def data():
    x = torch.linspace(0, 1, 32).reshape(8, 4)
    return x / 2 if CHANGED == "inputs" else x

@pytest.mark.inference
def test_guarded(net, data, evalmode_lock):
    assert evalmode_lock.model(net) is net
    with torch.no_grad():
        y = torch.cat([net(evalmode_lock.inputs(x, "data")) for x in data.split(3)])
    assert evalmode_lock.outputs(y, "logits") is y

def test_unguarded(net, data, evalmode_lock):
    evalmode_lock.model(net, "the net")
    with torch.no_grad():
        evalmode_lock.outputs(float(net(evalmode_lock.inputs(data, "data")).mean()), "mean")
"""


@pytest.fixture
def change(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    return lambda what: monkeypatch.setenv("CHANGED", what)


def lock(pytester: pytest.Pytester, name: str = "test_it") -> dict[str, Any]:
    """What the lock file of the inner suite locks."""
    path = pytester.path / "__evalmode__" / f"{name}.lock.json"
    tests: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["tests"]
    return tests


def files(pytester: pytest.Pytester) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((pytester.path / "__evalmode__").glob("*"))}


def passing(pytester: pytest.Pytester, source: str = LOCKS, *args: str) -> None:
    """Write the inner suite, and lock it."""
    suites.write(pytester, source)
    result = suites.run(pytester, UPDATE, *args)
    assert result.ret == 0, result.stdout.str()


def violations(pytester: pytest.Pytester, *args: str) -> dict[str, list[tuple[str, str]]]:
    tests = suites.json_report(pytester, *args)["tests"]
    return {t["nodeid"].rpartition("::")[2]: [(v["rule"], v["message"]) for v in t["violations"]] for t in tests}


def test_the_fixture_tells_what_it_is(pytester: pytest.Pytester) -> None:
    suites.run(pytester, "--fixtures").stdout.fnmatch_lines(["evalmode_lock -- *", "*What was validated*"])


def test_without_an_entry_a_test_fails_and_says_what_to_run(pytester: pytest.Pytester) -> None:
    suites.write(pytester, LOCKS)
    result = suites.run(pytester)
    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines(["*model-changed: model 'net' is not locked yet: run pytest --evalmode-update-lock*"])
    assert "intended?" not in result.stdout.str()  # an exemption would keep it from ever being locked
    assert not (pytester.path / "__evalmode__").exists()


@pytest.mark.parametrize("args", [[], ["-n2"]], ids=["alone", "xdist"])
def test_what_was_locked_holds(pytester: pytest.Pytester, args: list[str]) -> None:
    passing(pytester, LOCKS, *args)
    assert lock(pytester).keys() == {"test_guarded", "test_unguarded"}
    before = files(pytester)
    assert len(before) == 3
    result = suites.run(pytester, "-p", "no:cacheprovider")
    result.assert_outcomes(passed=2)
    assert "evalmode lock" not in result.stdout.str()
    assert files(pytester) == before


def test_locking_again_changes_no_byte(pytester: pytest.Pytester) -> None:
    passing(pytester)
    before = files(pytester)
    suites.run(pytester, UPDATE).assert_outcomes(passed=2)
    assert files(pytester) == before


DIFFERENCES = {
    "model": (
        {"model-changed": "1 of 2 tensors changed: fc.weight, by up to 1", "outputs-changed": "values differ"},
        {"model-changed": "1 of 2 tensors changed: fc.weight, by up to 1", "outputs-changed": " -> "},
    ),
    "inputs": (
        {"inputs-changed": "multiplied by 0.5", "outputs-changed": "values differ"},
        {"inputs-changed": "multiplied by 0.5", "outputs-changed": " -> "},
    ),
}


@pytest.mark.parametrize("args", [[], ["-n2"]], ids=["alone", "xdist"])
@pytest.mark.parametrize("what", DIFFERENCES)
def test_what_differs_fails_with_the_diagnosis(
    pytester: pytest.Pytester, change: Callable[[str], None], what: str, args: list[str]
) -> None:
    passing(pytester)
    before = files(pytester)
    change(what)
    found = violations(pytester, *args)
    for test, expected in zip(("test_guarded", "test_unguarded"), DIFFERENCES[what], strict=True):
        assert [rule for rule, _ in found[test]] == list(expected)
        for rule, message in found[test]:
            assert expected[rule] in message
    assert files(pytester) == before


def test_the_failure_points_at_the_line_and_says_what_still_holds(
    pytester: pytest.Pytester, change: Callable[[str], None]
) -> None:
    passing(pytester)
    change("model")
    result = suites.run(pytester, "-k", "unguarded")
    result.stdout.fnmatch_lines(
        [
            "*model-changed: the net (Net): 1 of 2 tensors changed: fc.weight, by up to 1 (+1 more)",
            '*test_it.py:*evalmode_lock.model(net, "the net")',
            "*run pytest --evalmode-update-lock and review the diff",
            "*outputs-changed*mean: * -> *; the model changed too, the inputs hold",
            "0 tests guarded, *2 violations in 1 test*",
        ]
    )
    assert not suites.plugin_lines(result)


def test_an_exemption_excuses_it(pytester: pytest.Pytester, change: Callable[[str], None]) -> None:
    source = LOCKS.replace(
        "@pytest.mark.inference", '@pytest.mark.inference(allow=["model-changed", "outputs-changed"])'
    )
    passing(pytester, source)
    change("model")
    suites.run(pytester, "-k", "test_guarded").assert_outcomes(passed=1)
    suites.run(pytester, "-o", "evalmode_allow=model-changed outputs-changed").assert_outcomes(passed=2)
    change("inputs")
    suites.run(pytester, "-k", "test_guarded").assert_outcomes(failed=1)


@pytest.mark.parametrize(("mode", "outcome"), [("warn", {"passed": 2, "warnings": 2}), ("off", {"passed": 2})])
def test_a_mode_that_does_not_enforce_does_not_fail(
    pytester: pytest.Pytester, change: Callable[[str], None], mode: str, outcome: dict[str, int]
) -> None:
    passing(pytester)
    change("model")
    suites.run(pytester, f"--evalmode={mode}").assert_outcomes(**outcome)


def test_one_tests_update_leaves_the_others(pytester: pytest.Pytester, change: Callable[[str], None]) -> None:
    passing(pytester)
    before = lock(pytester)
    change("model")
    suites.run(pytester, UPDATE, "-k", "test_unguarded").assert_outcomes(passed=1)
    after = lock(pytester)
    assert after["test_guarded"] == before["test_guarded"]
    assert after["test_unguarded"] != before["test_unguarded"]
    found = violations(pytester)
    assert [rule for rule, _ in found["test_guarded"]] == ["model-changed", "outputs-changed"]
    assert "test_unguarded" not in found


FAILING = """
def test_fails(evalmode_lock):
    evalmode_lock.outputs(1.0, "a")
    assert False

def test_skips(evalmode_lock):
    evalmode_lock.outputs(1.0, "a")
    pytest.skip()

@pytest.mark.inference
def test_trains(evalmode_lock):
    evalmode_lock.model(Net())
    infer(Net())
"""


def test_what_did_not_pass_validates_nothing(pytester: pytest.Pytester) -> None:
    suites.write(pytester, FAILING)
    result = suites.run(pytester, UPDATE)
    result.assert_outcomes(failed=2, skipped=1)
    result.stdout.fnmatch_lines(["not locked, for they did not pass: *test_fails*, *test_skips*, *test_trains*"])
    assert not (pytester.path / "__evalmode__").exists()


RERUN = """
RUNS = []

def test_it(evalmode_lock):
    RUNS.append(1)
    evalmode_lock.outputs(float(len(RUNS)), "runs")
    assert len(RUNS) > 1
"""


def test_of_a_rerun_test_the_last_run_counts(pytester: pytest.Pytester) -> None:
    passing(pytester, RERUN, "--reruns=2")
    assert lock(pytester)["test_it"]["outputs"]["runs"]["arrays"]["batch"]["value"] == 2.0


PARAMETRIZED = """
@pytest.mark.parametrize("n", range(6))
def test_it(n, evalmode_lock):
    evalmode_lock.outputs(torch.full((3,), float(n)), "n")

class TestIt:
    def test_it(self, evalmode_lock):
        evalmode_lock.outputs(torch.ones(3), "n")
"""


@pytest.mark.parametrize("args", [[], ["-n3"]], ids=["alone", "xdist"])
def test_each_test_has_a_lock_of_its_own(pytester: pytest.Pytester, args: list[str]) -> None:
    passing(pytester, PARAMETRIZED, *args)
    assert lock(pytester).keys() == {*(f"test_it[{n}]" for n in range(6)), "TestIt::test_it"}
    assert len(files(pytester)) == 8
    suites.run(pytester, *args).assert_outcomes(passed=7)


@pytest.mark.parametrize("args", [[], ["-n2"]], ids=["alone", "xdist"])
def test_unused_entries_are_told_and_removed_by_a_whole_update(pytester: pytest.Pytester, args: list[str]) -> None:
    passing(pytester)
    less = LOCKS.replace('evalmode_lock.outputs(y, "logits") is y', "y is y").replace("def test_un", "def test_en")
    suites.write(pytester, less)
    run = suites.run(pytester, *args)
    run.stdout.fnmatch_lines(
        [
            "unused: test_it.py::test_guarded outputs 'logits'; test_it.py::test_unguarded *",
            "to remove them, run the whole*",
        ]
    )
    suites.run(pytester, UPDATE, "-k", "test_guarded", *args)
    assert lock(pytester).keys() == {"test_guarded", "test_unguarded"}
    assert "outputs" in lock(pytester)["test_guarded"]
    suites.run(pytester, UPDATE, *args).stdout.fnmatch_lines(["removed: test_it.py::test_guarded outputs 'logits'; *"])
    assert lock(pytester).keys() == {"test_guarded", "test_enguarded"}
    assert "outputs" not in lock(pytester)["test_guarded"]


@pytest.mark.parametrize("args", [[], ["-n2"]], ids=["alone", "xdist"])
def test_tests_that_did_not_run_keep_theirs(pytester: pytest.Pytester, args: list[str]) -> None:
    """Skipped, deselected by the suite's own hand, or in a file that could not be read."""
    passing(pytester)
    suites.write(pytester, test_more=f"from nets import *\n{LOCKS}")
    suites.run(pytester, UPDATE).assert_outcomes(passed=4)
    skipping = LOCKS.replace("@pytest.mark.inference", "@pytest.mark.skip")
    suites.write(pytester, skipping, test_more='import pytest\npytest.skip("not here", allow_module_level=True)')
    pytester.makeconftest(
        """
def pytest_collection_modifyitems(items):
    items[:] = [item for item in items if item.name != "test_unguarded"]
"""
    )
    result = suites.run(pytester, UPDATE, *args)
    assert "removed" not in result.stdout.str()
    assert lock(pytester).keys() == lock(pytester, "test_more").keys() == {"test_guarded", "test_unguarded"}


BROKEN = {
    "cut off": lambda text: text[:-30],
    "conflict": lambda text: text.replace(' "tests"', '<<<<<<< ours\n "tests"'),
    "newer": lambda text: text.replace('"schema": 1', '"schema": 9'),
}


@pytest.mark.parametrize("args", [[], [UPDATE], [UPDATE, "-n2"]], ids=["run", "update", "xdist"])
@pytest.mark.parametrize("how", BROKEN.values(), ids=BROKEN)
def test_a_broken_file_is_told_alone_and_left(
    pytester: pytest.Pytester, how: Callable[[str], str], args: list[str]
) -> None:
    passing(pytester)
    path = pytester.path / "__evalmode__" / "test_it.lock.json"
    path.write_text(how(path.read_text(encoding="utf-8")), encoding="utf-8")
    before = files(pytester)
    result = suites.run(pytester, *args)
    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines(["*test_it.lock.json*"])
    assert not suites.plugin_lines(result)
    assert files(pytester) == before


def test_samples_that_are_gone_are_told(pytester: pytest.Pytester, change: Callable[[str], None]) -> None:
    passing(pytester)
    for path in (pytester.path / "__evalmode__").glob("*.safetensors"):
        path.unlink()
    suites.run(pytester).assert_outcomes(passed=2)  # what holds needs none
    change("inputs")
    suites.run(pytester, "-k", "test_guarded").stdout.fnmatch_lines(
        ["*safetensors, the samples of test_guarded, is missing*"]
    )


WRONG = {
    "model(3)": "evalmode_lock.model(): 3 is a int; it takes a module",
    'inputs(object(), "x")': "*of type object*tensors, arrays, images*",
    'inputs(torch.ones(2), "")': "evalmode_lock.inputs(): name='' is no name*",
    "inputs(torch.ones(2), 3)": "evalmode_lock.inputs(): name=3 is no name*",
    'inputs(torch.ones(2), "x", atol=0.1)': "evalmode_lock.inputs(): rtol=None, atol=0.1: give both, or neither",
    'outputs(1.0, "x", again=3)': "evalmode_lock.outputs(): again=3 cannot be called; it takes a function of inputs",
    'outputs(1.0, "x", rtol=0.1)': "evalmode_lock.outputs(): rtol=0.1, atol=None: give both, or neither",
}


@pytest.mark.parametrize(("call", "words"), WRONG.items(), ids=WRONG)
def test_a_wrong_argument_is_one_clear_error(pytester: pytest.Pytester, call: str, words: str) -> None:
    suites.write(pytester, f"def test_it(evalmode_lock):\n    evalmode_lock.{call}\n")
    result = suites.run(pytester)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines([words])
    assert not suites.plugin_lines(result)


def test_two_things_under_one_name_are_told(pytester: pytest.Pytester) -> None:
    suites.write(
        pytester, "def test_it(evalmode_lock):\n    evalmode_lock.model(Net())\n    evalmode_lock.model(Net())\n"
    )
    suites.run(pytester, UPDATE).stdout.fnmatch_lines(["*locks two different things as model 'Net'*"])


def test_a_tolerance_is_kept_to(pytester: pytest.Pytester, change: Callable[[str], None]) -> None:
    source = """
import os
def test_it(evalmode_lock):
    evalmode_lock.outputs(0.93 + float(os.environ.get("CHANGED", "0")), "accuracy", rtol=0.0, atol=0.01)
"""
    passing(pytester, source)
    change("0.005")
    suites.run(pytester).assert_outcomes(passed=1)
    change("-0.05")
    assert violations(pytester)["test_it"] == [("outputs-changed", "accuracy: 0.93 -> 0.88")]


def test_a_test_that_fails_by_itself_gets_it_as_a_note(
    pytester: pytest.Pytester, change: Callable[[str], None]
) -> None:
    source = LOCKS.replace('evalmode_lock.outputs(y, "logits") is y', 'not CHANGED, "too low"')
    passing(pytester, source)
    change("model")
    result = suites.run(pytester, "-k", "test_guarded")
    result.stdout.fnmatch_lines(["*AssertionError: too low", "*model-changed: net (Net): 1 of 2 tensors changed*"])


def test_a_test_that_ends_early_did_not_drop_samples(pytester: pytest.Pytester, change: Callable[[str], None]) -> None:
    source = LOCKS.replace("for x in data.split(3)])", "for x in data.split(3) if not (CHANGED and 1 / 0)])")
    passing(pytester, source)
    change("other")
    result = suites.run(pytester, "-k", "test_guarded")
    result.assert_outcomes(failed=1)
    assert "changed" not in result.stdout.str().replace("CHANGED", "")


def test_samples_do_not_reach_the_reports_of_others(pytester: pytest.Pytester) -> None:
    passing(pytester, LOCKS, "--junitxml=junit.xml")
    assert "evalmode-lock" not in (pytester.path / "junit.xml").read_text()


@pytest.mark.parametrize("missing", ["safetensors", "pytest_evalmode.lock.running_lock"])
@pytest.mark.parametrize("args", [[], [UPDATE]], ids=["compared", "locked"])
def test_without_what_the_extra_brings_it_says_what_to_install(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, missing: str, args: list[str]
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    suites.write(pytester, LOCKS)
    result = suites.run(pytester, *args)
    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines(["evalmode_lock needs numpy and safetensors (*pip install 'pytest-evalmode[[]lock]'"])


def test_a_unittest_can_lock(pytester: pytest.Pytester) -> None:
    source = """
import os, unittest
class TestIt(unittest.TestCase):
    @pytest.fixture(autouse=True)
    def _lock(self, evalmode_lock):
        self.lock = evalmode_lock
    def test_it(self):
        self.lock.outputs(float(os.environ.get("CHANGED", "0")), "x")
"""
    passing(pytester, source)
    suites.run(pytester).assert_outcomes(passed=1)


def test_a_model_locked_in_a_fixture_fails_the_call(pytester: pytest.Pytester, change: Callable[[str], None]) -> None:
    source = LOCKS.replace("    return net\n", "    return evalmode_lock.model(net, 'mine')\n", 1).replace(
        "def net():", "def net(evalmode_lock):"
    )
    passing(pytester, source)
    suites.run(pytester).assert_outcomes(passed=2)
    change("model")
    suites.run(pytester).assert_outcomes(failed=2)


PREPROCESSING = """
import os

class Normalize(nn.Module):
    def __init__(self, mean):
        super().__init__()
        self.mean = mean
    def forward(self, x):
        return x - self.mean

def test_it(evalmode_lock):
    mean = (0.5, 0.5, 0.5) if os.environ.get("CHANGED") else (0.485, 0.456, 0.406)
    evalmode_lock.preprocessing(nn.Sequential(Normalize(mean)), "eval")
"""


def test_a_difference_in_the_preprocessing_names_the_field(
    pytester: pytest.Pytester, change: Callable[[str], None]
) -> None:
    passing(pytester, PREPROCESSING)
    suites.run(pytester).assert_outcomes(passed=1)
    change("mean")
    ((rule, message),) = violations(pytester)["test_it"]
    assert rule == "preprocessing-changed"
    assert "Normalize.mean: (0.485, 0.456, 0.406) -> (0.5, 0.5, 0.5)" in message


AGAIN = (
    LOCKS.split("@pytest.mark.inference")[0]
    + """
def mean(net):
    def again(batch):
        assert not torch.is_grad_enabled() or not TRIED
        TRIED.append(len(batch["x"]))
        return {"mean": net(batch["x"]).mean().item(), "all": net(batch["x"])}
    return again

TRIED = []

@pytest.mark.inference
def test_it(net, data, evalmode_lock):
    again = mean(net)
    batch = evalmode_lock.inputs({"x": data}, "data")
    with torch.no_grad():
        evalmode_lock.outputs({"mean": again(batch)["mean"]}, "mean", again=again)
    if CHANGED == "train":
        net.train()
        net(data * 2)
"""
)


def test_a_metric_is_made_again_of_the_inputs_that_were_locked(
    pytester: pytest.Pytester, change: Callable[[str], None]
) -> None:
    passing(pytester, AGAIN)
    suites.run(pytester).assert_outcomes(passed=1)
    change("inputs")
    result = suites.run(pytester)
    ((test,),) = [suites.json_report(pytester)["tests"]]
    ((message,),) = [[v["message"] for v in test["violations"] if v["rule"] == "outputs-changed"]]
    was, now = (float(number) for number in message.removeprefix("mean: ").split(" -> "))
    both = f"mean: {was:.6g} with the inputs that were locked, {now:.6g} with this run's: they explain all of it"
    result.stdout.fnmatch_lines([f"*made again of the first 8 samples: {both}*"])
    assert test["forwards"] == 2
    change("model")
    suites.run(pytester).stdout.no_fnmatch_line("*made again*")


def test_what_was_not_clean_is_not_made_again(pytester: pytest.Pytester, change: Callable[[str], None]) -> None:
    passing(pytester, AGAIN)
    change("train")
    suites.run(pytester).assert_outcomes(failed=1)
    source = AGAIN.replace("again(batch)[", "again({'x': batch['x'] + (CHANGED == 'train')})[")
    suites.write(pytester, source)
    result = suites.run(pytester)
    result.stdout.fnmatch_lines(["*train-mode*"])
    result.stdout.no_fnmatch_line("*made again*")


def test_a_function_that_fails_on_fewer_samples_is_told(
    pytester: pytest.Pytester, change: Callable[[str], None]
) -> None:
    passing(pytester, AGAIN)
    suites.write(pytester, AGAIN.replace("TRIED.append(", "assert not TRIED, 'again'\n        TRIED.append("))
    change("inputs")
    suites.run(pytester).stdout.fnmatch_lines(["*again= failed on the first 8 samples: AssertionError: again*"])
