"""The window is the call phase: setup and teardown are outside it, and marks that are added before it count."""

from __future__ import annotations

import pytest

from tests import suites
from tests.suites import NEXT_IS_RIGHT, results

SETUPS = {
    "fixture": """
@pytest.fixture
def net():
    net = Net()
    train(net)
    yield net
    train(net)

@pytest.mark.inference
def test_it(net):
    infer(net)
""",
    "shared fixture": """
@pytest.fixture(scope="module")
def net():
    net = Net()
    train(net)
    yield net
    train(net)

@pytest.mark.inference
def test_it(net):
    infer(net)
""",
    "setup_method": """
@pytest.mark.inference
class TestIt:
    def setup_class(cls):
        cls.net = Net()
        train(cls.net)

    def setup_method(self):
        train(self.net)

    def teardown_method(self):
        train(self.net)

    def test_it(self):
        infer(self.net)
""",
    "TestCase": """
import unittest

@pytest.mark.inference
class TestIt(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.net = Net()
        train(cls.net)

    def setUp(self):
        super().setUp()
        train(self.net)

    def tearDown(self):
        train(self.net)

    @classmethod
    def tearDownClass(cls):
        train(cls.net)

    def test_it(self):
        infer(self.net)
""",
    "TestCase with a base": """
import unittest

class Base(unittest.TestCase):
    def setUp(self):
        self.net = Net()
        train(self.net)

@pytest.mark.inference
class TestIt(Base):
    def setUp(self):
        super().setUp()
        train(self.net)

    def test_it(self):
        infer(self.net)
""",
    "TestCase with a cleanup": """
import unittest

@pytest.mark.inference
class TestIt(unittest.TestCase):
    def setUp(self):
        self.net = Net().eval()
        self.addCleanup(train, self.net)

    def test_it(self):
        infer(self.net)
""",
    "IsolatedAsyncioTestCase": """
import unittest

@pytest.mark.inference
class TestIt(unittest.IsolatedAsyncioTestCase):
    def setUp(self):
        self.net = Net()

    async def asyncSetUp(self):
        train(self.net)

    async def asyncTearDown(self):
        train(self.net)

    async def test_it(self):
        infer(self.net)
""",
}


@pytest.mark.parametrize("where", SETUPS)
def test_setup_and_teardown_may_train(pytester: pytest.Pytester, where: str) -> None:
    assert results(pytester, SETUPS[where]) == {"test_it": "passed", **NEXT_IS_RIGHT}


@pytest.mark.parametrize("where", SETUPS)
def test_the_call_may_not_train(pytester: pytest.Pytester, where: str) -> None:
    body, _, call = SETUPS[where].rpartition("infer(")
    source = f"{body}train({call}"
    assert results(pytester, source) == {"test_it": "failed", **NEXT_IS_RIGHT}


def test_setup_and_teardown_of_a_testcase_work_as_usual(pytester: pytest.Pytester) -> None:
    suites.write(
        pytester,
        """
import unittest

@pytest.mark.inference
class TestIt(unittest.TestCase):
    def setUp(self):
        self.before = "setUp" in vars(self)

    def test_skipped_in_set_up(self):
        infer(Net().eval())

class TestSkips(TestIt):
    def setUp(self):
        self.skipTest("no data")

class TestFails(TestIt):
    def setUp(self):
        raise ValueError("own")

class TestFailsLater(TestIt):
    def tearDown(self):
        raise ValueError("own")
""",
    )
    outcomes = {nodeid.split("::")[1]: outcome for nodeid, outcome in suites.outcomes(pytester).items()}
    assert outcomes == {"TestIt": "passed", "TestSkips": "skipped", "TestFails": "failed", "TestFailsLater": "failed"}


