"""The fixture `evalmode_lock` in real test runs: comparing, updating, and never losing an entry."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pytest_evalmode.lock.lock_folder import write_lock
from tests import suites

UPDATE = "--evalmode-update-lock"
KINDS_OF_FILES = ("lock.json", "safetensors")

# CHANGED names the part that differs; the lock is updated without it.
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
    return lambda part: monkeypatch.setenv("CHANGED", part)


def lock(pytester: pytest.Pytester, name: str = "test_it") -> dict[str, Any]:
    """Return the contents of the lock files of one file of the inner suite, by test."""
    paths = (pytester.path / "__evalmode__" / name).glob("*.lock.json")
    contents = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    return {content["test"]: content for content in contents}


def files(pytester: pytest.Pytester) -> dict[str, bytes]:
    root = pytester.path / "__evalmode__"
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.glob("*/*"))}


def update(pytester: pytest.Pytester, source: str = LOCKS, *args: str) -> None:
    """Write the inner suite and update its lock."""
    suites.write(pytester, source)
    result = suites.run(pytester, UPDATE, *args)
    assert result.ret == 0, result.stdout.str()


def violations(pytester: pytest.Pytester, *args: str) -> dict[str, list[tuple[str, str]]]:
    tests = suites.json_report(pytester, *args)["tests"]
    return {t["nodeid"].rpartition("::")[2]: [(v["rule"], v["message"]) for v in t["violations"]] for t in tests}


def test_pytest_fixtures_describes_the_fixture(pytester: pytest.Pytester) -> None:
    suites.run(pytester, "--fixtures").stdout.fnmatch_lines(
        ["evalmode_lock -- *", "*Compare a model, inputs, preprocessing and outputs*"]
    )


def test_a_test_without_an_entry_fails_and_says_how_to_update(pytester: pytest.Pytester) -> None:
    suites.write(pytester, LOCKS)
    result = suites.run(pytester)
    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines(["*model-changed: model 'net' is not locked yet: run pytest --evalmode-update-lock*"])
    assert "intended?" not in result.stdout.str()  # with an exemption it would never be locked
    assert not (pytester.path / "__evalmode__").exists()


@pytest.mark.parametrize("workers", [suites.SERIALIZED, suites.XDIST])
def test_an_unchanged_run_passes(pytester: pytest.Pytester, workers: tuple[str, ...]) -> None:
    update(pytester, LOCKS, *workers)
    assert lock(pytester).keys() == {"test_guarded", "test_unguarded"}
    before = files(pytester)
    names = [f"test_it/{test}.{kind}" for test in ("test_guarded", "test_unguarded") for kind in KINDS_OF_FILES]
    assert sorted(name for name in before if not name.startswith("models/")) == names
    assert len(before) == len(names) + 2, "the model of both tests is stored once"
    result = suites.run(pytester, "-p", "no:cacheprovider")
    result.assert_outcomes(passed=2)
    assert "evalmode lock" not in result.stdout.str()
    assert files(pytester) == before


def test_a_second_update_changes_no_file(pytester: pytest.Pytester) -> None:
    update(pytester)
    before = files(pytester)
    suites.run(pytester, UPDATE).assert_outcomes(passed=2)
    assert files(pytester) == before


DIFFERENCES = {
    "model": (
        {"model-changed": "fc.weight was shifted by 1", "outputs-changed": "values differ"},
        {"model-changed": "fc.weight was shifted by 1", "outputs-changed": " -> "},
    ),
    "inputs": (
        {"inputs-changed": "multiplied by 0.5", "outputs-changed": "values differ"},
        {"inputs-changed": "multiplied by 0.5", "outputs-changed": " -> "},
    ),
}


@suites.WORKERS
@pytest.mark.parametrize("part", DIFFERENCES)
def test_a_difference_fails_with_the_diagnosis(
    pytester: pytest.Pytester, change: Callable[[str], None], part: str, workers: tuple[str, ...]
) -> None:
    update(pytester)
    before = files(pytester)
    change(part)
    found = violations(pytester, *workers)
    for test, expected in zip(("test_guarded", "test_unguarded"), DIFFERENCES[part], strict=True):
        assert [rule for rule, _ in found[test]] == list(expected)
        for rule, message in found[test]:
            assert expected[rule] in message
    assert files(pytester) == before


def test_the_failure_shows_the_line_and_the_parts_that_still_match(
    pytester: pytest.Pytester, change: Callable[[str], None]
) -> None:
    update(pytester)
    change("model")
    result = suites.run(pytester, "-k", "unguarded")
    result.stdout.fnmatch_lines(
        [
            "*model-changed: the net (Net): fc.weight was shifted by 1 (+1 more)",
            '*test_it.py:*evalmode_lock.model(net, "the net")',
            "*run pytest --evalmode-update-lock and review the diff",
            "*outputs-changed*mean: * -> *; the model changed too, the inputs still match",
            "0 tests guarded, *2 violations in 1 test*",
        ]
    )
    assert not suites.plugin_lines(result)


def test_an_exemption_allows_a_difference(pytester: pytest.Pytester, change: Callable[[str], None]) -> None:
    source = LOCKS.replace(
        "@pytest.mark.inference", '@pytest.mark.inference(allow=["model-changed", "outputs-changed"])'
    )
    update(pytester, source)
    change("model")
    suites.run(pytester, "-k", "test_guarded").assert_outcomes(passed=1)
    suites.run(pytester, "-o", "evalmode_allow=model-changed outputs-changed").assert_outcomes(passed=2)
    change("inputs")
    suites.run(pytester, "-k", "test_guarded").assert_outcomes(failed=1)


@pytest.mark.parametrize(("mode", "outcome"), [("warn", {"passed": 2, "warnings": 2}), ("off", {"passed": 2})])
def test_warn_and_off_do_not_fail(
    pytester: pytest.Pytester, change: Callable[[str], None], mode: str, outcome: dict[str, int]
) -> None:
    update(pytester)
    change("model")
    suites.run(pytester, f"--evalmode={mode}").assert_outcomes(**outcome)


def test_updating_one_test_keeps_the_others(pytester: pytest.Pytester, change: Callable[[str], None]) -> None:
    update(pytester)
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


def test_a_test_that_did_not_pass_is_not_updated(pytester: pytest.Pytester) -> None:
    suites.write(pytester, FAILING)
    result = suites.run(pytester, UPDATE)
    result.assert_outcomes(failed=2, skipped=1)
    result.stdout.fnmatch_lines(["not updated because they did not pass: *test_fails*, *test_skips*, *test_trains*"])
    assert not (pytester.path / "__evalmode__").exists()


RERUN = """
RUNS = []

