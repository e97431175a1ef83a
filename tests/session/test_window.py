"""The window is the call: what is outside it, and the marks that come before it begins."""

from __future__ import annotations

import pytest

from tests import suites
from tests.suites import NEXT_IS_RIGHT, results

SET_UP = {
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


@pytest.mark.parametrize("where", SET_UP)
def test_set_up_and_tear_down_may_train(pytester: pytest.Pytester, where: str) -> None:
    assert results(pytester, SET_UP[where]) == {"test_it": "passed", **NEXT_IS_RIGHT}


@pytest.mark.parametrize("where", SET_UP)
def test_the_call_may_not(pytester: pytest.Pytester, where: str) -> None:
    body, _, call = SET_UP[where].rpartition("infer(")
    source = f"{body}train({call}"
    assert results(pytester, source) == {"test_it": "failed", **NEXT_IS_RIGHT}


def test_a_testcase_keeps_its_set_up_as_it_was(pytester: pytest.Pytester) -> None:
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
    found = {nodeid.split("::")[1]: outcome for nodeid, outcome in suites.outcomes(pytester).items()}
    assert found == {"TestIt": "passed", "TestSkips": "skipped", "TestFails": "failed", "TestFailsLater": "failed"}


def test_a_testcase_tears_down_under_the_debugger_too(pytester: pytest.Pytester) -> None:
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


# --- marks that come late


MARKED_LATE = """
@pytest.fixture
def marks(request):
    request.node.add_marker(pytest.mark.inference)

@pytest.fixture
def excuses(request):
    request.node.add_marker(pytest.mark.inference(train=["*"], reason="Monte Carlo"))

@pytest.fixture
def misspells(request):
    request.node.add_marker(pytest.mark.inference(alow="train-mode"))

def test_clean(marks):
    infer(Net().eval())

def test_dirty(marks):
    infer(Net())

@pytest.mark.inference
def test_excused(excuses):
    infer(Net())

def test_marked_and_excused(excuses):
    infer(Net())

@pytest.mark.inference
def test_excused_before_its_guard_is_asked_for(excuses, evalmode):
    infer(Net())

def test_misspelt(misspells):
    raise RuntimeError("never run")
"""


def test_a_mark_that_a_fixture_adds_counts(pytester: pytest.Pytester) -> None:
    suites.write(pytester, MARKED_LATE)
    result = suites.run(pytester)
    found = suites.outcomes(pytester)
    assert {name.partition("::test_")[2]: outcome for name, outcome in found.items()} == {
        "clean": "passed",
        "dirty": "failed",
        "excused": "passed",
        "marked_and_excused": "passed",
        "excused_before_its_guard_is_asked_for": "passed",
        "misspelt": "failed",
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


def test_the_errors_of_fixtures_show_no_frame_of_ours(pytester: pytest.Pytester) -> None:
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
