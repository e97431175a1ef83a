"""The sums of all tensors of a device in one launch, each word read once; what `devices` does by torch's operators.

A program of the kernel sums up one segment.  Importing this needs Triton.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext

import torch
import triton  # type: ignore[import-not-found,import-untyped,unused-ignore]
import triton.language as tl  # type: ignore[import-not-found,import-untyped,unused-ignore]
from torch import Tensor

from pytest_evalmode.observe.state import devices

_BLOCK = 2048
"""The words that a program takes at a time."""


def sums(parts: Iterable[Tensor]) -> list[Tensor]:
    """The sums of tensors of one device, all of them bytes; of each as bytes."""
    parts = list(parts)
    if not parts:
        return []
    device = parts[0].device
    table, counts = _segments(parts)
    found = torch.empty(len(table), 2, dtype=torch.int64, device=device)
    with nullcontext() if device.index is None else torch.get_device_module(device).device(device):
        _sum_up[(len(table),)](table.to(device), found, STEP=devices.STEP, MIX=devices.MIX, BLOCK=_BLOCK, num_warps=8)
    return [each.view(-1).view(torch.uint8) for each in torch.split(found, counts)]


def _segments(parts: list[Tensor]) -> tuple[Tensor, list[int]]:
    """Where each segment begins and how many bytes it has, and how many segments each tensor has."""
    size = devices.SEGMENT_BYTES
    host = torch.device("cpu")
    begins, lengths = (
        torch.tensor(column, dtype=torch.int64, device=host)
        for column in ([part.data_ptr() for part in parts], [part.numel() for part in parts])
    )
    counts = (lengths + size - 1) // size
    first = (counts.cumsum(0) - counts).repeat_interleave(counts)
    offsets = (torch.arange(len(first), dtype=torch.int64, device=host) - first) * size
    rest = lengths.repeat_interleave(counts) - offsets
    return torch.stack([begins.repeat_interleave(counts) + offsets, rest.clamp(max=size)], 1), counts.tolist()


@triton.jit  # type: ignore[misc,untyped-decorator,unused-ignore]
def _mixed(word, key, MIX: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803
    word ^= key
    word ^= (word >> 32) & 0xFFFFFFFF
    word *= MIX
    word ^= (word >> 32) & 0xFFFFFFFF
    word *= MIX
    return word ^ ((word >> 32) & 0xFFFFFFFF)


@triton.jit  # type: ignore[misc,untyped-decorator,unused-ignore]
def _sum_up(table, found, STEP: tl.constexpr, MIX: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803
    segment = tl.program_id(0)
    address = tl.load(table + 2 * segment)
    size = tl.load(table + 2 * segment + 1)
    lanes = tl.arange(0, BLOCK).to(tl.int64)
    plain = tl.zeros([BLOCK], tl.int64)
    weighted = tl.zeros([BLOCK], tl.int64)
    whole = size // (8 * BLOCK) * BLOCK
    if address % 8 != 0:
        whole = whole * 0
    words = address.to(tl.pointer_type(tl.int64))
    for start in range(0, whole, BLOCK):
        key = (start + lanes) * STEP
        mixed = _mixed(tl.load(words + start + lanes), key, MIX)
        plain += mixed
        weighted += mixed * key
    # What does not begin as words do, and the rest: byte by byte.
    data = address.to(tl.pointer_type(tl.uint8))
    for start in range(whole, (size + 7) // 8, BLOCK):
        at = start + lanes
        word = tl.zeros([BLOCK], tl.int64)
        for i in tl.static_range(8):
            byte = tl.load(data + 8 * at + i, mask=8 * at + i < size, other=0).to(tl.int64)
            word |= byte << (8 * i)
        key = at * STEP
        mixed = tl.where(8 * at < size, _mixed(word, key, MIX), 0)
        plain += mixed
        weighted += mixed * key
    tl.store(found + 2 * segment, tl.sum(plain))
    tl.store(found + 2 * segment + 1, tl.sum(weighted))
