"""The bytes of large tensors, each read once: on as many threads as torch uses, or by the accelerator they lie on."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from itertools import chain
from operator import itemgetter
from threading import Thread
from typing import Any, cast

import torch
from torch import Tensor, get_num_threads
from torch.nn.parameter import is_lazy
from xxhash import xxh3_128_digest

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
"""What is worth a thread to read it, and a place among what the kernel is asked about: 64 KiB in float32."""

_PIECE_BYTES = 1 << 23
"""What makes up for starting a thread, and what it reads at a time: in between, another may keep the GIL from it."""

block_type = lru_cache(lambda size: ctypes.c_char * size)


def find_large(tensors: Iterable[Tensor]) -> dict[int, Tensor]:
    """Those that are worth reading in a thread, each once, by `id`."""
    return {
        id(tensor): tensor
        for tensor in tensors
        if tensor.numel() >= LARGE_ELEMENTS and host_address(tensor, tensor.dtype)
    }


@contextmanager
def compute_digests(tensors: Mapping[int, Tensor], *, untracked: bool = False) -> Iterator[dict[int, bytes]]:
    """Read large tensors while the caller reads others; their digests are there at the end, by the keys given.

    On as many threads as torch uses: xxh3 frees the GIL.  What is read `once` is not watched for the next time.
    """
    ranges = {key: (tensor.data_ptr(), tensor.nbytes) for key, tensor in tensors.items()}
    known = digest_cache.find_digests(dict.fromkeys(ranges.values()))
    unknown = {range_: tensors[key] for key, range_ in ranges.items() if range_ not in known}
    digest_cache.byte_counts.read += sum(size for _, size in unknown)
    digest_cache.byte_counts.skipped += sum(size for _, size in known)
    armed = [] if untracked else digest_cache.track(unknown)  # before any of it is read
    pieces = {range_: _pieces(*range_) for range_ in unknown}
    # The largest first: the threads come to their ends at about the same time.
    todo = sorted(set(chain.from_iterable(pieces.values())), key=itemgetter(1), reverse=True)
    helpers = min(get_num_threads() - 1, sum(size for _, size in todo) // _PIECE_BYTES)
    done: dict[tuple[int, int], bytes] = {}
    turns = iter(todo)

    def read() -> None:
        for piece in turns:
            done[piece] = digest(*piece)

    found: dict[int, bytes] = {}
    helping = [Thread(target=read) for _ in range(helpers)]
    for helper in helping:
        helper.start()
    try:
        yield found
        read()
    finally:
        for helper in helping:
            helper.join()
    # Were a helper to fail, a piece would be missing here: an error of the guard, never a clean bill.
    known.update((range_, _joined([done[piece] for piece in its])) for range_, its in pieces.items())
    for block in armed:
        block.digest = known[block.range]
    found.update((key, known[range_]) for key, range_ in ranges.items())


def read_device_tensors(tensors: Iterable[Tensor]) -> dict[int, bytes]:
    """What accelerators say of the tensors that lie on them, by `id`; the caller is `undisturbed`."""
    there: dict[int, Tensor] = {}
    copied: dict[int, Tensor] = {}
    for tensor in tensors:
        if devices.is_on_device(tensor):
            if data_address(tensor, tensor.dtype):  # nearly all are, and to know more of one takes a while
                there[id(tensor)] = tensor
                continue
            local: Tensor = cast(Any, tensor)._local_tensor if is_sharded(tensor) else tensor
            if not is_lazy(local) and is_strided(local):
                in_place = is_dense(local) and not (local.is_conj() or local.is_neg())
                if in_place:
                    there[id(tensor)] = local.detach()
                else:
                    copied[id(tensor)] = local
    found = devices.read(there.items())
    for key, local in copied.items():  # one at a time: there may be room for no more
        found.update(devices.read([(key, as_dense_block(local))]))
    return found


def wait_for_devices(tensors: Iterable[Tensor]) -> None:
    """Wait for what devices may yet write to these tensors; what is pinned they write to on the host."""
    kind = torch.accelerator.current_accelerator()
    waiting: set[torch.device] = set()
    for tensor in tensors:
        if kind is not None and tensor.device.type == kind.type:
            waiting.add(tensor.device)
        elif kind is not None and host_address(tensor, tensor.dtype) and tensor.is_pinned():
            waiting.add(torch.device(kind.type))
    devices.synchronize(waiting)


def digest(address: int, size: int) -> bytes:
    """The digest of a block of memory: of more than a piece, that of the digests of its pieces."""
    if size > _PIECE_BYTES:
        return _joined([digest(*piece) for piece in _pieces(address, size)])
    return xxh3_128_digest(block_type(size).from_address(address))


def _pieces(address: int, size: int) -> list[tuple[int, int]]:
    """A block of memory in pieces that several threads can share out."""
    return [(address + start, min(_PIECE_BYTES, size - start)) for start in range(0, size, _PIECE_BYTES)]


def _joined(digests: list[bytes]) -> bytes:
    return digests[0] if len(digests) == 1 else xxh3_128_digest(b"".join(digests))
