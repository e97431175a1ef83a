"""Pending work on other streams when a window opens or closes, and transfers of pinned memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import nn

from tests.nets import rules, watching

CYCLES = 200_000_000  # a tenth of a second


@contextmanager
def on_busy_stream(device: torch.device) -> Iterator[None]:
    """Run on another stream, after a tenth of a second of other work."""
    with torch.cuda.stream(torch.cuda.Stream(device)):  # type: ignore[no-untyped-call]
        torch.cuda._sleep(CYCLES)  # type: ignore[no-untyped-call]
        yield


def linear(device: torch.device, width: int) -> nn.Linear:
    net = nn.Linear(width, width).to(device).eval()
    torch.cuda.synchronize()
    return net


@pytest.mark.parametrize("width", [4, 512], ids=["small", "large"])
def test_a_pending_write_when_the_window_closes_is_reported(cuda: torch.device, width: int) -> None:
    net = linear(cuda, width)
    with watching(net) as g, on_busy_stream(cuda):
        net.weight.detach().add_(1)
    assert rules(g) == {"state-mutated"}


@pytest.mark.parametrize("width", [4, 512], ids=["small", "large"])
def test_a_pending_write_when_the_window_opens_is_clean(cuda: torch.device, width: int) -> None:
    net = linear(cuda, width)
    with on_busy_stream(cuda):
        net.weight.detach().add_(1)
    with watching(net) as g:
        pass
    assert rules(g) == set()


def test_a_pending_write_to_a_sparse_tensor_is_reported(cuda: torch.device) -> None:
    net = nn.Module()
    net.tensor = nn.Buffer(torch.eye(8, device=cuda).to_sparse())
    with watching(net) as g, on_busy_stream(cuda):
        net.get_buffer("tensor")._values().add_(1)
    assert rules(g) == {"state-mutated"}


def test_a_forward_on_another_stream_is_clean(cuda: torch.device) -> None:
    net = linear(cuda, 512)
    with watching() as g, torch.no_grad():
        x = torch.ones(2, 512, device=cuda)
        with on_busy_stream(cuda):
            net(x)
    assert rules(g) == set()


def test_a_pending_write_before_the_first_forward_is_clean(cuda: torch.device) -> None:
    net = linear(cuda, 512)
    with watching() as g, torch.no_grad():
        with on_busy_stream(cuda):
            net.weight.add_(1)
        net(torch.ones(2, 512, device=cuda))
    assert rules(g) == set()


def test_a_device_write_to_pinned_memory_is_reported(cuda: torch.device) -> None:
    net = nn.Linear(512, 512)
    net.weight.data = net.weight.data.pin_memory()
    ones = torch.ones(512, 512, device=cuda)
    torch.cuda.synchronize()
    with watching(net) as g:
        pass
    assert rules(g) == set()
    with watching(net) as g, on_busy_stream(cuda):
        net.weight.detach().copy_(ones, non_blocking=True)
    assert rules(g) == {"state-mutated"}


def test_a_copy_from_pinned_memory_is_reported(cuda: torch.device) -> None:
    net = linear(cuda, 512)
    source = torch.ones(512, 512).pin_memory()
    with watching(net) as g:
        net.weight.detach().copy_(source, non_blocking=True)
    assert rules(g) == {"state-mutated"}
