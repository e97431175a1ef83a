"""Reading tensors on an accelerator: the bytes of small ones, checksums of large ones that the device computes.

A small tensor is copied to the host; of a large one, two sums for each segment are.  Everything that a model has on a
device is copied in one transfer, and the extra memory needed on the device is small.

For the sums, each 64-bit word of a segment is mixed with its position by invertible steps.  So a change of one word is
always noticed; several changes go unnoticed with a probability of about 2**-64 for the plain sum, and about that again
for the sum weighted by position.  Only integer operations are used, so every implementation has the same result.
"""

from __future__ import annotations

import ctypes
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from itertools import accumulate, groupby
from types import ModuleType

import torch
from torch import Tensor
from torch.accelerator import current_accelerator

SMALL_BYTES = 1 << 16
"""The largest tensor that is copied to the host: computing its sums on the device would take longer.

At least `fingerprint.MAX_VALUE_BYTES`.
"""

SEGMENT_BYTES = 1 << 17
"""The size of a segment: much larger than its sums, and small enough that a model has many segments."""

CHUNK_BYTES = 1 << 24
"""How much torch's operators process at a time: several segments."""

MIN_KERNEL_BYTES = 1 << 25
"""The fewest bytes for which the Triton kernel is used: compiling it takes a second, once per machine."""

# The multipliers of splitmix64 and of degski's mixer, as signed integers.
STEP = 0x9E3779B97F4A7C15 - (1 << 64)
MIX = 0xD6E8FEB86659FD93 - (1 << 64)

_HOST = torch.device("cpu")

Reader = Callable[[Mapping[int, Tensor]], dict[int, bytes]]
"""Takes tensors on one device by any key, and returns the bytes of small ones and the sums of large ones."""


def accelerator_in_use() -> ModuleType | None:
    """Return torch's module for the accelerator, such as `torch.cuda`, once this process has used it; else None."""
    device = current_accelerator()
    if device is None:
        return None
    module: ModuleType = getattr(torch, device.type)  # torch.get_device_module uses names that a test may patch
    # MPS has no initialization: it is available or not.
    is_used: bool = getattr(module, "is_initialized", module.is_available)()
    return module if is_used else None


def is_on_device(tensor: Tensor) -> bool:
    """Return whether a tensor is not in host memory."""
    return not tensor.is_cpu


def is_capturing() -> bool:
    """Return whether this thread is capturing a CUDA graph: a read would break the capture."""
    accelerator = accelerator_in_use()
    query: Callable[[], bool] | None = getattr(accelerator, "is_current_stream_capturing", None)
    return query is not None and query()


def synchronize(devices: Iterable[torch.device]) -> None:
    """Wait for all streams of these devices: a read on one stream does not wait for writes on another."""
    for device in devices:
        torch.accelerator.synchronize(device)


def read(tensors: Iterable[tuple[int, Tensor]]) -> dict[int, bytes]:
    """Read tensors on any devices.  Call it inside `undisturbed()`.

    Args:
        tensors: dense tensors of any dtype, with any keys.

    Returns:
        By key: the bytes of a tensor of up to `SMALL_BYTES`; of a larger one, two 8-byte sums for each segment.

    Raises:
        RuntimeError: a CUDA graph is being captured.
    """
    by_device: dict[torch.device, dict[int, Tensor]] = {}
    for key, tensor in tensors:
        by_device.setdefault(tensor.device, {})[key] = tensor
    if by_device and is_capturing():
        raise RuntimeError("cannot read tensors on a device while a CUDA graph is being captured")
    return {key: data for device, parts in by_device.items() for key, data in _read(device, parts).items()}


def _read(device: torch.device, parts: Mapping[int, Tensor]) -> dict[int, bytes]:
    large_bytes = sum(size for part in parts.values() if (size := part.nbytes) > SMALL_BYTES)
    with _synchronization_allowed():
        try:
            return _choose_reader(device, large_bytes)(parts)
        except torch.OutOfMemoryError:
            return _read_on_host(parts)  # the same result, more slowly


@contextmanager
def _synchronization_allowed() -> Iterator[None]:
    """Turn off torch's sync debug mode, in which torch raises an error when code waits for the device."""
    accelerator = accelerator_in_use()
    query: Callable[[], int] | None = getattr(accelerator, "get_sync_debug_mode", None)
    mode = query() if query is not None else 0
    if not mode or accelerator is None:
        yield
        return
    accelerator.set_sync_debug_mode(0)
    try:
        yield
    finally:
        accelerator.set_sync_debug_mode(mode)


def _choose_reader(device: torch.device, large_bytes: int) -> Reader:
    """Return the reader for a device whose large tensors have this many bytes.  All readers have the same result."""
    kernel = _triton_reader(device) if large_bytes >= MIN_KERNEL_BYTES else None
    if kernel is not None:
        return kernel
    return _read_on_device if not large_bytes or _is_exact(device) else _read_on_host


def _read_on_device(parts: Mapping[int, Tensor]) -> dict[int, bytes]:
    blocks = {key: _bytes(part) for key, part in parts.items()}
    return dict(_transfer({key: _sums(b, b.device) if b.numel() > SMALL_BYTES else b for key, b in blocks.items()}))