def test_it(evalmode_lock):
    RUNS.append(1)
    evalmode_lock.outputs(float(len(RUNS)), "runs")
    assert len(RUNS) > 1
"""


def test_the_last_run_of_a_rerun_test_counts(pytester: pytest.Pytester) -> None:
    update(pytester, RERUN, "--reruns=2")
    assert lock(pytester)["test_it"]["outputs"]["runs"]["arrays"]["batch"]["value"] == 2.0


PARAMETRIZED = """
@pytest.mark.parametrize("n", range(6))
def test_it(n, evalmode_lock):
    evalmode_lock.outputs(torch.full((3,), float(n)), "n")

class TestIt:
    def test_it(self, evalmode_lock):
        evalmode_lock.outputs(torch.ones(3), "n")
"""


@suites.WORKERS
def test_each_test_has_its_own_lock(pytester: pytest.Pytester, workers: tuple[str, ...]) -> None:
    update(pytester, PARAMETRIZED, *workers)
    assert lock(pytester).keys() == {*(f"test_it[{n}]" for n in range(6)), "TestIt::test_it"}
    assert len(files(pytester)) == 14
    suites.run(pytester, *workers).assert_outcomes(passed=7)


@pytest.mark.parametrize("workers", [suites.SERIALIZED, suites.XDIST])
def test_unused_entries_are_reported_and_removed_by_an_update_of_the_whole_suite(
    pytester: pytest.Pytester, workers: tuple[str, ...]
) -> None:
    update(pytester)
    less = LOCKS.replace('evalmode_lock.outputs(y, "logits") is y', "y is y").replace("def test_un", "def test_en")
    suites.write(pytester, less)
    run = suites.run(pytester, *workers)
    run.stdout.fnmatch_lines(
        [
            "unused entries: test_it.py::test_guarded outputs 'logits'; test_it.py::test_unguarded *",
            "to remove them, run the whole*",
        ]
    )
    suites.run(pytester, UPDATE, "-k", "test_guarded", *workers)
    assert lock(pytester).keys() == {"test_guarded", "test_unguarded"}
    assert "outputs" in lock(pytester)["test_guarded"]
    suites.run(pytester, UPDATE, *workers).stdout.fnmatch_lines(
        ["removed unused entries: test_it.py::test_guarded outputs 'logits'; *"]
    )
    assert lock(pytester).keys() == {"test_guarded", "test_enguarded"}
    assert "outputs" not in lock(pytester)["test_guarded"]


@suites.WORKERS
def test_tests_that_did_not_run_keep_their_entries(pytester: pytest.Pytester, workers: tuple[str, ...]) -> None:
    """They are skipped, deselected by a hook, or in a module that skips itself."""
    update(pytester)
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
    result = suites.run(pytester, UPDATE, *workers)
    assert "removed" not in result.stdout.str()
    assert lock(pytester).keys() == lock(pytester, "test_more").keys() == {"test_guarded", "test_unguarded"}


BROKEN = {
    "cut off": lambda text: text[:-30],
    "conflict": lambda text: text.replace(' "test"', '<<<<<<< ours\n "test"'),
    "of another test": lambda text: text.replace('"test_guarded"', '"test_other"'),
    "newer": lambda text: text.replace('"schema": 3', '"schema": 9'),
}


@suites.WORKERS
@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_file_is_reported_without_a_traceback_and_an_update_replaces_it(
    pytester: pytest.Pytester, how: str, workers: tuple[str, ...]
) -> None:
    update(pytester)
    good = files(pytester)
    path = pytester.path / "__evalmode__" / "test_it" / "test_guarded.lock.json"
    path.write_text(BROKEN[how](path.read_text(encoding="utf-8")), encoding="utf-8")
    before = files(pytester)
    result = suites.run(pytester, *workers)
    result.assert_outcomes(failed=1, passed=1)
    result.stdout.fnmatch_lines(["*test_guarded.lock.json*"])
    assert not suites.plugin_lines(result)
    assert files(pytester) == before
    result = suites.run(pytester, UPDATE, *workers)
    assert files(pytester) == (before if how == "newer" else good)
    assert not suites.plugin_lines(result)


SAMPLES: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda path: path.unlink(), "the samples are missing: commit *test_guarded.safetensors*"),
    "cut off": (lambda path: path.write_bytes(path.read_bytes()[:-9]), "are cut off, changed or from another commit"),
    "a pointer": (
        lambda path: path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"),
        "the samples are a pointer of Git LFS: run git lfs pull",
    ),
    "a folder": (
        lambda path: path.rename(path.with_name("aside")).with_name(path.name).mkdir(),
        "is not a regular file",
    ),
}


@pytest.mark.parametrize("how", SAMPLES)
def test_samples_that_cannot_be_used_are_reported_with_the_difference(
    pytester: pytest.Pytester, change: Callable[[str], None], how: str
) -> None:
    update(pytester)
    spoil, words = SAMPLES[how]
    spoil(pytester.path / "__evalmode__" / "test_it" / "test_guarded.safetensors")
    suites.run(pytester).assert_outcomes(passed=2)  # samples are only needed for differences
    change("inputs")
    result = suites.run(pytester, "-k", "test_guarded")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines([f"*inputs-changed*values differ*{words}*"])
    assert not suites.plugin_lines(result)


@pytest.mark.parametrize("how", ["missing", "changed"])
def test_a_record_of_a_model_that_cannot_be_used_is_reported_with_the_difference(
    pytester: pytest.Pytester, change: Callable[[str], None], how: str
) -> None:
    update(pytester)
    (path,) = (pytester.path / "__evalmode__" / "models").glob("*.lock.json")
    path.unlink() if how == "missing" else path.write_text(path.read_text().replace("float32", "float16"))
    suites.run(pytester).assert_outcomes(passed=2)
    change("model")
    result = suites.run(pytester, "-k", "test_guarded")
    result.stdout.fnmatch_lines([f"*net (Net) changed; its record cannot be read*{path.name}*{how}*"])
    assert not suites.plugin_lines(result)


def test_a_renamed_test_is_recognized_by_its_values(pytester: pytest.Pytester) -> None:
    update(pytester)
    suites.write(pytester, LOCKS.replace("def test_guarded", "def test_renamed"))
    result = suites.run(pytester)
    result.assert_outcomes(failed=1, passed=1)
    result.stdout.fnmatch_lines(["*its values are those of test_guarded in test_it/test_guarded.lock.json: was the*"])
    suites.write(pytester, LOCKS + LOCKS.split("@pytest.mark.inference")[1].replace("test_guarded", "test_new"))
    assert "was the test renamed" not in suites.run(pytester).stdout.str()


def test_an_update_says_what_changed(pytester: pytest.Pytester, change: Callable[[str], None]) -> None:
    suites.write(pytester, LOCKS)
    first = suites.run(pytester, UPDATE).stdout
    first.fnmatch_lines(["test_it.py::test_guarded: new: model 'net', inputs 'data', outputs 'logits'", "updated the*"])
    assert "test_it.py::test_guarded:" not in suites.run(pytester, UPDATE).stdout.str()
    change("model")
    second = suites.run(pytester, UPDATE).stdout
    second.fnmatch_lines(["test_it.py::test_guarded: changed model 'net': *fc.weight*; changed outputs 'logits': *"])


def test_an_update_warns_of_files_that_git_ignores(pytester: pytest.Pytester) -> None:
    pytester.run("git", "init", "-q")
    (pytester.path / ".gitignore").write_text("*.safetensors\n")
    suites.write(pytester, LOCKS)
    suites.run(pytester, UPDATE).stdout.fnmatch_lines(["ignored by git: __evalmode__/*.safetensors and 2 more; *"])
    (pytester.path / ".gitignore").write_text("*.safetensors\n!**/__evalmode__/**\n")
    assert "ignored by git" not in suites.run(pytester, UPDATE).stdout.str()


def test_threads_share_one_lock(pytester: pytest.Pytester, change: Callable[[str], None]) -> None:
    source = """
