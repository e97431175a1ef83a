"""Digests of large tensors, computed on several threads, and reads of tensors on an accelerator."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Collection, Iterable, Mapping
from functools import lru_cache
from itertools import chain
from operator import itemgetter
from threading import Thread
from typing import Any, cast

import torch
from torch import Tensor, get_num_threads
from xxhash import xxh3_128, xxh3_128_digest

from pytest_evalmode.observe.private_api import is_lazy
from pytest_evalmode.observe.state import devices, digest_cache
from pytest_evalmode.observe.state.memory_layout import (
    as_dense_block,
    data_address,
    host_address,
    is_dense,
    is_sharded,
    is_strided,
)

LARGE_ELEMENTS = 1 << 14
"""The smallest tensor that is hashed on a thread and whose writes are tracked: 64 KiB in float32."""

_PIECE_BYTES = 1 << 23
"""How many bytes a thread hashes at a time.  For fewer bytes no thread is started."""

block_type = lru_cache(lambda size: ctypes.c_char * size)


def find_large(tensors: Iterable[Tensor]) -> dict[int, Tensor]:
    """Return the tensors in host memory that are large enough to hash on a thread, by `id`."""
    return {
        id(tensor): tensor
        for tensor in tensors
        if tensor.numel() >= LARGE_ELEMENTS and host_address(tensor, tensor.dtype)
    }


def compute_digests(tensors: Mapping[int, Tensor], *, tracked: bool = True) -> dict[int, bytes]:
    """Hash large contiguous tensors in host memory, by any key, on as many threads as torch uses.

    xxh3 releases the GIL.  Unless `tracked`, writes are not tracked: it pays off only for tensors that are read again.
    """
    ranges = {key: (tensor.data_ptr(), tensor.nbytes) for key, tensor in tensors.items()}
    known = digest_cache.find_digests(dict.fromkeys(ranges.values()))
    unknown = {range_: tensors[key] for key, range_ in ranges.items() if range_ not in known}
    blocks = digest_cache.track(unknown) if tracked else []  # before any of it is read
    pieces = {range_: _pieces(*range_, signed_zero_width(*range_, each.dtype)) for range_, each in unknown.items()}
    # The largest first, so that the threads finish at about the same time.
    queue = sorted(set(chain.from_iterable(pieces.values())), key=itemgetter(1), reverse=True)
    helper_count = min(get_num_threads() - 1, sum(size for _, size, _ in queue) // _PIECE_BYTES)
    hashed: dict[_Piece, bytes] = {}
    shared_queue = iter(queue)

    def read() -> None:
        for piece in shared_queue:
            hashed[piece] = digest(*piece)

    helpers = [Thread(target=read) for _ in range(helper_count)]
    for helper in helpers:
        helper.start()
    try:
        read()
    finally:
        for helper in helpers:
            helper.join()
    # If a helper failed, a piece is missing and this raises: an error in the guard, never a clean result.
    known.update((range_, _join([hashed[piece] for piece in its])) for range_, its in pieces.items())
    for block in blocks:
        block.digest = known[block.range]
    return {key: known[range_] for key, range_ in ranges.items()}


def read_device_tensors(tensors: Collection[Tensor]) -> dict[int, bytes]:
    """Read the tensors that are on an accelerator, by `id`, once its pending work is done: see `devices.read`.

    Call it inside `undisturbed()`.
    """
    _wait_for_devices(tensors)
    in_place: dict[int, Tensor] = {}
    copied: dict[int, Tensor] = {}
    for tensor in tensors:
        if devices.is_on_device(tensor):
            if data_address(tensor, tensor.dtype):  # nearly all tensors: skip the slower questions
                in_place[id(tensor)] = tensor
                continue
            local: Tensor = cast(Any, tensor)._local_tensor if is_sharded(tensor) else tensor
            if not is_lazy(local) and is_strided(local):
                if is_dense(local) and not (local.is_conj() or local.is_neg()):
                    in_place[id(tensor)] = local.detach()
                else:
                    copied[id(tensor)] = local
    data = devices.read(in_place.items())
    for key, local in copied.items():  # one at a time: each needs memory for a copy
        data.update(devices.read([(key, as_dense_block(local))]))
    return data


def _wait_for_devices(tensors: Iterable[Tensor]) -> None:
    """Wait until no stream of a device can still write to these tensors, or to pinned memory of the host."""
    kind = torch.accelerator.current_accelerator()
    pending: set[torch.device] = set()
    for tensor in tensors:
        if kind is not None and tensor.device.type == kind.type:
            pending.add(tensor.device)
        elif kind is not None and host_address(tensor, tensor.dtype) and tensor.is_pinned():
            pending.add(torch.device(kind.type))
    for device in pending:
        torch.accelerator.synchronize(device)


def signed_zero_width(address: int, size: int, dtype: torch.dtype) -> int:
    """Return the size of an element if a block of memory contains `-0.0` near its start, as pruned weights do; else 0.

    The rest is not searched: that would take as long as hashing it.
    """
    width = _NUMBER_BYTES.get(dtype, 0)
    if not width:
        return 0
    negative_zero = (1 << (8 * width - 1)).to_bytes(width, sys.byteorder)
    return width if negative_zero in ctypes.string_at(address, min(size, _SAMPLE_BYTES)) else 0


def digest(address: int, size: int, width: int = 0) -> bytes:
    """Return the xxh3 digest of a block of memory.  For a large block it is the digest of its pieces' digests.

    With a `width`, the block holds floating point numbers of so many bytes, and each `-0.0` is hashed as `0.0`.
    """
    if size > _PIECE_BYTES:
        return _join([digest(*piece) for piece in _pieces(address, size, width)])
    if not width:
        return xxh3_128_digest(block_type(size).from_address(address))
    result, dtype = xxh3_128(), _INTEGERS[width]
    for start in range(0, size, _CHUNK_BYTES):
        chunk = block_type(min(_CHUNK_BYTES, size - start)).from_address(address + start)
        numbers = torch.frombuffer(chunk, dtype=dtype)
        numbers = numbers.masked_fill(numbers == torch.iinfo(dtype).min, 0)
        result.update(block_type(numbers.nbytes).from_address(numbers.data_ptr()))
    return result.digest()


_Piece = tuple[int, int, int]
"""Address and size of a block of memory, and the width of its numbers as `digest` takes it."""
_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Integers by their size.  The bits of `-0.0` are those of the smallest integer of its size."""
_NUMBER_BYTES = {
    **dict.fromkeys((torch.float16, torch.bfloat16), 2),
    **dict.fromkeys((torch.float32, torch.complex64), 4),
    **dict.fromkeys((torch.float64, torch.complex128), 8),
}
_SAMPLE_BYTES = 1 << 12
_CHUNK_BYTES = 1 << 15
"""So few numbers that torch uses no second thread for them."""


def _pieces(address: int, size: int, width: int) -> list[_Piece]:
    """Split a block of memory into pieces that several threads can hash."""
    starts = range(0, size, _PIECE_BYTES)
    return [(address + start, min(_PIECE_BYTES, size - start), width) for start in starts]


def _join(digests: list[bytes]) -> bytes:
    return digests[0] if len(digests) == 1 else xxh3_128_digest(b"".join(digests))
