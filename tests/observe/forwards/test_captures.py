"""A model that first runs while a graph is captured is read once the capture has ended."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from pytest_evalmode.observe.state import devices
from tests.nets import Net, batch, rules, watching

Graph = torch.cuda.CUDAGraph


class Capture:
    """A graph that is being captured until it ends."""

    under_way = False

    def begin(self) -> None:
        self.under_way = True

    def end(self) -> None:
        Graph.capture_end(SimpleNamespace())  # type: ignore[arg-type]


@pytest.fixture
def capture(monkeypatch: pytest.MonkeyPatch) -> Capture:
    capture = Capture()
    monkeypatch.setattr(Graph, "capture_end", lambda self: setattr(capture, "under_way", False))
    monkeypatch.setattr(devices, "is_capturing", lambda: capture.under_way)
    return capture


def run(net: Net) -> None:
    with torch.no_grad():
        net(batch())


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("writes", [False, True])
def test_first_run_in_a_capture(capture: Capture, writes: bool, strict: bool) -> None:
    net, there = Net().eval(), Graph.capture_end
    with watching(strict=strict) as g:
        capture.begin()
        run(net)
        run(net)
        capture.end()
        assert Graph.capture_end is there
        if writes:
            net.body.weight.detach().add_(1)
    assert rules(g) == ({"state-mutated"} if writes else set())
    assert not g.failures


def test_the_window_ends_in_the_capture(capture: Capture) -> None:
    there = Graph.capture_end
    with watching() as g:
        capture.begin()
        run(Net().eval())
    assert not g.violations
    assert Graph.capture_end is there


def test_it_dies_in_the_capture(capture: Capture) -> None:
    with watching() as g:
        capture.begin()
        run(Net().eval())
        capture.end()
    assert not g.violations
    assert not g.failures
