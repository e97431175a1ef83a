"""Drift of torch's global state between tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from torch.backends import cudnn

from pytest_evalmode.observe.models.global_state import GlobalStateHistory
from pytest_evalmode.observe.state.flag_snapshots import read_global_flags
from pytest_evalmode.trace import Drift, Leak
from tests.suites import json_report, write


@pytest.fixture(autouse=True)
def _restore_cudnn_flags() -> Iterator[None]:
    before = cudnn.benchmark, cudnn.deterministic
    yield
    cudnn.benchmark, cudnn.deterministic = before


def guarded(history: GlobalStateHistory, name: str = "guarded") -> tuple[Drift, ...]:
    """Run a guarded test that does nothing, and return the drift that it reports."""
    history.begin_test()
    drift = history.pop_drift()
    history.end_test(name, guarded=True)
    return drift


def unguarded(history: GlobalStateHistory, name: str, benchmark: bool | None = None) -> None:
    history.begin_test()
    if benchmark is not None:
        cudnn.benchmark = benchmark
    history.end_test(name, guarded=False)


def test_drift_names_the_test_that_changed_a_flag_and_the_tests_that_ran() -> None:
    history = GlobalStateHistory()
    guarded(history, "first")
    unguarded(history, "quiet")
    unguarded(history, "sets", benchmark=True)
    unguarded(history, "later")
    (drift,) = guarded(history)
    assert drift.changes == (Leak(None, "cudnn.benchmark", False, True),)
    assert (drift.last_seen_by, drift.between, drift.changed_by) == ("first", ("later", "sets", "quiet"), ("sets",))
    assert guarded(history) == ()  # reported only once


def test_a_change_between_tests_has_no_culprit() -> None:
    history = GlobalStateHistory()
    guarded(history)
    unguarded(history, "quiet")
    cudnn.benchmark = True
    (drift,) = guarded(history)
    assert (drift.between, drift.changed_by) == (("quiet",), ())


def test_no_drift_before_the_first_guarded_test() -> None:
    history = GlobalStateHistory()
    unguarded(history, "sets", benchmark=True)
    assert guarded(history) == ()


def test_a_flag_that_was_set_and_restored_has_not_drifted() -> None:
    history = GlobalStateHistory()
    guarded(history)
    unguarded(history, "sets", benchmark=True)
    unguarded(history, "restores", benchmark=False)
    assert guarded(history) == ()


def test_restoring_the_value_of_the_session_start_is_not_a_drift() -> None:
    history = GlobalStateHistory()
    history.begin_test()
    cudnn.benchmark = True
    history.end_test("guarded", guarded=True)
    unguarded(history, "restores", benchmark=False)
    assert guarded(history) == ()


def test_a_drift_that_was_not_reported_is_left_to_the_next_test() -> None:
    history = GlobalStateHistory()
    guarded(history, "first")
    unguarded(history, "sets", benchmark=True)
    history.begin_test()
    history.end_test("skipped", guarded=True)
    (drift,) = guarded(history)
    assert (drift.last_seen_by, drift.changed_by) == ("first", ("sets",))


def test_a_value_set_by_a_living_fixture_is_not_a_drift() -> None:
    history = GlobalStateHistory()
    guarded(history)
    before = read_global_flags()
    cudnn.benchmark = True
    history.fixture_began(1, before)
    assert guarded(history) == ()
    unguarded(history, "sets another")
    cudnn.benchmark = False
    history.fixture_ended(1)
    assert guarded(history) == ()


def test_values_set_by_two_fixtures_are_not_a_drift() -> None:
    history = GlobalStateHistory()
    guarded(history)
    for key, value in ((1, True), (2, False)):
        before = read_global_flags()
        cudnn.benchmark = value
        history.fixture_began(key, before)
        assert guarded(history) == ()
    history.fixture_ended(2)
    cudnn.benchmark = True
    assert guarded(history) == ()


def test_a_value_that_a_fixture_does_not_restore_is_a_drift() -> None:
    history = GlobalStateHistory()
    guarded(history)
    before = read_global_flags()
    cudnn.benchmark = True
    history.fixture_began(1, before)
    guarded(history, "last of the module")
    history.begin_test()
    history.fixture_ended(1)
    history.end_test("of another module", guarded=False)
    (drift,) = guarded(history)
    assert (drift.last_seen_by, drift.changed_by) == ("last of the module", ("of another module",))


def test_another_flag_set_while_a_fixture_lives_is_a_drift() -> None:
    history = GlobalStateHistory()
    guarded(history)
    before = read_global_flags()
    cudnn.benchmark = True
    history.fixture_began(1, before)
    cudnn.deterministic = True
    (drift,) = guarded(history)
    assert [leak.name for leak in drift.changes] == ["cudnn.deterministic"]


SUITE = """
from torch.backends import cudnn

@pytest.mark.inference
def test_first():
    infer(Net().eval())

def test_sets():
    cudnn.benchmark = True

@pytest.mark.inference
def test_reports():
    infer(Net().eval())

@pytest.mark.inference
def test_repairs():
    infer(Net().eval())
    cudnn.benchmark = False

@pytest.fixture(scope="class")
def wide():
    cudnn.benchmark = True
    yield
    cudnn.benchmark = False

class TestWide:
    def test_unguarded(self, wide):
        pass

    @pytest.mark.inference
    def test_guarded(self, wide):
        infer(Net().eval())

@pytest.fixture
def narrow():
    cudnn.benchmark = True
    yield
    cudnn.benchmark = False

@pytest.mark.inference
def test_narrow(narrow):
    infer(Net().eval())

@pytest.mark.inference
def test_last():
    infer(Net().eval())

def test_sets_again():
    cudnn.benchmark = True

@pytest.mark.inference
def test_fails_in_that_state():
    infer(Net().eval())
    assert not cudnn.benchmark
"""


def test_global_drift_in_a_whole_run(pytester: pytest.Pytester) -> None:
    write(pytester, SUITE)
    tests = {test["nodeid"].partition("::")[2]: test for test in json_report(pytester, "--evalmode-strict")["tests"]}
    violations = {name: violation for name, test in tests.items() for violation in test["violations"]}
    assert set(violations) == {"test_reports", "test_fails_in_that_state"}
    violation = violations["test_reports"]
    assert (violation["rule"], violation["model"]) == ("state-drifted", None)
    assert violation["message"] == "torch cudnn.benchmark changed since the last guarded test"
    assert violation["details"]["between"] == violation["details"]["changed_by"] == ["test_it.py::test_sets"]
    assert violations["test_fails_in_that_state"]["details"]["last_seen_by"] == "test_it.py::test_last"
