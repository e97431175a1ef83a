"""Reading tensors on an accelerator: the bytes of small ones, checksums of large ones that the device computes.

A small tensor is copied to the host; of a large one, two sums for each segment are.  Each weights the 32-bit words with
odd random numbers of 64 bits, so a change of one word is always noticed.  `docs/internals/state.md` explains more.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from io import BytesIO
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

CHUNK_BYTES = 1 << 23
"""How many bytes are processed at a time, with up to six times that as extra memory: several segments."""

_HOST = torch.device("cpu")


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


def read(tensors: Iterable[tuple[int, Tensor]]) -> dict[int, bytes]:
    """Read dense tensors on any devices, with any keys.  Call it inside `undisturbed()`.

    Return the bytes of a tensor of up to `SMALL_BYTES`; of a larger one, two 8-byte sums for each segment.  Raise a
    RuntimeError if a CUDA graph is being captured.
    """
    by_device: dict[torch.device, dict[int, Tensor]] = {}
    for key, tensor in tensors:
        by_device.setdefault(tensor.device, {})[key] = tensor
    if by_device and is_capturing():
        raise RuntimeError("cannot read tensors on a device while a CUDA graph is being captured")
    return {key: data for device, parts in by_device.items() for key, data in _read(device, parts).items()}


def _read(device: torch.device, parts: Mapping[int, Tensor]) -> dict[int, bytes]:
    has_large = any(part.nbytes > SMALL_BYTES for part in parts.values())
    with _synchronization_allowed():
        try:
            return _read_on(device if not has_large or _is_exact(device) else _HOST, parts)
        except torch.OutOfMemoryError:
            return _read_on(_HOST, parts)  # the same result, more slowly


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


def _read_on(device: torch.device, parts: Mapping[int, Tensor]) -> dict[int, bytes]:
    """Read tensors; the sums are computed on the given device, the tensors' own or the host."""
    weights = _weights(SEGMENT_BYTES // 4).to(device)
    blocks = {key: _bytes(part) for key, part in parts.items()}
    sums = {key: _sums(b, weights) if b.numel() > SMALL_BYTES else b.to(device) for key, b in blocks.items()}
    return dict(_transfer(sums))


def _bytes(part: Tensor) -> Tensor:
    return part.as_strided((part.numel(),), (1,)).view(torch.uint8)


def _transfer(parts: Mapping[int, Tensor]) -> Iterator[tuple[int, bytes]]:
    """Copy tensors of bytes from a device, in one transfer per chunk."""
    ends = accumulate(block.numel() for block in parts.values())
    for _, chunk in groupby(zip(parts.items(), ends, strict=True), lambda item: item[1] // CHUNK_BYTES):
        items = [item for item, _ in chunk]
        host = torch.cat([block for _, block in items]).cpu()
        data = BytesIO(ctypes.string_at(host.data_ptr(), host.numel()))
        yield from ((key, data.read(block.numel())) for key, block in items)


@cache
def _weights(words: int) -> Tensor:
    """Return two random odd weights for each word of a segment: (2, words), int64."""
    generator = torch.Generator(_HOST).manual_seed(0)
    return torch.empty(2, words, dtype=torch.int64, device=_HOST).random_(generator=generator).bitwise_or_(1)


def _sums(data: Tensor, weights: Tensor) -> Tensor:
    """Return the sums of all segments of a tensor's bytes (uint8, 1-D), as bytes (uint8, 16 per segment)."""
    segment = weights.shape[1]
    sums: list[Tensor] = []
    for start in range(0, data.numel(), CHUNK_BYTES):
        words = _words(data[start : start + CHUNK_BYTES].to(weights.device))
        full = words.numel() // segment * segment
        for rows in (words[:full].view(-1, segment), words[full:].unsqueeze(0)):
            if rows.numel():
                sums.append((rows.unsqueeze(1) * weights[:, : rows.shape[1]]).sum(2))
    return torch.cat(sums).view(-1).view(torch.uint8)


def _words(chunk: Tensor) -> Tensor:
    """View bytes as 32-bit words; a copy, padded with zeros, if they are not aligned."""
    missing = -chunk.numel() % 4
    if missing or (chunk.storage_offset() | chunk.data_ptr()) % 4:
        chunk = torch.cat([chunk, chunk.new_zeros(missing)])
    return chunk.view(torch.int32)


def _sample(device: torch.device) -> dict[int, Tensor]:
    """Return tensors to test a device with, at aligned and unaligned addresses."""
    data = torch.arange(1 << 17, dtype=torch.int64, device=_HOST).mul_(0x1E3779B97F4A7C15).view(torch.uint8).to(device)
    middle = data[8 : SEGMENT_BYTES + 9]
    return dict(enumerate([data, data[3:-2], middle, data[:SMALL_BYTES], data[5:-9], data[:13], data[1:2], data[:0]]))


@cache
def _is_exact(device: torch.device) -> bool:
    """Return whether the integer arithmetic of a device matches the CPU's; if not, the host computes the sums.

    On MPS, integers have been converted to float32 (https://github.com/pytorch/pytorch/issues/87753), or clamped
    (https://github.com/pytorch/pytorch/issues/179415).
    """
    try:
        return _read_on(device, _sample(device)) == _read_on(_HOST, _sample(_HOST))
    except torch.OutOfMemoryError:
        raise  # temporary: not cached
    except RuntimeError:  # the device lacks an operator
        return False
