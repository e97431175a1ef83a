"""Tensors on an accelerator -> what tells them apart, worked out where they lie.

A small tensor comes to the host byte by byte; of a large one come two sums for each chunk of it.  All that a model has
on a device comes in one transfer, and what is needed there meanwhile is a few chunks, however large the model is.

For the sums a chunk is taken as 64-bit words.  Each is mixed with its position by steps that can all be undone, so a
change of one word always shows, and what several change is left to chance: 2**-64 for the plain sum, once more about
that for the one weighted by position.  Only integer operators are used: what they give is the same on every device and
in every order.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from itertools import accumulate, groupby
from types import ModuleType

import torch
from torch import Tensor, get_device_module
from torch.accelerator import current_accelerator

SMALL_BYTES = 1 << 16
"""What is brought over in less time than it takes to start the dozen kernels that would sum it up.

No less than what is kept by value.
"""

CHUNK_BYTES = 1 << 24

# The multipliers of splitmix64 and of degski's mixer, as int64 has them.
_STEP = 0x9E3779B97F4A7C15 - (1 << 64)
_MIX = 0xD6E8FEB86659FD93 - (1 << 64)


def in_use() -> ModuleType | None:
    """What torch calls the accelerator of this process, `torch.cuda` say, once the process has begun to use it."""
    device = current_accelerator()
    if device is None:
        return None
    module: ModuleType = get_device_module(device)
    # MPS knows no beginning: it is there, or it is not.
    begun: bool = getattr(module, "is_initialized", module.is_available)()
    return module if begun else None


def holds(tensor: Tensor) -> bool:
    """Whether a tensor lies on an accelerator."""
    return not tensor.is_cpu


def read(tensors: Iterable[tuple[int, Tensor]]) -> dict[int, bytes]:
    """Of each tensor its bytes if it is small, else its sums, by the keys given.

    The tensors fill their memory without a gap; the caller is `undisturbed`.
    """
    positions = cache(_positions)  # no longer than this call: they are as large as a chunk
    parts: dict[torch.device, dict[int, Tensor]] = {}
    for key, tensor in tensors:
        part = tensor.as_strided((tensor.numel(),), (1,)).view(torch.uint8)
        if part.numel() > SMALL_BYTES:
            part = _sums(part, positions, part.device if _is_exact(part.device) else torch.device("cpu"))
        parts.setdefault(part.device, {})[key] = part
    return {key: data for there in parts.values() for key, data in _brought(there)}


def _brought(parts: Mapping[int, Tensor]) -> Iterator[tuple[int, bytes]]:
    """The bytes of tensors on one device: in one transfer, unless together they are more than a chunk."""
    ends = accumulate(part.numel() for part in parts.values())
    for _, batch in groupby(zip(parts, ends, strict=True), lambda part: part[1] // CHUNK_BYTES):
        keys = [key for key, _ in batch]
        host = torch.cat([parts[key] for key in keys]).cpu()
        data = ctypes.string_at(host.data_ptr(), host.numel())
        start = 0
        for key in keys:
            end = start + parts[key].numel()
            yield key, data[start:end]
            start = end


def _sums(data: Tensor, positions: Callable[[torch.device], Tensor], where: torch.device) -> Tensor:
    """The sums of the chunks of a tensor, as bytes."""
    chunks = (data[start : start + CHUNK_BYTES].to(where) for start in range(0, data.numel(), CHUNK_BYTES))
    return torch.stack([sum_ for chunk in chunks for sum_ in _both_sums(chunk, positions(where))]).view(torch.uint8)


def _both_sums(chunk: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    words = _words(chunk)
    positions = positions[: words.numel()]
    mixed = words ^ positions
    low, high = (mixed.view(torch.int32)[half::2] for half in (0, 1))
    low ^= high  # a shift of int64 would drag the sign along; top bits, the signs of floats, must get down
    mixed *= _MIX
    low ^= high
    mixed *= _MIX
    low ^= high
    return mixed.sum(), mixed.mul_(positions).sum()


def _words(chunk: Tensor) -> Tensor:
    """Bytes as 64-bit words, copied where they do not end or begin as words do."""
    missing = -chunk.numel() % 8
    if missing or (chunk.storage_offset() | chunk.data_ptr()) % 8:
        chunk = torch.cat([chunk, chunk.new_zeros(missing)])
    return chunk.view(torch.int64)


def _positions(device: torch.device) -> Tensor:
    """A number for each word of a chunk, far from those that a tensor may hold in order."""
    return torch.arange(CHUNK_BYTES // 8, dtype=torch.int64, device=device).mul_(_STEP)


@cache
def _is_exact(device: torch.device) -> bool:
    """Whether a device sums as the CPU does; it is asked once.

    Integers on MPS have gone through float32 (https://github.com/pytorch/pytorch/issues/87753), or been held at their
    limits (https://github.com/pytorch/pytorch/issues/179415).  Where that is so, the chunks are summed on the host.
    """
    host = torch.device("cpu")
    sample = torch.arange(1 << 17, dtype=torch.int64, device=host).mul_(_MIX).view(torch.uint8)[3:-2]
    try:
        return torch.equal(_sums(sample.to(device), _positions, device).cpu(), _sums(sample, _positions, host))
    except RuntimeError:  # an operator that it does not have
        return False
