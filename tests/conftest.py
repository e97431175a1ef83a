"""Shared by all tests.

torch is imported here: a second in-process pytester run could not import it again.
"""

from __future__ import annotations

import pytest
import torch

pytest_plugins = ["pytester"]

# Two workers with all their threads on two cores spin against each other.
torch.set_num_threads(1)


@pytest.fixture
def pytester(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """Print on CI what is printed at a desk: there pytest shortens the lines of its summary (`running_on_ci`)."""
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.delenv("BUILD_NUMBER", raising=False)
    return pytester
