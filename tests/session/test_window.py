"""The window is the call: what is outside it, what may go wrong in it, and what is said when the guard itself fails."""

from __future__ import annotations

import pytest
from torch import nn

from tests import suites

# The last test of each hazard: whatever came before, its own violation is found, and nothing else's.
NEXT = """

@pytest.mark.inference
def test_next_clean():
    infer(Net().eval())

@pytest.mark.inference
def test_next_violation():
    infer(Net())
"""


def results(pytester: pytest.Pytester, source: str, *args: str) -> dict[str, str]:
    """The outcome of each test of a suite by its bare name, with the next tests behind it."""
    suites.write(pytester, source + NEXT)
    return {nodeid.rpartition("::")[2]: found for nodeid, found in suites.outcomes(pytester, *args).items()}


NEXT_IS_RIGHT = {"test_next_clean": "passed", "test_next_violation": "failed"}

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


HAZARDS = {
    "an exception inside a forward, caught": (
        """
class Failing(Net):
    def forward(self, x):
        raise ValueError("own")

@pytest.mark.inference
def test_it():
    with pytest.raises(ValueError):
        infer(Failing().eval())
    infer(Net().eval())
""",
        "passed",
    ),
    "an exception inside a forward, caught, and a violation after it": (
        """
class Failing(nn.Module):
    def forward(self, x):
        raise ValueError("own")

@pytest.mark.inference
def test_it():
    with pytest.raises(ValueError):
        infer(Failing().eval())
    infer(Net())
""",
        "failed",
    ),
    "an exception inside a forward of a part": (
        """
class Failing(nn.Module):
    def forward(self, x):
        raise ValueError("own")

@pytest.mark.xfail(raises=ValueError)
@pytest.mark.inference
def test_it():
    infer(nn.Sequential(nn.Linear(4, 4), Failing()).eval())
""",
        "xfailed",
    ),
    "pytest.fail in a forward hook": (
        """
@pytest.mark.inference
def test_it():
    net = Net().eval()
    net.fc.register_forward_hook(lambda *_: pytest.fail("own"))
    with pytest.raises(pytest.fail.Exception):
        infer(net)
    infer(Net().eval())
""",
        "passed",
    ),
    "pytest.skip in a forward pre-hook": (
        """
@pytest.mark.inference
def test_it():
    net = Net()
    net.register_forward_pre_hook(lambda *_: pytest.skip("own"))
    infer(net)
""",
        "skipped",
    ),
    "KeyboardInterrupt inside a forward, caught": (
        """
class Interrupted(Net):
    def forward(self, x):
        raise KeyboardInterrupt

@pytest.mark.inference
def test_it():
    with pytest.raises(KeyboardInterrupt):
        infer(Interrupted().eval())
    infer(Net().eval())
""",
        "passed",
    ),
    "a model deleted in the test": (
        """
import gc

@pytest.mark.inference
def test_it():
    net = Net().eval()
    infer(net)
    del net
    gc.collect()
    infer(Net().eval())
""",
        "passed",
    ),
    "a model deleted after a violation": (
        """
import gc

@pytest.mark.inference
def test_it():
    net = Net()
    infer(net)
    del net
    gc.collect()
""",
        "failed",
    ),
    "a model whose weights changed before it was deleted": (
        """
import gc

@pytest.mark.inference
def test_it():
    net = Net().eval()
    infer(net)
    with torch.no_grad():
        net.fc.weight.add_(1)
    del net
    gc.collect()
""",
        "failed",
    ),
    "a fixture whose attributes raise when read": (
        """
class Hostile:
    def __init__(self):
        self.net = Net().eval()

    def __getattr__(self, name):
        raise RuntimeError(name)

    @property
    def weight(self):
        raise SystemExit("read")

    def __eq__(self, other):
        raise RuntimeError("compared")

    def __hash__(self):
        raise RuntimeError("hashed")

    def __len__(self):
        raise RuntimeError("counted")

@pytest.fixture(scope="module")
def hostile():
    return Hostile()

@pytest.mark.inference
def test_it(hostile):
    infer(vars(hostile)["net"])
""",
        "passed",
    ),
    "a fixture that claims to be anything": (
        """
from unittest.mock import MagicMock

@pytest.fixture(scope="module")
def mock():
    return MagicMock()

@pytest.fixture
def posing():
    return MagicMock(spec=nn.Module)

@pytest.mark.inference
def test_it(mock, posing):
    infer(Net().eval())
""",
        "passed",
    ),
    "a module that was never initialised": (
        """
class Early(nn.Module):
    def __init__(self):
        pass

@pytest.fixture(scope="module")
def early():
    return Early()

@pytest.mark.inference
def test_it(early):
    infer(Net().eval())
""",
        "passed",
    ),
    "a generator that is left inside a forward": (
        """
class Streaming(Net):
    def forward(self, x):
        yield self.fc(x)

@pytest.mark.inference
def test_it():
    with torch.no_grad():
        next(Streaming().eval()(torch.ones(2, 4)))
    infer(Net().eval())
""",
        "passed",
    ),
}


