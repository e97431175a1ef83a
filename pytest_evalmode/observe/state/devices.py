"""Tensors on an accelerator -> what tells them apart, worked out where they lie.

A small tensor comes to the host byte by byte; of a large one come two sums for each segment of it.  All that a model
has on a device comes in one transfer, and what is needed there meanwhile is little, however large the model is.

For the sums a segment is taken as 64-bit words.  Each is mixed with its position by steps that can all be undone, so a
change of one word always shows, and what several change is left to chance: 2**-64 for the plain sum, once more about
that for the one weighted by position.  Only integer operators are used: what they give is the same on every device and
in every order, by torch's operators or by a kernel of ours that reads each word once.
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
from torch import Tensor, get_device_module
from torch.accelerator import current_accelerator

SMALL_BYTES = 1 << 16
"""What is brought over in less time than it takes to start the dozen kernels that would sum it up.

No less than what is kept by value.
"""

SEGMENT_BYTES = 1 << 17
"""What has sums of its own: small enough for a model to keep all of a device busy, many times what its sums take."""

CHUNK_BYTES = 1 << 24
"""What torch's operators sum up at a time: some segments."""

KERNEL_BYTES = 1 << 25
"""What is worth compiling a kernel for, which takes a second once a machine."""

# The multipliers of splitmix64 and of degski's mixer, as int64 has them.
STEP = 0x9E3779B97F4A7C15 - (1 << 64)
MIX = 0xD6E8FEB86659FD93 - (1 << 64)

_HOST = torch.device("cpu")

Sum = Callable[[Iterable[Tensor]], list[Tensor]]
"""The sums of tensors that are bytes, of each as bytes."""


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


def is_capturing() -> bool:
    """Whether the work of this thread is being captured as a graph: to read anything then would break the capture."""
    accelerator = in_use()
    asked: Callable[[], bool] | None = getattr(accelerator, "is_current_stream_capturing", None)
    return asked is not None and asked()


def settle(devices: Iterable[torch.device]) -> None:
    """Wait for what is under way on any stream of these devices: a read would not wait for another stream's writes."""
    for device in devices:
        torch.accelerator.synchronize(device)


def read(tensors: Iterable[tuple[int, Tensor]]) -> dict[int, bytes]:
    """Of each tensor its bytes if it is small, else its sums, by the keys given.

    The tensors fill their memory without a gap; the caller is `undisturbed`.  Raises RuntimeError during a capture.
    """
    there: dict[torch.device, dict[int, Tensor]] = {}
    for key, tensor in tensors:
        there.setdefault(tensor.device, {})[key] = tensor.as_strided((tensor.numel(),), (1,)).view(torch.uint8)
    if there and is_capturing():
        raise RuntimeError("what lies on a device cannot be read while its work is captured as a graph")
    return {key: data for device, parts in there.items() for key, data in _read(device, parts).items()}


def _read(device: torch.device, parts: Mapping[int, Tensor]) -> dict[int, bytes]:
    """What tensors hold that lie on one device, as bytes."""
    large = {key: part for key, part in parts.items() if part.numel() > SMALL_BYTES}
    with _free_to_wait():
        try:
            sums = _way(device, sum(part.numel() for part in large.values()))(large.values())
            return dict(_brought({**parts, **dict(zip(large, sums, strict=True))}))
        except torch.OutOfMemoryError:
            sums = _on_host(large.values())  # the same, more slowly, for want of room
            rest = {key: part.cpu() for key, part in parts.items() if key not in large}
            return dict(_brought({**rest, **dict(zip(large, sums, strict=True))}))


@contextmanager
def _free_to_wait() -> Iterator[None]:
    """Whoever has torch raise where his code waits for the device does not mean us."""
    accelerator = in_use()
    asked: Callable[[], int] | None = getattr(accelerator, "get_sync_debug_mode", None)
    mode = asked() if asked is not None else 0
    if not mode or accelerator is None:
        yield
        return
    accelerator.set_sync_debug_mode(0)
    try:
        yield
    finally:
        accelerator.set_sync_debug_mode(mode)


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


