"""Shared by all tests.

torch is imported here: a second in-process pytester run could not import it again.
"""

from __future__ import annotations

import pytest
import torch

pytest_plugins = ["pytester"]

# Two workers with all their threads on two cores spin against each other.
torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What runs a suite of its own is slow."""
    for item in items:
        if "pytester" in getattr(item, "fixturenames", ()):
            item.add_marker("slow")


@pytest.fixture
def pytester(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """Do on CI what is done at a desk: there pytest shortens the lines of its summary, and we write one of a step."""
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.delenv("BUILD_NUMBER", raising=False)
    monkeypatch.delenv("GITHUB_ACTIONS", raising=False)
    return pytester