import os
from concurrent.futures import ThreadPoolExecutor
def test_it(evalmode_lock):
    by = 0.5 if os.environ.get("CHANGED") else 0.0
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: evalmode_lock.inputs(torch.full((2, 2), i + by), f"x{i}"), range(8)))
"""
    update(pytester, source)
    assert len(lock(pytester)["test_it"]["inputs"]) == 8
    change("1")
    assert len(violations(pytester)["test_it"]) == 8


def test_outputs_that_cannot_be_compared_in_full_are_refused(pytester: pytest.Pytester) -> None:
    source = """
def test_it(evalmode_lock):
    evalmode_lock.outputs(torch.zeros(600, 1000), "logits")
def test_exact(evalmode_lock):
    evalmode_lock.outputs(torch.zeros(600, 1000), "logits", rtol=0, atol=0)
    evalmode_lock.outputs(torch.zeros(600, 1000).argmax(1), "classes")
"""
    suites.write(pytester, source)
    result = suites.run(pytester, UPDATE)
    result.assert_outcomes(failed=1, passed=1)
    result.stdout.fnmatch_lines(["*outputs(): 'logits' (batch) has 600 samples of shape (1000,): too many to store*"])
    suites.run(pytester, "-k", "test_exact").assert_outcomes(passed=1)
    suites.write(pytester, source.replace('zeros(600, 1000), "logits", rtol', 'ones(600, 1000), "logits", rtol'))
    suites.run(pytester, "-k", "test_exact").stdout.fnmatch_lines(["*outputs-changed*600 of 600 samples differ*"])


def test_two_processes_that_update_at_once_lose_nothing(pytester: pytest.Pytester) -> None:
    suites.write(pytester, PARAMETRIZED)
    command = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", UPDATE, "-k")
    runs = [
        pytester.popen([*command, which], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for which in ("not TestIt", "TestIt")
    ]
    for run in runs:
        output, _ = run.communicate()
        assert run.returncode == 0, output
    assert len(lock(pytester)) == 7


def test_names_from_a_file_cannot_change_the_terminal(pytester: pytest.Pytester) -> None:
    update(pytester)
    path = pytester.path / "__evalmode__" / "test_it" / "test_guarded.lock.json"
    path.write_text(path.read_text().replace('"net": {', '"\\u001b[2Jnet": {}, "net": {'))
    result = suites.run(pytester)
    result.stdout.fnmatch_lines(["unused entries: test_it.py::test_guarded model '*2Jnet'"])
    assert "\x1b[2J" not in result.stdout.str()


@pytest.mark.parametrize("folder", ["__evalmode__", "__evalmode__/test_it"])
@pytest.mark.parametrize("args", [[], [UPDATE]], ids=["run", "update"])
def test_a_symlinked_folder_is_not_followed(
    pytester: pytest.Pytester, tmp_path: Path, folder: str, args: list[str]
) -> None:
    update(pytester)
    (pytester.path / folder).rename(tmp_path / "other")
    (pytester.path / folder).symlink_to(tmp_path / "other")
    before = sorted(tmp_path.rglob("*"))
    result = suites.run(pytester, *args)
    result.stdout.fnmatch_lines(["*is a symlink, which is not followed*"])
    assert result.ret != 0
    assert sorted(tmp_path.rglob("*")) == before


BOTH = "pass both rtol and atol, or neither"
INVALID = {
    "model(3)": "evalmode_lock.model(): expected a torch.nn.Module, got int",
    'inputs(object(), "x")': "*of type object*tensors, arrays, images*",
    'inputs(torch.ones(2), "")': "evalmode_lock.inputs(): name must be a non-empty string, not ''",
    "inputs(torch.ones(2), 3)": "evalmode_lock.inputs(): name must be a non-empty string, not 3",
    'inputs(torch.ones(2), "x", atol=0.1)': f"evalmode_lock.inputs(): {BOTH} (got rtol=None, atol=0.1)",
    'outputs(1.0, "x", again=3)': "evalmode_lock.outputs(): again must be a function of the inputs, not 3",
    'outputs(1.0, "x", rtol=0.1)': f"evalmode_lock.outputs(): {BOTH} (got rtol=0.1, atol=None)",
}


@pytest.mark.parametrize(("call", "words"), INVALID.items(), ids=INVALID)
def test_an_invalid_argument_is_one_clear_error(pytester: pytest.Pytester, call: str, words: str) -> None:
    suites.write(pytester, f"def test_it(evalmode_lock):\n    evalmode_lock.{call}\n")
    result = suites.run(pytester)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines([words])
    assert not suites.plugin_lines(result)


def test_an_invalid_tolerance_of_a_later_batch_is_an_error(pytester: pytest.Pytester) -> None:
    calls = [f'evalmode_lock.inputs(torch.ones(2), "x"{tolerance})' for tolerance in ("", ", rtol=0.1")]
    suites.write(pytester, f"def test_it(evalmode_lock):\n    {calls[0]}\n    {calls[1]}\n")
    suites.run(pytester).stdout.fnmatch_lines([f"evalmode_lock.inputs(): {BOTH} (got rtol=0.1, atol=None)"])


def test_two_models_with_one_name_are_an_error(pytester: pytest.Pytester) -> None:
    suites.write(
        pytester, "def test_it(evalmode_lock):\n    evalmode_lock.model(Net())\n    evalmode_lock.model(Net())\n"
    )
    suites.run(pytester, UPDATE).stdout.fnmatch_lines(["*locks two different values as model 'Net'*"])


def test_a_tolerance_is_applied(pytester: pytest.Pytester, change: Callable[[str], None]) -> None:
    source = """
