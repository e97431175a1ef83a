"""What is still under way on another stream when a window opens or closes, and on the host's side of a transfer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import nn

from tests.nets import rules, watching

CYCLES = 200_000_000  # a tenth of a second


@contextmanager
def aside(device: torch.device) -> Iterator[None]:
    """On another stream, that has a tenth of a second to do before."""
    with torch.cuda.stream(torch.cuda.Stream(device)):  # type: ignore[no-untyped-call]
        torch.cuda._sleep(CYCLES)  # type: ignore[no-untyped-call]
        yield


def linear(device: torch.device, width: int) -> nn.Linear:
    net = nn.Linear(width, width).to(device).eval()
    torch.cuda.synchronize()
    return net


@pytest.mark.parametrize("width", [4, 512], ids=["small", "large"])
def test_a_write_under_way_as_the_window_closes(cuda: torch.device, width: int) -> None:
    net = linear(cuda, width)
    with watching(net) as g, aside(cuda):
        net.weight.detach().add_(1)
    assert rules(g) == {"state-mutated"}


@pytest.mark.parametrize("width", [4, 512], ids=["small", "large"])
def test_a_write_under_way_as_the_window_opens(cuda: torch.device, width: int) -> None:
    net = linear(cuda, width)
    with aside(cuda):
        net.weight.detach().add_(1)
    with watching(net) as g:
        pass
    assert rules(g) == set()


def test_a_write_under_way_to_what_is_sparse(cuda: torch.device) -> None:
    net = nn.Module()
    net.tensor = nn.Buffer(torch.eye(8, device=cuda).to_sparse())
    with watching(net) as g, aside(cuda):
        net.get_buffer("tensor")._values().add_(1)
    assert rules(g) == {"state-mutated"}


def test_a_forward_on_another_stream(cuda: torch.device) -> None:
    net = linear(cuda, 512)
    with watching() as g, torch.no_grad():
        x = torch.ones(2, 512, device=cuda)
        with aside(cuda):
            net(x)
    assert rules(g) == set()


def test_a_write_under_way_before_the_first_forward(cuda: torch.device) -> None:
    net = linear(cuda, 512)
    with watching() as g, torch.no_grad():
        with aside(cuda):
            net.weight.add_(1)
        net(torch.ones(2, 512, device=cuda))
    assert rules(g) == set()


def test_pinned_memory_that_the_device_writes(cuda: torch.device) -> None:
    net = nn.Linear(512, 512)
    net.weight.data = net.weight.data.pin_memory()
    ones = torch.ones(512, 512, device=cuda)
    torch.cuda.synchronize()
    with watching(net) as g:
        pass
    assert rules(g) == set()
    with watching(net) as g, aside(cuda):
        net.weight.detach().copy_(ones, non_blocking=True)
    assert rules(g) == {"state-mutated"}


def test_pinned_memory_that_the_device_reads(cuda: torch.device) -> None:
    net = linear(cuda, 512)
    source = torch.ones(512, 512).pin_memory()
    with watching(net) as g:
        net.weight.detach().copy_(source, non_blocking=True)
    assert rules(g) == {"state-mutated"}
