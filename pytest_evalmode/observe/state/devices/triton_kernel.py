"""All tensors of a device read in one launch, each word once; what `devices` does by torch's operators.

A program of the kernel sums up one segment of a large tensor, or copies a small one.  Importing this needs Triton.
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
"""The words that a program takes at a time."""
WARPS = 4
STAGES = 3

_HOST = torch.device("cpu")


def read(parts: Mapping[int, Tensor]) -> dict[int, bytes]:
    """Of each tensor its bytes if it is small, else its sums, by the keys given.  All lie on one device."""
    blocks = [_block(key, tensor) for key, tensor in parts.items()]
    found: dict[int, bytes] = {}
    for first, last in devices.split_into_chunks(block.found for block in blocks):
        found.update(_read(blocks[first:last], parts[blocks[first].key].device))
    return found


class _Block(NamedTuple):
    """The memory of a tensor."""

    key: int
    address: int
    size: int
    programs: int
    """How many look at it."""
    found: int
    """How many bytes they find."""


def _block(key: int, tensor: Tensor) -> _Block:
    size = tensor.nbytes
    if size <= devices.SMALL_BYTES:
        return _Block(key, tensor.data_ptr(), size, 1, size)
    segments = -(-size // devices.SEGMENT_BYTES)
    return _Block(key, tensor.data_ptr(), size, segments, 16 * segments)


def _read(blocks: list[_Block], device: torch.device) -> Iterator[tuple[int, bytes]]:
    """What one launch finds."""
    rows: list[tuple[int, int, int, int]] = []
    programs = words = 0
    for block in blocks:
        rows.append((block.address, block.size, programs, words))
        programs += block.programs
        words += -(-block.found // 8)
    found = torch.empty(words, dtype=torch.int64, device=device)
    launch(torch.tensor(rows, dtype=torch.int64, device=_HOST).to(device), found, programs)
    host = found.cpu()
    data = ctypes.string_at(host.data_ptr(), host.nbytes)
    for block, (*_, place) in zip(blocks, rows, strict=True):
        yield block.key, data[8 * place : 8 * place + block.found]


def launch(table: Tensor, found: Tensor, programs: int) -> None:
    """Fill in what is found of the tensors in a table: its address, size, first program, place."""
    device = table.device
    with nullcontext() if device.index is None else torch.get_device_module(device).device(device):
        _look[(programs,)](
            table,
            found,
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
def _mixed(word, key, MIX: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803
    word ^= key
    word ^= (word >> 32) & 0xFFFFFFFF
    word *= MIX
    word ^= (word >> 32) & 0xFFFFFFFF
    word *= MIX
    return word ^ ((word >> 32) & 0xFFFFFFFF)


@triton.jit  # type: ignore[misc,untyped-decorator,unused-ignore]
def _word(data, at, size):  # type: ignore[no-untyped-def]
    """A word from its bytes, where words do not begin as they should or the last one is cut short."""
    word = at * 0
    for i in tl.static_range(8):
        byte = tl.load(data + 8 * at + i, mask=8 * at + i < size, other=0).to(tl.int64)
        word |= byte << (8 * i)
    return word


@triton.jit(do_not_specialize=["tensors", "depth"])  # type: ignore[misc,untyped-decorator,unused-ignore]
def _look(  # type: ignore[no-untyped-def]
    table,
    found,
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
    # The last tensor whose first program is no later than this one.
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
    out = found + tl.load(table + 4 * row + 3)
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
            mixed = _mixed(tl.load(tl.multiple_of(words + start + lanes, [16])), key, MIX)
            plain += mixed
            weighted += mixed * key
        if full < whole:
            inside = full + lanes < whole
            key = (full + lanes) * STEP
            mixed = tl.where(inside, _mixed(tl.load(words + full + lanes, mask=inside, other=0), key, MIX), 0)
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
                mixed = tl.where(8 * at < size, _mixed(_word(data, at, size), key, MIX), 0)
                rest += mixed
                rest_weighted += mixed * key
            ends += tl.sum(rest)
            ends_weighted += tl.sum(rest_weighted)
        tl.store(out + 2 * segment, ends)
        tl.store(out + 2 * segment + 1, ends_weighted)