@pytest.mark.parametrize("hazard", HAZARDS)
def test_hazards(pytester: pytest.Pytester, hazard: str) -> None:
    source, outcome = HAZARDS[hazard]
    assert results(pytester, source) == {"test_it": outcome, **NEXT_IS_RIGHT}


def test_an_interrupt_inside_a_forward_ends_the_run_as_ever(pytester: pytest.Pytester) -> None:
    suites.write(
        pytester,
        """
class Interrupted(Net):
    def forward(self, x):
        raise KeyboardInterrupt

@pytest.mark.inference
def test_it():
    infer(Interrupted().eval())
"""
        + NEXT,
    )
    before = nn.Module.__call__
    result = pytester.runpytest_subprocess(*suites.PLAIN)
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.stdout.fnmatch_lines(["*KeyboardInterrupt*"])
    assert nn.Module.__call__ is before


def test_torch_is_as_it_was_after_the_run(pytester: pytest.Pytester) -> None:
    before = nn.Module.__call__
    results(pytester, HAZARDS["an exception inside a forward of a part"][0])
    assert nn.Module.__call__ is before


# Where the guard can fail, and what it is broken with.
BROKEN = {
    "the fingerprint": "pytest_evalmode.observe.state.snapshot.fingerprint",
    "the finding of models": "pytest_evalmode.observe.models.find.find",
    "the forward observer": "pytest_evalmode.observe.state.generators.state",
    "the rules": "pytest_evalmode.segments.judge",
    "the record": "pytest_evalmode.session.window.record",
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
    """A suite in which the guard fails in every test but the last two."""
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


def test_a_guard_that_fails_is_an_error_of_its_test_and_nobody_elses(broken: pytest.Pytester) -> None:
    result = suites.run(broken, "-rA")
    result.stdout.fnmatch_lines(["*GuardError: pytest-evalmode could not tell whether this inference was clean*"])
    summary = result.stdout.str().partition("short test summary info")[2]
    names = [name for name, (mark, _) in GUARDED.items() if not mark]
    assert [name for name in names if f"ERROR test_it.py::{name} - " not in summary] == []
    assert "PASSED test_it.py::test_next_clean" in summary
    assert "FAILED test_it.py::test_next_violation" in summary


def test_xfail_does_not_hide_that_the_guard_failed(broken: pytest.Pytester) -> None:
    summary = suites.run(broken, "-rA").stdout.str().partition("short test summary info")[2]
    names = [name for name, (mark, _) in GUARDED.items() if mark]
    assert [name for name in names if f"ERROR test_it.py::{name} - " not in summary] == []


def test_a_guard_that_fails_leaves_the_result_of_its_test(broken: pytest.Pytester) -> None:
    result = suites.run(broken, "-rA")
    summary = result.stdout.str().partition("short test summary info")[2]
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
def test_a_guard_that_fails_leaves_the_failure_of_the_teardown(pytester: pytest.Pytester, mark: str) -> None:
    suites.write(pytester, BROKEN_TWICE.format(how='raise LookupError("own")', mark=mark))
    result = suites.run(pytester)
    result.assert_outcomes(errors=1, **({"xpassed": 1, "passed": 1} if mark else {"passed": 2}))
    for said in ("*LookupError: own*", "*GuardError: pytest-evalmode could not tell*"):
        result.stdout.fnmatch_lines([said])


def test_a_guard_that_fails_holds_up_no_exit(pytester: pytest.Pytester) -> None:
    suites.write(pytester, BROKEN_TWICE.format(how='pytest.exit("own", returncode=7)', mark=""))
    assert suites.run(pytester).ret == 7


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
    assert not suites.frames(result)


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
