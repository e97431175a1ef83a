"""The cost of guarding every test of a suite, compared with the same suite under `--evalmode=off`."""

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
from torch import nn

from benchmarks.models import bert, linears, resnet50
from benchmarks.state import by_hand, guard, read
from benchmarks.timing import Measure, Row, Times, interleaved, one_thread, warm
from pytest_evalmode.observe.state import write_tracking

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
    """A plugin that times the tests without start-up and reporting, which take the same time in every mode."""

    seconds = 0.0

    @pytest.hookimpl(wrapper=True)
    def pytest_runtestloop(self) -> Generator[None, object, object]:
        start = time.perf_counter()
        result = yield
        self.seconds = time.perf_counter() - start
        return result


def run() -> Iterator[Row]:
    yield from small_model()
    yield from shared_models()


def shared_models() -> Iterator[Row]:
    """Measure the windows of a suite over one unchanged model, with and without the kernel's write tracking."""
    for what, make, bar in (
        ("ResNet-50", resnet50, 0.15),
        ("BERT-base", bert, 0.1),
        ("500 M parameters", lambda: linears(500), 0.05),
        ("1 B parameters", lambda: linears(1000), 0.05),
    ):
        times = _windows(make())
        for name in ("tracked", "full read", "by hand"):
            yield Row(f"{what}: {TESTS} windows, {name}", TESTS * times[name], "s")
            yield Row(
                f"{what}: {name}, relative to one read",
                times.ratio(name, "read"),
                "x",
                bar if name == "tracked" else None,
            )
        yield Row(f"{what}: tracked, relative to full read", times.ratio("tracked", "full read"), "x", 0.1)


def _windows(model: nn.Module) -> Times:
    def full_read() -> float:
        write_tracking.disable()
        try:
            return warm(lambda: guard(model))
        finally:
            write_tracking.reset()

    return interleaved(
        {
            "tracked": lambda: warm(lambda: guard(model)),
            "full read": full_read,
            "read": lambda: warm(lambda: read(model)),
            "by hand": lambda: warm(lambda: by_hand(model)),
        }
    )


def small_model() -> Iterator[Row]:
    no_other_plugins = mock.patch.dict(os.environ, PYTEST_DISABLE_PLUGIN_AUTOLOAD="1")
    with TemporaryDirectory() as folder, no_other_plugins, one_thread():
        for scope, what in (("session", "sharing one model"), ("function", "with one model per test")):
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
        with contextlib.redirect_stdout(io.StringIO()) as output:
            assert pytest.main([*options, str(suite)], plugins=[clock]) == 0, output.getvalue()
        return clock.seconds

    return run
