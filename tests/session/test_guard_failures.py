"""The outcome and output of a test whose guard itself fails."""

from __future__ import annotations

import pytest

from tests import suites
from tests.suites import NEXT

# Parts of the guard, and the function that is replaced to break each.
BROKEN = {
    "the fingerprint": "pytest_evalmode.observe.state.snapshot.fingerprint_of",
    "the discovery of models": "pytest_evalmode.observe.models.discovery.find_models",
    "the forward observer": "pytest_evalmode.observe.state.generators.state",
    "the rules": "pytest_evalmode.guards.segments.apply_rules",
    "the record": "pytest_evalmode.session.guarded_test.user_properties.serialize_record",
}

GUARDED = {
    "test_clean": ("", "infer(net.eval())"),
    "test_violation": ("", "infer(net)"),
    "test_own_failure": ("", "infer(net.eval())\n    raise LookupError('own')"),
    "test_skip": ("", "infer(net.eval())\n    pytest.skip('no data')"),
    "test_xfail": ("@pytest.mark.xfail", "infer(net.eval())\n    raise LookupError('own')"),
    "test_xfail_raises": ("@pytest.mark.xfail(raises=RuntimeError)", "infer(net.eval())"),
}


@pytest.fixture(params=BROKEN)
def broken(request: pytest.FixtureRequest, pytester: pytest.Pytester) -> pytest.Pytester:
    """Write a suite in which the guard fails in every test but the last two."""
    tests = "\n".join(
        f"{mark}\n@pytest.mark.inference\ndef {name}(net, broken):\n    {body}\n"
        for name, (mark, body) in GUARDED.items()
    )
    target = BROKEN[request.param]
    suites.write(
        pytester,
        f"""
import importlib

@pytest.fixture(scope="module")
def net():
    return Net()

@pytest.fixture
def broken(monkeypatch):
    module, _, name = {target!r}.rpartition(".")

    def fail(*args, **kwargs):
        raise ZeroDivisionError("the guard is broken")

    monkeypatch.setattr(importlib.import_module(module), name, fail)

{tests}
{NEXT}""",
    )
    return pytester


def test_a_failed_guard_is_an_error_of_its_own_test_only_and_hides_no_result(broken: pytest.Pytester) -> None:
    result = suites.run(broken, "-rA")
    result.stdout.fnmatch_lines(
        ["*GuardError: pytest-evalmode could not check this inference because of an internal error*"]
    )
    summary = result.stdout.str().partition("short test summary info")[2]
    assert [name for name in GUARDED if f"ERROR test_it.py::{name} - " not in summary] == []
    assert "PASSED test_it.py::test_next_clean" in summary
    assert "FAILED test_it.py::test_next_violation" in summary
    assert "FAILED test_it.py::test_own_failure - LookupError: own" in summary
    for name in ("test_clean", "test_xfail_raises"):
        assert f"FAILED test_it.py::{name}" not in summary
    for word in ("SKIPPED ", "XFAIL test_it.py::test_xfail", "XPASS test_it.py::test_xfail_raises"):
        assert word in summary


BROKEN_TWICE = """
from pytest_evalmode.observe.models.watch import Watch

@pytest.fixture
def broken(monkeypatch):
    def fail(*args):
        raise ZeroDivisionError("the guard is broken")

    with monkeypatch.context() as patch:
        patch.setattr(Watch, "compare", fail)
        yield

@pytest.fixture
def breaks(broken):
    yield
    {how}

{mark}
@pytest.mark.inference
def test_broken(breaks):
    infer(Net().eval())

def test_next():
    pass
"""


@pytest.mark.parametrize("mark", ["", "@pytest.mark.xfail"])
def test_a_failed_guard_keeps_the_error_of_the_teardown(pytester: pytest.Pytester, mark: str) -> None:
    suites.write(pytester, BROKEN_TWICE.format(how='raise LookupError("own")', mark=mark))
    result = suites.run(pytester)
    result.assert_outcomes(errors=1, **({"xpassed": 1, "passed": 1} if mark else {"passed": 2}))
    for line in ("*LookupError: own*", "*GuardError: pytest-evalmode could not check*"):
        result.stdout.fnmatch_lines([line])


def test_a_failed_guard_does_not_stop_pytest_exit(pytester: pytest.Pytester) -> None:
    suites.write(pytester, BROKEN_TWICE.format(how='pytest.exit("own", returncode=7)', mark=""))
    assert suites.run(pytester).ret == 7
