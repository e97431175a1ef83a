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


CLASSES = """
from torch import nn
classes = [type(f"Module{{i}}", (nn.Module,), {{}}) for i in range({number})]
"""

NO_MODEL = """
import unittest, torch

class TestScheduler(unittest.TestCase):
    def step(self):
        x = torch.ones(4, 3, 8, 8)
        for t in range(2000):
            x = x - 0.01 * (x.sin() + torch.full_like(x, t))
        assert x.isfinite().all()
"""
NO_MODEL += "".join(f"    def test_{i}(self): self.step()\n" for i in range(50))

FLOWS = """
import pytest, torch, zuko

@pytest.mark.parametrize("kind", ["NICE", "MAF", "NSF", "SOSPF", "NAF", "UNAF", "CNF", "GF", "BPF"])
def test_flow(kind):
    flow = getattr(zuko.flows, kind)(3, 5)
    x, context = torch.randn(64, 3), torch.randn(5)
    loss = -flow(context).log_prob(x).mean()
    torch.autograd.grad(loss, list(flow.parameters()))
    transform = flow(context).transform
    assert torch.allclose(transform.inv(transform(x)), x, atol=1e-2)
    torch.autograd.functional.jacobian(transform, x[0])
"""

FAILING_MODELS = """
import unittest, torch
from torch import nn

class TestModel(unittest.TestCase):
    def run_model(self):
        layers = [nn.TransformerEncoderLayer(32, 4, 64, batch_first=True) for _ in range(4)]
        model = nn.Sequential(nn.Embedding(100, 32), *layers, nn.Linear(32, 100))
        for _ in range(3):
            assert model(torch.zeros(8, 128, dtype=torch.long)).shape == (8, 128, 100)
"""
FAILING_MODELS += "".join(f"    def test_{i}(self): self.run_model()\n" for i in range(50))


class Clock:
    """A plugin that measures the processor time of the tests, without start-up and reporting."""

    seconds = 0.0

    @pytest.hookimpl(wrapper=True)
    def pytest_runtestloop(self) -> Generator[None, object, object]:
        start = time.process_time()
        result = yield
        self.seconds = time.process_time() - start
        return result


def run() -> Iterator[Row]:
    yield from small_model()
    yield from kinds_of_suites()
    yield from many_classes()
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


def kinds_of_suites() -> Iterator[Row]:
    """Guard suites like those of schedulers, normalizing flows and transformers, where most tests have violations."""
    no_other_plugins = mock.patch.dict(os.environ, PYTEST_DISABLE_PLUGIN_AUTOLOAD="1")
    with TemporaryDirectory() as folder, no_other_plugins, one_thread():
        for name, source, what, bar in (
            ("test_no_model", NO_MODEL, "TestCases that run no model", 5),
            ("test_flows", FLOWS, "normalizing flows: small forwards and autograd.grad()", 15),
            ("test_failing", FAILING_MODELS, "models of TestCases, all with violations", 10),
        ):
            suite = Path(folder, f"{name}.py")
            suite.write_text(source, encoding="utf-8")
            guarded = _tests(suite, "--evalmode=warn", "--evalmode-all")
            times = interleaved({"off": _tests(suite, "--evalmode=off"), "guarded": guarded}, seconds=20)
            yield Row(what, 100 * (times.ratio("guarded", "off") - 1), "%", bar)


def many_classes() -> Iterator[Row]:
    """Compare what a guarded test of a small model costs with the same among 1 500 more module classes."""
    no_other_plugins = mock.patch.dict(os.environ, PYTEST_DISABLE_PLUGIN_AUTOLOAD="1")
    with TemporaryDirectory() as folder, no_other_plugins, one_thread():
        runs: dict[str, Measure] = {}
        for number in (0, 1500):
            suite = Path(folder, f"test_{number}_classes.py")
            source = CLASSES.format(number=number) + SUITE.format(scope="function", tests=TESTS)
            suite.write_text(source, encoding="utf-8")
            runs |= {f"{number}, {mode}": _tests(suite, f"--evalmode={mode}") for mode in ("off", "enforce")}
        times = interleaved(runs, seconds=20)
        few, many = (times.extra(f"{number}, enforce", f"{number}, off") for number in (0, 1500))
        yield Row("a guarded test among 1 500 more module classes, relative to one without them", many / few, "x", 1.5)


def _tests(suite: Path, *options: str) -> Measure:
    def run() -> float:
        clock = Clock()
        arguments = [
            "-c",
            os.devnull,
            "-p",
            "no:cacheprovider",
            "-p",
            "pytest_evalmode.plugin",
            "-W",
            "ignore",
            *options,
        ]
        with contextlib.redirect_stdout(io.StringIO()) as output:
            assert pytest.main([*arguments, str(suite)], plugins=[clock]) == 0, output.getvalue()
        return clock.seconds

    return run