def _way(device: torch.device, size: int) -> Sum:
    """How to sum up so many bytes on a device.  Every way finds the same."""
    kernel = _kernel(device) if size >= KERNEL_BYTES else None
    if kernel is not None:
        return kernel
    return _on_device if not size or _is_exact(device) else _on_host


def _on_device(parts: Iterable[Tensor]) -> list[Tensor]:
    return [_sums(part, part.device) for part in parts]


def _on_host(parts: Iterable[Tensor]) -> list[Tensor]:
    return [_sums(part, _HOST) for part in parts]


def _sums(data: Tensor, where: torch.device) -> Tensor:
    """The sums of the segments of a tensor, as bytes, by torch's operators."""
    segment = SEGMENT_BYTES // 8
    # A number for each word, far from those that a tensor may hold in order.
    positions = torch.arange(segment, dtype=torch.int64, device=where).mul_(STEP)
    sums = []
    for start in range(0, data.numel(), CHUNK_BYTES):
        words = _words(data[start : start + CHUNK_BYTES].to(where))
        whole = words.numel() // segment * segment
        if whole:
            sums.append(_both_sums(words[:whole].view(-1, segment), positions))
        if whole < words.numel():
            sums.append(_both_sums(words[whole:].view(1, -1), positions[: words.numel() - whole]))
    return torch.cat(sums).view(-1).view(torch.uint8)


def _both_sums(words: Tensor, positions: Tensor) -> Tensor:
    """Two sums for each row."""
    mixed = words ^ positions
    low, high = (mixed.view(torch.int32)[:, half::2] for half in (0, 1))
    low ^= high  # a shift of int64 would drag the sign along; top bits, the signs of floats, must get down
    mixed *= MIX
    low ^= high
    mixed *= MIX
    low ^= high
    return torch.stack([mixed.sum(1), mixed.mul_(positions).sum(1)], 1)


def _words(chunk: Tensor) -> Tensor:
    """Bytes as 64-bit words, copied where they do not end or begin as words do."""
    missing = -chunk.numel() % 8
    if missing or (chunk.storage_offset() | chunk.data_ptr()) % 8:
        chunk = torch.cat([chunk, chunk.new_zeros(missing)])
    return chunk.view(torch.int64)


def _sample(device: torch.device) -> list[Tensor]:
    """What shows whether a way to sum finds what it should: parts that begin and end anywhere."""
    data = torch.arange(1 << 17, dtype=torch.int64, device=_HOST).mul_(MIX).view(torch.uint8).to(device)
    return [data, data[3:-2], data[8 : SEGMENT_BYTES + 9], data[:SMALL_BYTES]]


def _agrees(device: torch.device, way: Sum) -> bool:
    expected, found = _on_host(_sample(_HOST)), way(_sample(device))
    return all(torch.equal(sums.cpu(), right) for sums, right in zip(found, expected, strict=True))


@cache
def _is_exact(device: torch.device) -> bool:
    """Whether a device sums as the CPU does; it is asked once.

    Integers on MPS have gone through float32 (https://github.com/pytorch/pytorch/issues/87753), or been held at their
    limits (https://github.com/pytorch/pytorch/issues/179415).  Where that is so, the chunks are summed on the host.
    """
    try:
        return _agrees(device, _on_device)
    except torch.OutOfMemoryError:
        raise  # of that moment
    except RuntimeError:  # an operator that it does not have
        return False


@cache
def _kernel(device: torch.device) -> Sum | None:
    """One launch for all tensors of a device, where Triton is there to compile it and it finds what it should."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Triton's, which a test may have turned into errors
            way: Sum = import_module("pytest_evalmode.observe.state.snapshot.kernels").sums
            return way if _agrees(device, way) else None
    except torch.OutOfMemoryError:
        raise
    except Exception:  # no Triton, no compiler, no such device: torch's operators do it
        return None