def test_the_guard_is_only_paused_in_methods_that_a_testcase_defines(pytester: pytest.Pytester) -> None:
    suites.write(
        pytester,
        """
import unittest
from contextlib import contextmanager
from pytest_evalmode import Guard

@pytest.fixture(autouse=True)
def _pauses(request, monkeypatch):
    pauses = []
    monkeypatch.setattr(Guard, "paused", contextmanager(lambda self: (yield pauses.append(0))))
    yield
    assert len(pauses) == request.cls.pauses

@pytest.mark.inference
class TestEmpty(unittest.TestCase):
    pauses = 0

    def test_it(self):
        pass

class TestEmptyAsync(unittest.IsolatedAsyncioTestCase):
    pauses = 0

    @pytest.mark.inference
    async def test_it(self):
        pass

class TestCleans(TestEmpty):
    pauses = 1

    def test_it(self):
        self.addCleanup(print)

class TestSetsUp(TestEmpty):
    pauses = 2

    def setUp(self):
        pass

    def tearDown(self):
        pass
""",
    )
    suites.run(pytester).assert_outcomes(passed=4)


def test_a_testcase_is_torn_down_under_pdb(pytester: pytest.Pytester) -> None:
    suites.write(
        pytester,
        """
import unittest

class TestIt(unittest.TestCase):
    torn_down = []

    def tearDown(self):
        self.torn_down.append(self.id())

    @pytest.mark.inference
    def test_a(self):
        infer(Net().eval())

    def test_b(self):
        assert len(self.torn_down) == 1
""",
    )
    suites.run(pytester, "--pdb").assert_outcomes(passed=2)


# --- marks that fixtures and hooks add


MARKED_LATE = """
@pytest.fixture
def marks(request):
    request.node.add_marker(pytest.mark.inference)

@pytest.fixture
def exempts(request):
    request.node.add_marker(pytest.mark.inference(train=["*"], reason="Monte Carlo"))

@pytest.fixture
def misspells(request):
    request.node.add_marker(pytest.mark.inference(alow="train-mode"))

def test_clean(marks):
    infer(Net().eval())

def test_dirty(marks):
    infer(Net())

@pytest.mark.inference
def test_exempted(exempts):
    infer(Net())

def test_marked_and_exempted(exempts):
    infer(Net())

@pytest.mark.inference
def test_exempted_before_the_fixture(exempts, evalmode):
    infer(Net())

def test_misspelled(misspells):
    raise RuntimeError("never run")
"""


def test_a_mark_that_a_fixture_adds_counts(pytester: pytest.Pytester) -> None:
    suites.write(pytester, MARKED_LATE)
    result = suites.run(pytester)
    outcomes = suites.outcomes(pytester)
    assert {name.partition("::test_")[2]: outcome for name, outcome in outcomes.items()} == {
        "clean": "passed",
        "dirty": "failed",
        "exempted": "passed",
        "marked_and_exempted": "passed",
        "exempted_before_the_fixture": "passed",
        "misspelled": "failed",
    }
    result.stdout.fnmatch_lines(["*did you mean 'allow'?*"])
    assert "never run" not in result.stdout.str()
    assert not suites.plugin_lines(result)


def test_a_mark_that_a_hook_adds_counts(pytester: pytest.Pytester) -> None:
    suites.write(
        pytester,
        "def test_dirty():\n    infer(Net())\n",
        conftest="""
import pytest

def pytest_runtest_setup(item):
    item.add_marker(pytest.mark.inference)
""",
    )
    suites.run(pytester).assert_outcomes(failed=1)


def test_a_skipped_test_is_not_guarded(pytester: pytest.Pytester) -> None:
    suites.write(
        pytester,
        """
@pytest.mark.skip
@pytest.mark.inference(alow="train-mode")
def test_skipped():
    infer(Net())
""",
    )
    result = suites.run(pytester)
    result.assert_outcomes(skipped=1)
    assert "= evalmode =" not in result.stdout.str()


# --- frames


def test_errors_of_fixtures_show_no_frames_of_the_plugin(pytester: pytest.Pytester) -> None:
    suites.write(
        pytester,
        """
def test_set_up(breaks):
    pass

@pytest.mark.inference
def test_teardown(breaks_later):
    infer(Net().eval())
""",
        conftest="""
import pytest

@pytest.fixture
def breaks():
    raise ValueError("own")

@pytest.fixture
def breaks_later():
    yield
    raise ValueError("own, later")
""",
    )
    result = suites.run(pytester)
    result.assert_outcomes(errors=2, passed=1)
    assert "own, later" in result.stdout.str()
    assert "pytest_evalmode" not in result.stdout.str()
