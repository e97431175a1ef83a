"""Models that first run during the capture of a CUDA graph: they are read after the capture."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from pytest_evalmode.observe.state import devices
from tests.nets import Net, batch, rules, watching

Graph = torch.cuda.CUDAGraph


class Capture:
    """A fake capture of a CUDA graph, which lasts from `begin()` to `end()`."""

    in_progress = False

    def begin(self) -> None:
        self.in_progress = True

    def end(self) -> None:
        Graph.capture_end(SimpleNamespace())  # type: ignore[arg-type]


@pytest.fixture
def capture(monkeypatch: pytest.MonkeyPatch) -> Capture:
    capture = Capture()
    monkeypatch.setattr(Graph, "capture_end", lambda self: setattr(capture, "in_progress", False))
    monkeypatch.setattr(devices, "is_capturing", lambda: capture.in_progress)
    return capture


def run(net: Net) -> None:
    with torch.no_grad():
        net(batch())


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("writes", [False, True])
def test_a_model_that_first_runs_during_a_capture_is_watched(capture: Capture, writes: bool, strict: bool) -> None:
    net, original = Net().eval(), Graph.capture_end
    with watching(strict=strict) as g:
        capture.begin()
        run(net)
        run(net)
        capture.end()
        assert Graph.capture_end is original
        if writes:
            net.body.weight.detach().add_(1)
    assert rules(g) == ({"state-mutated"} if writes else set())
    assert not g.window.failures


def test_a_window_may_end_during_a_capture(capture: Capture) -> None:
    original = Graph.capture_end
    with watching() as g:
        capture.begin()
        run(Net().eval())
    assert not g.violations
    assert Graph.capture_end is original


def test_a_model_may_be_freed_during_a_capture(capture: Capture) -> None:
    with watching() as g:
        capture.begin()
        run(Net().eval())
        capture.end()
    assert not g.violations
    assert not g.window.failures
