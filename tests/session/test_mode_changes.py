"""The line in a fixture or another test that left a shared model in training mode."""

from __future__ import annotations

import pytest
from torch import nn

from tests.suites import run, write

CONFTEST = """
import pytest, torch
from torch import nn

def fit(model):
    model.train()

@pytest.fixture(scope="session")
def model():
    return nn.Sequential(nn.Linear(4, 4), nn.Dropout()).eval()
"""

RUN = """
    with torch.no_grad():
        model(torch.ones(1, 4))
"""

FLIPS = f"""
import pytest, torch

@pytest.mark.inference
def test_first(model):{RUN}
"""


def outcome(pytester: pytest.Pytester, test_it: str, conftest: str = CONFTEST) -> pytest.RunResult:
    write(pytester, conftest=conftest, test_it=test_it)
    return run(pytester)


def test_the_line_in_a_fixture_is_reported(pytester: pytest.Pytester) -> None:
    conftest = CONFTEST.replace("    return nn", "    net = nn").replace(
        ".eval()\n", "\n    fit(net)\n    return net\n"
    )
    result = outcome(pytester, FLIPS, conftest)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["*from fixture model: conftest.py:8  def model():", "*since conftest.py:5  model.train()"]
    )


@pytest.mark.parametrize("mark", ["@pytest.mark.inference\n", ""], ids=["guarded", "not guarded"])
def test_the_line_in_another_test_is_reported(pytester: pytest.Pytester, mark: str) -> None:
    leaves = f"{mark}def test_that_leaves_it(model):\n    model.train()\n"
    result = outcome(pytester, f"{FLIPS}\n{leaves}\n{FLIPS.replace('test_first', 'test_later')}")
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(
        ["*train-mode: model (Sequential) ran once in training mode", "*since test_it.py:*  model.train()"]
    )


def test_the_line_in_the_test_itself_is_preferred(pytester: pytest.Pytester) -> None:
    own = FLIPS.replace("    with", "    model.train()  # its own\n    with", 1)
    result = outcome(pytester, f"def test_leaves(model):\n    model.train()\n{own}")
    result.stdout.fnmatch_lines(["*since test_it.py:*  model.train()  # its own"])


@pytest.mark.parametrize(
    ("undone", "failed"),
    [("model.eval()", 0), ("model.eval()\n    for part in model.modules(): part.training = True", 1)],
)
def test_a_line_that_was_undone_is_not_reported(pytester: pytest.Pytester, undone: str, failed: int) -> None:
    leaves = f"def test_leaves(model):\n    model.train()\n    {undone}\n"
    result = outcome(pytester, f"{FLIPS}\n{leaves}\n{FLIPS.replace('test_first', 'test_later')}")
    result.assert_outcomes(passed=3 - failed, failed=failed)
    result.stdout.no_fnmatch_line("*since*")


def test_train_is_unpatched_after_the_run(pytester: pytest.Pytester) -> None:
    before = nn.Module.train
    outcome(pytester, FLIPS).assert_outcomes(passed=1)
    assert nn.Module.train is before
