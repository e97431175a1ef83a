"""The guard does not affect the device: no extra synchronization, equal results, little memory, no CUDA context."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pytest_evalmode.observe.state import devices
from tests.device.test_state import run, wide
from tests.nets import rules, watching

ROOT = Path(__file__).parent.parent.parent


@contextmanager
def raising() -> Iterator[None]:
    """Make torch raise where the host would wait for the device."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_forward_does_not_wait(cuda: torch.device) -> None:
    net, x = wide(cuda), torch.ones(2, 320, device=cuda)
    with watching(net) as g, torch.no_grad(), raising():
        net(x)
    assert not g.window.failures
    assert not g.violations


def test_sync_debug_mode_does_not_affect_the_guard(cuda: torch.device) -> None:
    net, x = wide(cuda), torch.ones(2, 320, device=cuda)
    with raising():
        with watching() as g, torch.no_grad():
            net(x)
            assert torch.cuda.get_sync_debug_mode() == 2
            net.fc.weight[0].add_(1)
        assert torch.cuda.get_sync_debug_mode() == 2
    assert not g.window.failures
    assert rules(g) == {"state-mutated"}


def calls(net: nn.Module, x: torch.Tensor) -> Counter[str]:
    """Count the CUDA calls of a forward by name."""
    kinds = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=kinds) as profile:
        net(x)
    return Counter(event.name for event in profile.events() if event.name.startswith(("cuda", "cu")))


def test_a_guarded_forward_makes_no_more_cuda_calls(cuda: torch.device) -> None:
    net, x = wide(cuda), torch.ones(2, 320, device=cuda)
    with torch.no_grad():
        calls(net, x)
        plain = calls(net, x)
        with watching(net):
            guarded = calls(net, x)
    for counts in (plain, guarded):  # called when a generator's offset is read; it does not wait
        del counts["cudaStreamIsCapturing"]
    assert guarded == plain
    assert any("Launch" in name for name in plain), plain


def test_guarded_and_unguarded_results_are_equal(device: torch.device) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 900, 10))
    net, x = net.to(device).eval(), torch.randn(4, 3, 32, 32).to(device)
    numbers = []
    for guarded in (False, True):
        torch.manual_seed(1)
        with watching(*[net] * guarded, strict=guarded), torch.no_grad():
            numbers += [net(x), torch.rand(5, device=device), torch.rand(5)]
    for plain, watched in zip(numbers[:3], numbers[3:], strict=True):
        assert torch.equal(plain, watched)


def test_guarding_needs_little_memory(cuda: torch.device) -> None:
    sizes = (50_000_000, 50_000_001, 3, *[1000] * 500)
    net = nn.ParameterList(torch.rand(size, device=cuda) for size in sizes)
    with watching(net):  # for one-time initialization
        pass
    gc.collect()  # leftovers of earlier tests
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    with watching(net) as g:
        pass
    assert not g.window.failures
    assert torch.cuda.max_memory_allocated() - before <= 64e6
    assert torch.cuda.memory_allocated() == before


# --- no new CUDA context


def python(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


GUARDED = """
import torch
from torch import nn
from pytest_evalmode import guard, HygieneError
net = nn.Linear(300, 300).eval()
try:
    with guard(net, strict=True), torch.no_grad():
        net(torch.ones(2, 300))
        net.weight.add_(1)
except HygieneError as error:
    print(*{violation.rule for violation in error.violations})
"""


def test_a_model_on_the_host_creates_no_cuda_context(device: torch.device) -> None:
    output = python(GUARDED + "print(torch.cuda.is_initialized())")
    assert output.split() == ["state-mutated", "False"]


def test_a_hidden_device_is_not_used(device: torch.device) -> None:
    output = python(GUARDED + "print(torch.cuda.is_available())", CUDA_VISIBLE_DEVICES="")
    assert output.split() == ["state-mutated", "False"]


def test_an_unused_device_gets_no_context(cuda: torch.device) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs a second device")
    code = GUARDED.replace(".eval()", ".cuda(1).eval()").replace("(2, 300)", "(2, 300, device=1)")
    output = python(code + "print(torch._C._cuda_hasPrimaryContext(0))")
    assert output.split() == ["state-mutated", "False"]


# --- a whole run


SUITE = """
import pytest, torch
from torch import nn

@pytest.fixture(scope="module")
def net():
    return nn.Sequential(nn.Linear(300, 300), nn.BatchNorm1d(300)).to("DEVICE")

@pytest.mark.inference
@torch.no_grad()
def test_clean(net):
    net.eval()(torch.ones(2, 300, device="DEVICE"))

@pytest.mark.inference
@torch.no_grad()
def test_trains(net):
    net.train()(torch.ones(2, 300, device="DEVICE"))
"""


def test_marked_tests_run_on_the_device(device: torch.device, tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(SUITE.replace("DEVICE", str(device)), encoding="utf-8")
    (tmp_path / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
    code = """
import sys, pytest
from importlib.metadata import entry_points
there = any(point.value == "pytest_evalmode.plugin" for point in entry_points(group="pytest11"))
sys.exit(pytest.main(["-q", *([] if there else ["-p", "pytest_evalmode.plugin"]), sys.argv[1]]))
"""
    command: list[Any] = [sys.executable, "-c", code, tmp_path]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": str(ROOT)}, cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert "1 failed, 1 passed" in done.stdout, done.stdout + done.stderr
    assert "train-mode: net" in done.stdout


def test_state_is_read_only_when_a_window_opens_and_closes(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The number of forwards does not matter."""
    net = wide(device)
    reads: list[int] = []
    original = devices.read

    def read(tensors: Any) -> dict[int, bytes]:
        data = original(tensors)
        reads.append(len(data))
        return data

    monkeypatch.setattr(devices, "read", read)
    with watching(net):
        for _ in range(5):
            run(net)
    assert [read for read in reads if read] == ([] if device.type == "cpu" else [len(net.state_dict())] * 2)
