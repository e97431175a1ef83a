"""CUDA graphs: a capture inside a window works as it does outside, and what a replay changes is told."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.nets import rules, watching

strictly = pytest.mark.parametrize("strict", [False, True], ids=["", "strict"])


class Graphed(nn.Module):
    """A forward that may write to its own weight, and may draw."""

    def __init__(self, *, writes: bool = False, draws: bool = False) -> None:
        super().__init__()
        self.fc = nn.Linear(512, 512)
        self.writes = writes
        self.draws = draws

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(x)
        if self.writes:
            self.fc.bias.add_(1)
        return F.dropout(out) if self.draws else out


def capture(net: nn.Module, x: Tensor) -> tuple[torch.cuda.CUDAGraph, Tensor]:
    gc.collect()  # a graph of an earlier test that is freed during a capture breaks it
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = net(x)
    return graph, out


def ready(device: torch.device, **options: bool) -> tuple[Graphed, Tensor, Tensor]:
    """A model, its input and what it gives for that, with cuBLAS set up."""
    net, x = Graphed(**options).to(device).eval(), torch.ones(2, 512, device=device)
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side), torch.no_grad():
        out = F.linear(x, net.fc.weight, net.fc.bias)
    torch.cuda.synchronize()
    return net, x, out


@strictly
@pytest.mark.parametrize("given", [True, False], ids=["watched before", "first seen in the capture"])
def test_captured_and_replayed(cuda: torch.device, given: bool, strict: bool) -> None:
    net, x, expected = ready(cuda)
    with watching(*[net] * given, strict=strict) as g, torch.no_grad():
        graph, out = capture(net, x)
        graph.replay()
    torch.testing.assert_close(out, expected)
    assert not g.failures
    assert rules(g) == set()
    assert "Graphed" in {model.type for model in g.models}


@pytest.mark.parametrize("given", [True, False], ids=["watched before", "first seen in the capture"])
def test_a_replay_that_writes(cuda: torch.device, given: bool) -> None:
    net, x, _ = ready(cuda, writes=True)
    with watching(*[net] * given) as g, torch.no_grad():
        graph, _ = capture(net, x)
        graph.replay()
    assert rules(g) == {"state-mutated"}
    assert not g.failures


def test_a_capture_that_is_not_replayed(cuda: torch.device) -> None:
    net, x, _ = ready(cuda, writes=True)
    with watching() as g, torch.no_grad():
        capture(net, x)
    assert rules(g) == set()


def test_written_after_a_capture(cuda: torch.device) -> None:
    net, x, _ = ready(cuda)
    with watching() as g, torch.no_grad():
        capture(net, x)
        net.fc.weight[3, 4] += 1
    assert rules(g) == {"state-mutated"}


@strictly
def test_dropout_in_a_capture(cuda: torch.device, strict: bool) -> None:
    """The capture works; what only a replay draws, outside of any forward, is not told."""
    net, x, expected = ready(cuda, draws=True)
    with watching(strict=strict) as g, torch.no_grad():
        graph, out = capture(net, x)
        graph.replay()
        first = out.clone()
        graph.replay()
    assert not torch.equal(first, out)
    assert not torch.equal(first, expected)
    assert not g.failures


def test_graphed_callables(cuda: torch.device) -> None:
    net, x, expected = ready(cuda)
    with watching() as g, torch.no_grad():
        graphed: nn.Module = torch.cuda.make_graphed_callables(net, (x,))  # type: ignore[assignment]
        out = graphed(x).clone()
    torch.testing.assert_close(out, expected)
    assert not g.failures
    assert "state-mutated" not in rules(g)


def test_capture_end_is_put_back(cuda: torch.device) -> None:
    before = torch.cuda.CUDAGraph.capture_end
    net, x, _ = ready(cuda)
    with watching(), torch.no_grad():
        capture(net, x)
        assert torch.cuda.CUDAGraph.capture_end is before
    assert torch.cuda.CUDAGraph.capture_end is before
