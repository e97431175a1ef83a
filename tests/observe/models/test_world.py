"""What is remembered of torch's global state between tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from torch.backends import cudnn

from pytest_evalmode.observe.models.global_state import GlobalStateHistory
from pytest_evalmode.observe.state.flag_snapshots import read_global_flags
from pytest_evalmode.trace import GlobalDrift
from tests.suites import json_report, write


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    before = cudnn.benchmark, cudnn.deterministic
    yield
    cudnn.benchmark, cudnn.deterministic = before


def guarded(world: GlobalStateHistory, name: str = "guarded") -> tuple[GlobalDrift, ...]:
    """A guarded test that does nothing: what it is told."""
    world.begin_test()
    told = world.pop_drift()
    world.end_test(name, guarded=True)
    return told


def unguarded(world: GlobalStateHistory, name: str, benchmark: bool | None = None) -> None:
    world.begin_test()
    if benchmark is not None:
        cudnn.benchmark = benchmark
    world.end_test(name, guarded=False)


def test_who_changed_it_and_who_ran() -> None:
    world = GlobalStateHistory()
    guarded(world, "first")
    unguarded(world, "quiet")
    unguarded(world, "sets", benchmark=True)
    unguarded(world, "later")
    (drift,) = guarded(world)
    assert [(leak.name, leak.before, leak.after) for leak in drift.changes] == [("cudnn.benchmark", "False", "True")]
    assert (drift.last_seen_by, drift.between, drift.changed_by) == ("first", ("later", "sets", "quiet"), ("sets",))
    assert guarded(world) == ()  # it is told once


def test_it_changed_where_no_test_ran() -> None:
    world = GlobalStateHistory()
    guarded(world)
    unguarded(world, "quiet")
    cudnn.benchmark = True
    (drift,) = guarded(world)
    assert (drift.between, drift.changed_by) == (("quiet",), ())


def test_nothing_was_seen_before() -> None:
    world = GlobalStateHistory()
    unguarded(world, "sets", benchmark=True)
    assert guarded(world) == ()


def test_set_and_put_back_in_between() -> None:
    world = GlobalStateHistory()
    guarded(world)
    unguarded(world, "sets", benchmark=True)
    unguarded(world, "puts back", benchmark=False)
    assert guarded(world) == ()


def test_what_a_guarded_test_left_is_put_back_as_the_session_began() -> None:
    world = GlobalStateHistory()
    world.begin_test()
    cudnn.benchmark = True
    world.end_test("guarded", guarded=True)
    unguarded(world, "puts back", benchmark=False)
    assert guarded(world) == ()


def test_what_was_not_told_is_told_the_next() -> None:
    world = GlobalStateHistory()
    guarded(world, "first")
    unguarded(world, "sets", benchmark=True)
    world.begin_test()
    world.end_test("skipped", guarded=True)
    (drift,) = guarded(world)
    assert (drift.last_seen_by, drift.changed_by) == ("first", ("sets",))


def test_what_a_fixture_sets_for_as_long_as_it_lives() -> None:
    world = GlobalStateHistory()
    guarded(world)
    before = read_global_flags()
    cudnn.benchmark = True
    world.fixture_began(1, before)
    assert guarded(world) == ()
    unguarded(world, "sets another")
    cudnn.benchmark = False
    world.fixture_ended(1)
    assert guarded(world) == ()


def test_what_two_fixtures_set() -> None:
    world = GlobalStateHistory()
    guarded(world)
    for key, value in ((1, True), (2, False)):
        before = read_global_flags()
        cudnn.benchmark = value
        world.fixture_began(key, before)
        assert guarded(world) == ()
    world.fixture_ended(2)
    cudnn.benchmark = True
    assert guarded(world) == ()


def test_what_a_fixture_leaves() -> None:
    world = GlobalStateHistory()
    guarded(world)
    before = read_global_flags()
    cudnn.benchmark = True
    world.fixture_began(1, before)
    guarded(world, "last of the module")
    world.begin_test()
    world.fixture_ended(1)
    world.end_test("of another module", guarded=False)
    (drift,) = guarded(world)
    assert (drift.last_seen_by, drift.changed_by) == ("last of the module", ("of another module",))


def test_what_is_set_beside_what_a_fixture_set() -> None:
    world = GlobalStateHistory()
    guarded(world)
    before = read_global_flags()
    cudnn.benchmark = True
    world.fixture_began(1, before)
    cudnn.deterministic = True
    (drift,) = guarded(world)
    assert [leak.name for leak in drift.changes] == ["cudnn.deterministic"]


SUITE = """
from torch.backends import cudnn

@pytest.mark.inference
def test_first():
    infer(Net().eval())

def test_sets():
    cudnn.benchmark = True

@pytest.mark.inference
def test_told():
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


def test_a_run(pytester: pytest.Pytester) -> None:
    write(pytester, SUITE)
    found = {test["nodeid"].partition("::")[2]: test for test in json_report(pytester, "--evalmode-strict")["tests"]}
    told = {name: violation for name, test in found.items() for violation in test["violations"]}
    assert set(told) == {"test_told", "test_fails_in_that_state"}
    violation = told["test_told"]
    assert (violation["rule"], violation["model"]) == ("state-drifted", None)
    assert violation["message"] == "torch cudnn.benchmark changed since the last guarded test"
    assert violation["details"]["between"] == violation["details"]["changed_by"] == ["test_it.py::test_sets"]
    assert told["test_fails_in_that_state"]["details"]["last_seen_by"] == "test_it.py::test_last"
