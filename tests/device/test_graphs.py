"""CUDA graphs: a capture works inside a window too, and changes by a replay are reported."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.nets import rules, watching

strictly = pytest.mark.parametrize("strict", [False, True], ids=["", "strict"])


class Graphed(nn.Module):
    """A model whose forward may write to its weight and may draw random numbers."""

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
    """Return a model, an input and its output, after cuBLAS was initialized."""
    net, x = Graphed(**options).to(device).eval(), torch.ones(2, 512, device=device)
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side), torch.no_grad():
        out = F.linear(x, net.fc.weight, net.fc.bias)
    torch.cuda.synchronize()
    return net, x, out


@strictly
@pytest.mark.parametrize("given", [True, False], ids=["watched before", "first seen in the capture"])
def test_a_capture_and_a_replay_are_clean(cuda: torch.device, given: bool, strict: bool) -> None:
    net, x, expected = ready(cuda)
    with watching(*[net] * given, strict=strict) as g, torch.no_grad():
        graph, out = capture(net, x)
        graph.replay()
    torch.testing.assert_close(out, expected)
    assert not g.window.failures
    assert rules(g) == set()
    assert "Graphed" in {model.type for model in g.window.models}


@pytest.mark.parametrize("given", [True, False], ids=["watched before", "first seen in the capture"])
def test_a_replay_that_writes_is_reported(cuda: torch.device, given: bool) -> None:
    net, x, _ = ready(cuda, writes=True)
    with watching(*[net] * given) as g, torch.no_grad():
        graph, _ = capture(net, x)
        graph.replay()
    assert rules(g) == {"state-mutated"}
    assert not g.window.failures


def test_a_capture_without_a_replay_changes_nothing(cuda: torch.device) -> None:
    net, x, _ = ready(cuda, writes=True)
    with watching() as g, torch.no_grad():
        capture(net, x)
    assert rules(g) == set()


def test_a_write_after_a_capture_is_reported(cuda: torch.device) -> None:
    net, x, _ = ready(cuda)
    with watching() as g, torch.no_grad():
        capture(net, x)
        net.fc.weight[3, 4] += 1
    assert rules(g) == {"state-mutated"}


@strictly
def test_a_capture_with_dropout_works(cuda: torch.device, strict: bool) -> None:
    """A draw by a replay, outside of any forward, is not reported."""
    net, x, expected = ready(cuda, draws=True)
    with watching(strict=strict) as g, torch.no_grad():
        graph, out = capture(net, x)
        graph.replay()
        first = out.clone()
        graph.replay()
    assert not torch.equal(first, out)
    assert not torch.equal(first, expected)
    assert not g.window.failures


def test_graphed_callables_are_clean(cuda: torch.device) -> None:
    net, x, expected = ready(cuda)
    with watching() as g, torch.no_grad():
        graphed: nn.Module = torch.cuda.make_graphed_callables(net, (x,))  # type: ignore[assignment]
        out = graphed(x).clone()
    torch.testing.assert_close(out, expected)
    assert not g.window.failures
    assert "state-mutated" not in rules(g)


def test_capture_end_is_restored(cuda: torch.device) -> None:
    before = torch.cuda.CUDAGraph.capture_end
    net, x, _ = ready(cuda)
    with watching(), torch.no_grad():
        capture(net, x)
        assert torch.cuda.CUDAGraph.capture_end is before
    assert torch.cuda.CUDAGraph.capture_end is before
