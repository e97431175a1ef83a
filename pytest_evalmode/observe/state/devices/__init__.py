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
from torch import Tensor
from torch.accelerator import current_accelerator

SMALL_BYTES = 1 << 16
"""What is brought over in less time than it takes to start the dozen kernels that would sum it up.

No less than what is kept by value.
"""

SEGMENT_BYTES = 1 << 17
"""What has sums of its own: small enough for a model to keep all of a device busy, many times what its sums take."""

CHUNK_BYTES = 1 << 24
"""What torch's operators sum up at a time: some segments."""

MIN_KERNEL_BYTES = 1 << 25
"""What is worth compiling a kernel for, which takes a second once a machine."""

# The multipliers of splitmix64 and of degski's mixer, as int64 has them.
STEP = 0x9E3779B97F4A7C15 - (1 << 64)
MIX = 0xD6E8FEB86659FD93 - (1 << 64)

_HOST = torch.device("cpu")

Reader = Callable[[Mapping[int, Tensor]], dict[int, bytes]]
"""Of tensors on one device, each a block of memory: its bytes if it is small, else its sums, by the keys given."""


def accelerator_in_use() -> ModuleType | None:
    """What torch calls the accelerator of this process, `torch.cuda` say, once the process has begun to use it."""
    device = current_accelerator()
    if device is None:
        return None
    module: ModuleType = getattr(torch, device.type)  # torch.get_device_module looks up what a test may patch
    # MPS knows no beginning: it is there, or it is not.
    begun: bool = getattr(module, "is_initialized", module.is_available)()
    return module if begun else None


def is_on_device(tensor: Tensor) -> bool:
    """Whether a tensor lies on an accelerator."""
    return not tensor.is_cpu


def is_capturing() -> bool:
    """Whether the work of this thread is being captured as a graph: to read anything then would break the capture."""
    accelerator = accelerator_in_use()
    asked: Callable[[], bool] | None = getattr(accelerator, "is_current_stream_capturing", None)
    return asked is not None and asked()


def synchronize(devices: Iterable[torch.device]) -> None:
    """Wait for what is under way on any stream of these devices: a read would not wait for another stream's writes."""
    for device in devices:
        torch.accelerator.synchronize(device)


def read(tensors: Iterable[tuple[int, Tensor]]) -> dict[int, bytes]:
    """Of each tensor its bytes if it is small, else its sums, by the keys given.

    The tensors fill their memory without a gap; the caller is `undisturbed`.  Raises RuntimeError during a capture.
    """
    there: dict[torch.device, dict[int, Tensor]] = {}
    for key, tensor in tensors:
        there.setdefault(tensor.device, {})[key] = tensor
    if there and is_capturing():
        raise RuntimeError("what lies on a device cannot be read while its work is captured as a graph")
    return {key: data for device, parts in there.items() for key, data in _read(device, parts).items()}


def _read(device: torch.device, parts: Mapping[int, Tensor]) -> dict[int, bytes]:
    to_sum = sum(size for part in parts.values() if (size := part.nbytes) > SMALL_BYTES)
    with _free_to_wait():
        try:
            return _choose_reader(device, to_sum)(parts)
        except torch.OutOfMemoryError:
            return _read_on_host(parts)  # the same, more slowly, for want of room


@contextmanager
def _free_to_wait() -> Iterator[None]:
    """Whoever has torch raise where his code waits for the device does not mean us."""
    accelerator = accelerator_in_use()
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


def _choose_reader(device: torch.device, size: int) -> Reader:
    """How to read a device where so many bytes are to be summed up.  Every way finds the same."""
    kernel = _triton_reader(device) if size >= MIN_KERNEL_BYTES else None
    if kernel is not None:
        return kernel
    return _read_on_device if not size or _is_exact(device) else _read_on_host


def _read_on_device(parts: Mapping[int, Tensor]) -> dict[int, bytes]:
    blocks = {key: _bytes(part) for key, part in parts.items()}
    return dict(_brought({key: _sums(b, b.device) if b.numel() > SMALL_BYTES else b for key, b in blocks.items()}))


def _read_on_host(parts: Mapping[int, Tensor]) -> dict[int, bytes]:
    blocks = {key: _bytes(part) for key, part in parts.items()}
    return dict(_brought({key: _sums(b, _HOST) if b.numel() > SMALL_BYTES else b.cpu() for key, b in blocks.items()}))


def _bytes(part: Tensor) -> Tensor:
    return part.as_strided((part.numel(),), (1,)).view(torch.uint8)


def split_into_chunks(sizes: Iterable[int]) -> Iterator[tuple[int, int]]:
    """From where to where things of such sizes come to no more than about a chunk."""
    ends = accumulate(sizes)
    for _, batch in groupby(enumerate(ends), lambda item: item[1] // CHUNK_BYTES):
        places = [place for place, _ in batch]
        yield places[0], places[-1] + 1


def _brought(parts: Mapping[int, Tensor]) -> Iterator[tuple[int, bytes]]:
    """The bytes of tensors on one device: in one transfer, unless together they are more than a chunk."""
    keys, blocks = list(parts), list(parts.values())
    for first, last in split_into_chunks(block.numel() for block in blocks):
        host = torch.cat(blocks[first:last]).cpu()
        data = ctypes.string_at(host.data_ptr(), host.numel())
        start = 0
        for key, block in zip(keys[first:last], blocks[first:last], strict=True):
            end = start + block.numel()
            yield key, data[start:end]
            start = end


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


def _sample(device: torch.device) -> dict[int, Tensor]:
    """What shows whether a way to read finds what it should: parts that begin and end anywhere."""
    data = torch.arange(1 << 17, dtype=torch.int64, device=_HOST).mul_(MIX).view(torch.uint8).to(device)
    middle = data[8 : SEGMENT_BYTES + 9]
    return dict(enumerate([data, data[3:-2], middle, data[:SMALL_BYTES], data[5:-9], data[:13], data[1:2], data[:0]]))


def _matches_host(device: torch.device, way: Reader) -> bool:
    return way(_sample(device)) == _read_on_host(_sample(_HOST))


@cache
def _is_exact(device: torch.device) -> bool:
    """Whether a device sums as the CPU does; it is asked once.

    Integers on MPS have gone through float32 (https://github.com/pytorch/pytorch/issues/87753), or been held at their
    limits (https://github.com/pytorch/pytorch/issues/179415).  Where that is so, the chunks are summed on the host.
    """
    try:
        return _matches_host(device, _read_on_device)
    except torch.OutOfMemoryError:
        raise  # of that moment
    except RuntimeError:  # an operator that it does not have
        return False


@cache
def _triton_reader(device: torch.device) -> Reader | None:
    """One launch for all tensors of a device, where Triton is there to compile it and it finds what it should."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Triton's, which a test may have turned into errors
            way: Reader = import_module("pytest_evalmode.observe.state.devices.triton_kernel").read
            return way if _matches_host(device, way) else None
    except torch.OutOfMemoryError:
        raise
    except Exception:  # no Triton, no compiler, no such device: torch's operators do it
        return None