import os
def test_it(evalmode_lock):
    evalmode_lock.outputs(0.93 + float(os.environ.get("CHANGED", "0")), "accuracy", rtol=0.0, atol=0.01)
"""
    update(pytester, source)
    change("0.005")
    suites.run(pytester).assert_outcomes(passed=1)
    change("-0.05")
    assert violations(pytester)["test_it"] == [("outputs-changed", "accuracy: 0.93 -> 0.88")]


def test_a_test_that_fails_on_its_own_gets_the_difference_as_a_note(
    pytester: pytest.Pytester, change: Callable[[str], None]
) -> None:
    source = LOCKS.replace('evalmode_lock.outputs(y, "logits") is y', 'not CHANGED, "too low"')
    update(pytester, source)
    change("model")
    result = suites.run(pytester, "-k", "test_guarded")
    result.stdout.fnmatch_lines(["*AssertionError: too low", "*model-changed: net (Net): fc.weight was shifted by 1*"])


def test_a_test_that_ends_early_is_not_missing_samples(
    pytester: pytest.Pytester, change: Callable[[str], None]
) -> None:
    source = LOCKS.replace("for x in data.split(3)])", "for x in data.split(3) if not (CHANGED and 1 / 0)])")
    update(pytester, source)
    change("other")
    result = suites.run(pytester, "-k", "test_guarded")
    result.assert_outcomes(failed=1)
    assert "changed" not in result.stdout.str().replace("CHANGED", "")


def test_samples_are_not_in_the_junit_report(pytester: pytest.Pytester) -> None:
    update(pytester, LOCKS, "--junitxml=junit.xml")
    assert "evalmode-lock" not in (pytester.path / "junit.xml").read_text()


@pytest.mark.parametrize("missing", ["safetensors", "pytest_evalmode.lock.running_lock"])
@pytest.mark.parametrize("args", [[], [UPDATE]], ids=["compared", "updated"])
def test_without_the_extra_it_says_what_to_install(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, missing: str, args: list[str]
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    suites.write(pytester, LOCKS)
    result = suites.run(pytester, *args)
    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines(
        ["evalmode_lock requires numpy and safetensors (*run pip install 'pytest-evalmode[[]lock]'"]
    )


def test_a_unittest_can_use_the_lock(pytester: pytest.Pytester) -> None:
    source = """