def _read_on_host(parts: Mapping[int, Tensor]) -> dict[int, bytes]:
    blocks = {key: _bytes(part) for key, part in parts.items()}
    return dict(_transfer({key: _sums(b, _HOST) if b.numel() > SMALL_BYTES else b.cpu() for key, b in blocks.items()}))


def _bytes(part: Tensor) -> Tensor:
    return part.as_strided((part.numel(),), (1,)).view(torch.uint8)


def split_into_chunks(sizes: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Yield the (start, stop) indices of consecutive items that together have about the size of a chunk."""
    ends = accumulate(sizes)
    for _, batch in groupby(enumerate(ends), lambda item: item[1] // CHUNK_BYTES):
        indices = [index for index, _ in batch]
        yield indices[0], indices[-1] + 1


def _transfer(parts: Mapping[int, Tensor]) -> Iterator[tuple[int, bytes]]:
    """Copy tensors of bytes from a device, in one transfer per chunk."""
    keys, blocks = list(parts), list(parts.values())
    for first, last in split_into_chunks(block.numel() for block in blocks):
        host = torch.cat(blocks[first:last]).cpu()
        data = ctypes.string_at(host.data_ptr(), host.numel())
        start = 0
        for key, block in zip(keys[first:last], blocks[first:last], strict=True):
            end = start + block.numel()
            yield key, data[start:end]
            start = end


def _sums(data: Tensor, device: torch.device) -> Tensor:
    """Compute the sums of each segment with torch's operators.

    Args:
        data: all bytes of a tensor (uint8, 1-D).
        device: where to compute.

    Returns:
        The plain and the weighted sum of each segment, as bytes (uint8, 16 per segment).
    """
    segment = SEGMENT_BYTES // 8
    # Position keys far apart: a tensor may itself contain consecutive numbers.
    positions = torch.arange(segment, dtype=torch.int64, device=device).mul_(STEP)
    sums = []
    for start in range(0, data.numel(), CHUNK_BYTES):
        words = _words(data[start : start + CHUNK_BYTES].to(device))
        full = words.numel() // segment * segment
        if full:
            sums.append(_both_sums(words[:full].view(-1, segment), positions))
        if full < words.numel():
            sums.append(_both_sums(words[full:].view(1, -1), positions[: words.numel() - full]))
    return torch.cat(sums).view(-1).view(torch.uint8)


def _both_sums(words: Tensor, positions: Tensor) -> Tensor:
    """Compute the plain and the weighted sum of each row of 64-bit words: (n, words) -> (n, 2), int64."""
    mixed = words ^ positions
    low, high = (mixed.view(torch.int32)[:, half::2] for half in (0, 1))
    low ^= high  # not a shift, which would extend the sign: the top bits, signs of floats, must mix too
    mixed *= MIX
    low ^= high
    mixed *= MIX
    low ^= high
    return torch.stack([mixed.sum(1), mixed.mul_(positions).sum(1)], 1)


def _words(chunk: Tensor) -> Tensor:
    """View bytes as 64-bit words; a copy, padded with zeros, if they are not aligned."""
    missing = -chunk.numel() % 8
    if missing or (chunk.storage_offset() | chunk.data_ptr()) % 8:
        chunk = torch.cat([chunk, chunk.new_zeros(missing)])
    return chunk.view(torch.int64)


def _sample(device: torch.device) -> dict[int, Tensor]:
    """Return tensors to test a reader with, at aligned and unaligned addresses."""
    data = torch.arange(1 << 17, dtype=torch.int64, device=_HOST).mul_(MIX).view(torch.uint8).to(device)
    middle = data[8 : SEGMENT_BYTES + 9]
    return dict(enumerate([data, data[3:-2], middle, data[:SMALL_BYTES], data[5:-9], data[:13], data[1:2], data[:0]]))


def _matches_host(device: torch.device, reader: Reader) -> bool:
    return reader(_sample(device)) == _read_on_host(_sample(_HOST))


@cache
def _is_exact(device: torch.device) -> bool:
    """Return whether the integer arithmetic of a device matches the CPU's; if not, the host computes the sums.

    On MPS, integers have been converted to float32 (https://github.com/pytorch/pytorch/issues/87753), or clamped
    (https://github.com/pytorch/pytorch/issues/179415).
    """
    try:
        return _matches_host(device, _read_on_device)
    except torch.OutOfMemoryError:
        raise  # temporary: not cached
    except RuntimeError:  # the device lacks an operator
        return False


@cache
def _triton_reader(device: torch.device) -> Reader | None:
    """Return the Triton kernel's reader, if Triton is installed, compiles it, and it matches the host on a sample."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Triton's warnings, which a test may have turned into errors
            reader: Reader = import_module("pytest_evalmode.observe.state.devices.triton_kernel").read
            return reader if _matches_host(device, reader) else None
    except torch.OutOfMemoryError:
        raise
    except Exception:  # no Triton, no compiler or no such device: use torch's operators
        return None
