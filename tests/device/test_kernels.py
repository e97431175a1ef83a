"""The kernel finds what torch's operators find.

On the host it runs where Triton interprets it: `TRITON_INTERPRET=1 python -m pytest tests/device/test_kernels.py`.
"""

from __future__ import annotations

import os

import pytest
import torch
from torch import Tensor

from pytest_evalmode.observe.state import devices

SEGMENT = devices.SEGMENT_BYTES
BLOCK = 8 * 2048
SIZES = [1, 7, 8, 9, BLOCK - 1, BLOCK, BLOCK + 8, SEGMENT - 8, SEGMENT, SEGMENT + 1, 2 * SEGMENT + BLOCK + 3]


@pytest.fixture
def kernel(device: torch.device) -> devices.Sum:
    pytest.importorskip("triton")
    if device.type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("Triton has nothing for the host but its interpreter")
    from pytest_evalmode.observe.state import kernels

    return kernels.sums


def bits(size: int, device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(size)
    return torch.randint(256, (size,), dtype=torch.uint8, generator=generator).to(device)


def as_torch_does(parts: list[Tensor], found: list[Tensor]) -> bool:
    expected = [devices._sums(part, torch.device("cpu")) for part in parts]
    return len(found) == len(parts) and all(map(torch.equal, (each.cpu() for each in found), expected))


@pytest.mark.parametrize("offset", [0, 1, 4, 8])
def test_every_size(device: torch.device, kernel: devices.Sum, offset: int) -> None:
    parts = [bits(size + offset, device)[offset:] for size in SIZES]
    assert as_torch_does(parts, kernel(parts))


def test_nothing(device: torch.device, kernel: devices.Sum) -> None:
    assert kernel([]) == []


@pytest.mark.parametrize("fill", [0, 255])
def test_constants(device: torch.device, kernel: devices.Sum, fill: int) -> None:
    parts = [torch.full((size,), fill, dtype=torch.uint8, device=device) for size in (SEGMENT, SEGMENT + 5)]
    assert as_torch_does(parts, kernel(parts))


def test_it_is_used(accelerator: torch.device, kernel: devices.Sum) -> None:
    here = torch.ones(1, device=accelerator).device
    assert devices._kernel(here) is kernel
    assert devices._way(here, devices.KERNEL_BYTES) is kernel
    assert devices._way(here, devices.KERNEL_BYTES - 1) is not kernel
