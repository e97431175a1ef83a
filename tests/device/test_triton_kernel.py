"""The Triton kernel has the same result as torch's operators.

Without a GPU, run it in Triton's interpreter: `TRITON_INTERPRET=1 python -m pytest tests/device/test_triton_kernel.py`.
"""

from __future__ import annotations

import os

import pytest
import torch
from torch import Tensor

from pytest_evalmode.observe.state import devices

SEGMENT, SMALL = devices.SEGMENT_BYTES, devices.SMALL_BYTES
BLOCK = 8 * 512
SIZES = [0, 1, 7, 8, 9, BLOCK - 1, BLOCK, BLOCK + 8, SMALL - 1, SMALL, SMALL + 1, 17 * BLOCK + 8, SEGMENT - 8, SEGMENT]
SIZES += [SEGMENT + 1, 2 * SEGMENT + BLOCK + 3]


@pytest.fixture
def kernel(device: torch.device) -> devices.Reader:
    pytest.importorskip("triton")
    if device.type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("needs a GPU or TRITON_INTERPRET=1")
    from pytest_evalmode.observe.state.devices import triton_kernel

    return triton_kernel.read


def bits(size: int, device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(size)
    return torch.randint(256, (size,), dtype=torch.uint8, generator=generator).to(device)


def matches_host(kernel: devices.Reader, parts: list[Tensor]) -> bool:
    data = kernel(dict(enumerate(parts)))
    expected = devices._read_on_host({i: part.cpu() for i, part in enumerate(parts)})
    return len(data) == len(parts) and data == expected


@pytest.mark.parametrize("offset", [0, 1, 4, 8, 16])
def test_tensors_of_every_size_match_the_host(device: torch.device, kernel: devices.Reader, offset: int) -> None:
    assert matches_host(kernel, [bits(size + offset, device)[offset:] for size in SIZES])


def test_no_tensors_give_no_result(kernel: devices.Reader) -> None:
    assert kernel({}) == {}


def test_several_launches_match_the_host(
    device: torch.device, kernel: devices.Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "CHUNK_BYTES", SEGMENT)
    assert matches_host(kernel, [bits(size, device) for size in (SMALL, SMALL - 3, SEGMENT, 3, SMALL, SMALL, 1)])


@pytest.mark.parametrize("number", [1, 2, 3, 15, 16, 17, 100])
def test_any_number_of_tensors_matches_the_host(device: torch.device, kernel: devices.Reader, number: int) -> None:
    assert matches_host(kernel, [bits(3 * i + 1 if i % 16 else SMALL + i + 1, device) for i in range(number)])


@pytest.mark.parametrize("fill", [0, 255])
def test_constants_match_the_host(device: torch.device, kernel: devices.Reader, fill: int) -> None:
    parts = [torch.full((size,), fill, dtype=torch.uint8, device=device) for size in (SEGMENT, SEGMENT + 5)]
    assert matches_host(kernel, parts)


def test_the_kernel_is_used_for_large_models(accelerator: torch.device, kernel: devices.Reader) -> None:
    device = torch.ones(1, device=accelerator).device
    assert devices._triton_reader(device) is kernel
    assert devices._choose_reader(device, devices.MIN_KERNEL_BYTES) is kernel
    assert devices._choose_reader(device, devices.MIN_KERNEL_BYTES - 1) is not kernel
