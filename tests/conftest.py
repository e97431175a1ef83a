"""Fixtures and hooks for all tests.

torch is imported here because it cannot be imported twice, as each in-process pytester run would otherwise do.
"""

from __future__ import annotations

import gc
from importlib.metadata import distributions
from types import SimpleNamespace

import hypothesis
import pytest
import torch

from tests import forked

pytest_plugins = ["pytester"]

# Two xdist workers that use all cores each would slow each other down.
torch.set_num_threads(1)

# Without a deadline: on a busy machine, any example may take long.  `make test-all` uses the second profile.
hypothesis.settings.register_profile("few", deadline=None, max_examples=20)
hypothesis.settings.register_profile("many", deadline=None, max_examples=100)
hypothesis.settings.load_profile("few")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--new-processes", action="store_true", help="start xdist workers anew instead of forking them")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests that run an inner suite as slow."""
    for item in items:
        if "pytester" in getattr(item, "fixturenames", ()):
            item.add_marker("slow")


def pytest_collection_finish() -> None:
    """Let collections of garbage skip what exists before the first test, mostly modules: many tests collect it."""
    gc.freeze()


@pytest.fixture(scope="session")
def plugins() -> list[SimpleNamespace]:
    """The installed distributions that have a plugin of pytest, read once: each inner run would read all of them."""
    parts = ("metadata", "version", "entry_points", "files")
    found = [each for each in distributions() if each.entry_points.select(group="pytest11")]
    return [SimpleNamespace(**{part: getattr(each, part) for part in parts}) for each in found]


@pytest.fixture
def pytester(
    request: pytest.FixtureRequest,
    pytester: pytest.Pytester,
    monkeypatch: pytest.MonkeyPatch,
    plugins: list[SimpleNamespace],
) -> pytest.Pytester:
    """Fork xdist workers; remove the variables of CI, which change pytest's summary and make the plugin write one."""
    monkeypatch.setattr("importlib.metadata.distributions", lambda: plugins)
    if not request.config.getoption("--new-processes"):
        monkeypatch.setattr("execnet.gateway_io.Popen2IOMaster", forked.Worker)
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.delenv("BUILD_NUMBER", raising=False)
    monkeypatch.delenv("GITHUB_ACTIONS", raising=False)
    return pytester