import os, unittest
class TestIt(unittest.TestCase):
    @pytest.fixture(autouse=True)
    def _lock(self, evalmode_lock):
        self.lock = evalmode_lock
    def test_it(self):
        self.lock.outputs(float(os.environ.get("CHANGED", "0")), "x")
"""
    update(pytester, source)
    suites.run(pytester).assert_outcomes(passed=1)


def test_a_model_locked_in_a_fixture_fails_the_call(pytester: pytest.Pytester, change: Callable[[str], None]) -> None:
    source = LOCKS.replace("    return net\n", "    return evalmode_lock.model(net, 'mine')\n", 1).replace(
        "def net():", "def net(evalmode_lock):"
    )
    update(pytester, source)
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


def test_a_preprocessing_difference_names_the_field(pytester: pytest.Pytester, change: Callable[[str], None]) -> None:
    update(pytester, PREPROCESSING)
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
        assert not torch.is_grad_enabled() or not CALLS
        CALLS.append(len(batch["x"]))
        return {"mean": net(batch["x"]).mean().item(), "all": net(batch["x"])}
    return again

CALLS = []

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


def test_a_metric_is_recomputed_from_the_locked_inputs(
    pytester: pytest.Pytester, change: Callable[[str], None]
) -> None:
    update(pytester, AGAIN)
    suites.run(pytester).assert_outcomes(passed=1)
    change("inputs")
    result = suites.run(pytester)
    ((test,),) = [suites.json_report(pytester)["tests"]]
    ((message,),) = [[v["message"] for v in test["violations"] if v["rule"] == "outputs-changed"]]
    was, now = (float(number) for number in message.removeprefix("mean: ").split(" -> "))
    both = f"mean: {was:.6g} with the locked inputs, {now:.6g} with this run's; the inputs explain all of the change"
    result.stdout.fnmatch_lines([f"*recomputed on 8 samples: {both}*"])
    assert test["forwards"] == 2
    change("model")
    suites.run(pytester).stdout.no_fnmatch_line("*recomputed on*")


def test_a_metric_is_not_recomputed_after_violations(pytester: pytest.Pytester, change: Callable[[str], None]) -> None:
    update(pytester, AGAIN)
    change("train")
    suites.run(pytester).assert_outcomes(failed=1)
    source = AGAIN.replace("again(batch)[", "again({'x': batch['x'] + (CHANGED == 'train')})[")
    suites.write(pytester, source)
    result = suites.run(pytester)
    result.stdout.fnmatch_lines(["*train-mode*"])
    result.stdout.no_fnmatch_line("*recomputed on*")


def test_an_again_function_that_fails_is_reported(pytester: pytest.Pytester, change: Callable[[str], None]) -> None:
    update(pytester, AGAIN)
    suites.write(pytester, AGAIN.replace("CALLS.append(", "assert not CALLS, 'again'\n        CALLS.append("))
    change("inputs")
    suites.run(pytester).stdout.fnmatch_lines(["*again= failed on 8 samples: AssertionError: again*"])


def test_a_lock_that_cannot_be_written_does_not_stop_the_others(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, *args: Any) -> None:
        if path.name.startswith("test_guarded"):
            raise OSError(28, "No space left on device", str(path))
        write_lock(path, *args)

    monkeypatch.setattr("pytest_evalmode.lock.session_locks.write_lock", full)
    suites.write(pytester, LOCKS)
    result = suites.run(pytester, UPDATE, "-p", "no:randomly")
    assert result.ret == 1
    result.stdout.fnmatch_lines(
        ["*::test_guarded: not updated: *No space left on device*", "updated the lock of 1 test"]
    )
    assert list(lock(pytester)) == ["test_unguarded"]
    assert not suites.plugin_lines(result)
