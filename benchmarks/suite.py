"""A suite whose every test is guarded, beside the same suite with `--evalmode=off`."""

from __future__ import annotations

import contextlib
import io
import os
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest import mock

import pytest

from benchmarks.timing import Measure, Row, interleaved, one_thread

TESTS = 200

SUITE = """
import pytest, torch
from torch import nn

def build():
    return nn.Sequential(
        nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.BatchNorm2d(64), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(), nn.Linear(64, 10),
    ).eval()

@pytest.fixture(scope="{scope}")
def model():
    return build()

@pytest.mark.inference
@pytest.mark.parametrize("i", range({tests}))
def test_inference(model, i):
    with torch.inference_mode():
        assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 10)
"""


class Clock:
    """Times the tests alone: what comes before and after them is the same whatever the mode."""

    seconds = 0.0

    @pytest.hookimpl(wrapper=True)
    def pytest_runtestloop(self) -> Generator[None, object, object]:
        began = time.perf_counter()
        result = yield
        self.seconds = time.perf_counter() - began
        return result


def run() -> Iterator[Row]:
    no_other_plugins = mock.patch.dict(os.environ, PYTEST_DISABLE_PLUGIN_AUTOLOAD="1")
    with TemporaryDirectory() as folder, no_other_plugins, one_thread():
        for scope, what in (("session", "sharing one model"), ("function", "with a model each")):
            suite = Path(folder, f"test_{scope}.py")
            suite.write_text(SUITE.format(scope=scope, tests=TESTS), encoding="utf-8")
            options = {"off": "--evalmode=off", "default": "--evalmode=enforce", "strict": "--evalmode-strict"}
            times = interleaved({name: _tests(suite, option) for name, option in options.items()}, seconds=20)
            for rules in ("default", "strict"):
                yield Row(f"{TESTS} tests {what}, {rules}", 100 * (times.ratio(rules, "off") - 1), "%")
                yield Row(f"{TESTS} tests {what}, {rules}: each", 1e3 * times.extra(rules, "off") / TESTS, "ms")


def _tests(suite: Path, option: str) -> Measure:
    def run() -> float:
        clock = Clock()
        options = ["-c", os.devnull, "-p", "no:cacheprovider", "-p", "pytest_evalmode.plugin", option]
        with contextlib.redirect_stdout(io.StringIO()) as said:
            assert pytest.main([*options, str(suite)], plugins=[clock]) == 0, said.getvalue()
        return clock.seconds

    return run
