"""Tests that go wrong in odd ways must not affect the tests that follow."""

from __future__ import annotations

import pytest
from torch import nn

from tests import forked, suites
from tests.suites import NEXT, NEXT_IS_RIGHT, results

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
    "a module that was never initialized": (
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
def test_a_hazard_does_not_affect_the_next_tests(pytester: pytest.Pytester, hazard: str) -> None:
    source, outcome = HAZARDS[hazard]
    assert results(pytester, source) == {"test_it": outcome, **NEXT_IS_RIGHT}


def test_an_interrupt_inside_a_forward_ends_the_run_as_usual(pytester: pytest.Pytester) -> None:
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
    result = forked.run_pytest(pytester.path, *suites.PLAIN)
    assert result.returncode == pytest.ExitCode.INTERRUPTED
    assert "KeyboardInterrupt" in result.stdout
    assert nn.Module.__call__ is before


def test_torch_is_unpatched_after_the_run(pytester: pytest.Pytester) -> None:
    before = nn.Module.__call__
    results(pytester, HAZARDS["an exception inside a forward of a part"][0])
    assert nn.Module.__call__ is before
