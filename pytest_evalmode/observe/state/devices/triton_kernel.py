"""A Triton kernel that reads all tensors of a device in one launch, with the same result as torch's operators.

Each program of the kernel computes the sums of one segment of a large tensor, or copies a small tensor.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from typing import NamedTuple

import torch
import triton  # type: ignore[import-not-found,import-untyped,unused-ignore]
import triton.language as tl  # type: ignore[import-not-found,import-untyped,unused-ignore]
from torch import Tensor

from pytest_evalmode.observe.state import devices

BLOCK = 1024
"""How many words a program processes at a time."""
WARPS = 4
STAGES = 3

_HOST = torch.device("cpu")


def read(parts: Mapping[int, Tensor]) -> dict[int, bytes]:
    """Read tensors of one device: return the bytes of small ones and the sums of large ones, by key."""
    blocks = [_block(key, tensor) for key, tensor in parts.items()]
    data: dict[int, bytes] = {}
    for first, last in devices.split_into_chunks(block.output_size for block in blocks):
        data.update(_read(blocks[first:last], parts[blocks[first].key].device))
    return data


class _Block(NamedTuple):
    """The memory of a tensor."""

    key: int
    address: int
    size: int
    programs: int
    """How many programs read it."""
    output_size: int
    """How many bytes they return."""


def _block(key: int, tensor: Tensor) -> _Block:
    size = tensor.nbytes
    if size <= devices.SMALL_BYTES:
        return _Block(key, tensor.data_ptr(), size, 1, size)
    segments = -(-size // devices.SEGMENT_BYTES)
    return _Block(key, tensor.data_ptr(), size, segments, 16 * segments)


def _read(blocks: list[_Block], device: torch.device) -> Iterator[tuple[int, bytes]]:
    """Read some tensors with one launch."""
    rows: list[tuple[int, int, int, int]] = []
    programs = words = 0
    for block in blocks:
        rows.append((block.address, block.size, programs, words))
        programs += block.programs
        words += -(-block.output_size // 8)
    output = torch.empty(words, dtype=torch.int64, device=device)
    launch(torch.tensor(rows, dtype=torch.int64, device=_HOST).to(device), output, programs)
    host = output.cpu()
    data = ctypes.string_at(host.data_ptr(), host.nbytes)
    for block, (*_, offset) in zip(blocks, rows, strict=True):
        yield block.key, data[8 * offset : 8 * offset + block.output_size]


def launch(table: Tensor, output: Tensor, programs: int) -> None:
    """Launch the kernel.

    Args:
        table: one row per tensor (int64, (n, 4)): address, size in bytes, first program, offset in `output` in words.
        output: where to write bytes and sums (int64, 1-D).
        programs: the number of programs of all tensors.
    """
    device = table.device
    with nullcontext() if device.index is None else torch.get_device_module(device).device(device):
        _read_kernel[(programs,)](
            table,
            output,
            len(table),
            len(table).bit_length(),
            SMALL=devices.SMALL_BYTES,
            SEGMENT=devices.SEGMENT_BYTES,
            STEP=devices.STEP,
            MIX=devices.MIX,
            BLOCK=BLOCK,
            STAGES=STAGES,
            num_warps=WARPS,
        )


@triton.jit  # type: ignore[misc,untyped-decorator,unused-ignore]
def _mix(word, key, MIX: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803
    word ^= key
    word ^= (word >> 32) & 0xFFFFFFFF
    word *= MIX
    word ^= (word >> 32) & 0xFFFFFFFF
    word *= MIX
    return word ^ ((word >> 32) & 0xFFFFFFFF)


@triton.jit  # type: ignore[misc,untyped-decorator,unused-ignore]
def _word(data, at, size):  # type: ignore[no-untyped-def]
    """Load a word byte by byte, where words are not aligned or the last one is incomplete."""
    word = at * 0
    for i in tl.static_range(8):
        byte = tl.load(data + 8 * at + i, mask=8 * at + i < size, other=0).to(tl.int64)
        word |= byte << (8 * i)
    return word


@triton.jit(do_not_specialize=["tensors", "depth"])  # type: ignore[misc,untyped-decorator,unused-ignore]
def _read_kernel(  # type: ignore[no-untyped-def]
    table,
    output,
    tensors,
    depth,
    SMALL: tl.constexpr,  # noqa: N803
    SEGMENT: tl.constexpr,  # noqa: N803
    STEP: tl.constexpr,  # noqa: N803
    MIX: tl.constexpr,  # noqa: N803
    BLOCK: tl.constexpr,  # noqa: N803
    STAGES: tl.constexpr,  # noqa: N803
):
    program = tl.program_id(0).to(tl.int64)
    # Binary search for the last tensor whose first program is not after this one.
    row = tensors * 0
    beyond = tensors
    for _ in range(depth):
        middle = (row + beyond) // 2
        later = tl.load(table + 4 * middle + 2) > program
        beyond = tl.where(later, middle, beyond)
        row = tl.where(later, row, middle)
    address = tl.load(table + 4 * row)
    size = tl.load(table + 4 * row + 1)
    segment = program - tl.load(table + 4 * row + 2)
    out = output + tl.load(table + 4 * row + 3)
    address += segment * SEGMENT
    lanes = tl.arange(0, BLOCK).to(tl.int64)
    few = tl.arange(0, 128).to(tl.int64)
    data = address.to(tl.pointer_type(tl.uint8))
    words = address.to(tl.pointer_type(tl.int64))
    if size <= SMALL:
        whole = size // 8
        if address % 8 != 0:
            whole = whole * 0
        for start in range(0, whole, BLOCK):
            inside = start + lanes < whole
            tl.store(out + start + lanes, tl.load(words + start + lanes, mask=inside, other=0), mask=inside)
        for start in range(whole, (size + 7) // 8, 128):
            at = start + few
            tl.store(out + at, _word(data, at, size), mask=8 * at < size)
    else:
        size = tl.minimum(size - segment * SEGMENT, SEGMENT)
        whole = size // 8
        if address % 16 != 0:
            whole = whole * 0
        full = whole // BLOCK * BLOCK
        plain = tl.zeros([BLOCK], tl.int64)
        weighted = tl.zeros([BLOCK], tl.int64)
        for start in tl.range(0, full, BLOCK, num_stages=STAGES):
            key = (start + lanes) * STEP
            mixed = _mix(tl.load(tl.multiple_of(words + start + lanes, [16])), key, MIX)
            plain += mixed
            weighted += mixed * key
        if full < whole:
            inside = full + lanes < whole
            key = (full + lanes) * STEP
            mixed = tl.where(inside, _mix(tl.load(words + full + lanes, mask=inside, other=0), key, MIX), 0)
            plain += mixed
            weighted += mixed * key
        ends = tl.sum(plain)
        ends_weighted = tl.sum(weighted)
        if 8 * whole < size:
            rest = tl.zeros([128], tl.int64)
            rest_weighted = tl.zeros([128], tl.int64)
            for start in range(whole, (size + 7) // 8, 128):
                at = start + few
                key = at * STEP
                mixed = tl.where(8 * at < size, _mix(_word(data, at, size), key, MIX), 0)
                rest += mixed
                rest_weighted += mixed * key
            ends += tl.sum(rest)
            ends_weighted += tl.sum(rest_weighted)
        tl.store(out + 2 * segment, ends)
        tl.store(out + 2 * segment + 1, ends_weighted)
