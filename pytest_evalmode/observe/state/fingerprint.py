"""A tensor -> what tells it apart, bit for bit.

A small tensor keeps its bytes, so that a message can say how far it moved; a large one a 128-bit xxh3 digest of them.
The bytes are read where they lie, without a copy, and no operator is dispatched for the common layouts; on an
accelerator it is the accelerator that reads them.
"""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from itertools import chain
from operator import itemgetter
from threading import Thread
from typing import Any, NamedTuple, TypeGuard, cast

import torch
from torch import Tensor, empty, empty_strided, frombuffer, get_num_threads, is_grad_enabled, nn
from torch._C import DisableTorchFunction, _set_grad_enabled
from torch._C._functorch import get_unwrapped, is_functorch_wrapped_tensor
from torch._subclasses.fake_tensor import is_fake
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import _disable_current_modes
from xxhash import xxh3_128, xxh3_128_digest

from pytest_evalmode.observe.state import devices, memory

KEPT_BYTES = 8192
"""The largest tensor that is kept by value: the 2048 channels of a wide batch norm in float32."""

LARGE_ELEMENTS = 1 << 14
"""What is worth a thread to read it, and a place among what the kernel is asked about: 64 KiB in float32."""


class Fingerprint(NamedTuple):
    """What a tensor was."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    strides: tuple[int, ...] | None
    """How its elements lie in memory; None where they lie in order."""
    bits: bytes
    """The bytes themselves where `kept`, else their digest."""
    kept: bool
    size: int
    """How many bytes were read."""
    initialised: bool = True
    sharded: bool = False
    """Whether this is the part of a larger tensor that lies here."""


_PIECE_BYTES = 1 << 23
"""What makes up for starting a thread, and what it reads at a time: in between, another may keep the GIL from it."""

_new = tuple.__new__
_block = lru_cache(lambda size: ctypes.c_char * size)

_CPU = torch.device("cpu")
_STRIDED = torch.strided
_TYPES = (nn.Parameter, Tensor)
# Of these a contiguous tensor is its bytes.  Left out: quantised ones, which have a scale, and complex ones, which may
# be conjugated by a flag.
_PLAIN_DTYPES = frozenset(
    value
    for value in vars(torch).values()
    if isinstance(value, torch.dtype) and not value.is_complex and not str(value).startswith("torch.q")
)


def is_tensor(value: object) -> TypeGuard[Tensor]:
    """Whether this is one indeed: a mock with the spec of a tensor passes for one."""
    return issubclass(type(value), Tensor)


@contextmanager
def undisturbed() -> Iterator[None]:
    """No mode of the user's sees what is done inside, autograd records none of it, and no finalizer runs in between."""
    collecting, recording = gc.isenabled(), is_grad_enabled()
    gc.disable()  # thousands of fingerprints would have it go through all objects there are
    try:
        # `DisableTorchFunction` is what torch's documentation on extending it names; it covers modes and subclasses.
        with _disable_current_modes(), DisableTorchFunction():
            _set_grad_enabled(False)  # `no_grad` looks up in torch, as it enters, what a test may have patched
            try:
                yield
            finally:
                _set_grad_enabled(recording)
    finally:
        if collecting:
            gc.enable()


def fingerprint(tensor: Tensor, keep: bool = True, found: bytes | None = None) -> Fingerprint:
    """Read a tensor of any dtype, layout or subclass; the caller is `undisturbed`.

    `found` is what `digests` or `brought` found, where it has been read already.
    """
    dtype = tensor.dtype
    address = address_of(tensor, dtype)
    if not address:
        return _unusual(tensor, keep, found)
    size = tensor.nbytes
    kept = keep and size <= KEPT_BYTES
    bits = found or (_block(size).from_address(address).raw if kept else _digest(address, size))
    # Thousands of these are made: the constructor of a named tuple would take a third of the time.
    return _new(Fingerprint, (tensor.shape, dtype, _CPU, None, bits, kept, size, True, False))


def address_of(tensor: Tensor, dtype: torch.dtype) -> int:
    """Where a tensor lies on the host that is no more than its bytes in order; 0 of any other."""
    return place_of(tensor, dtype) if tensor.is_cpu else 0


def place_of(tensor: Tensor, dtype: torch.dtype) -> int:
    """The same on any device, of which this is an address."""
    if (
        type(tensor) in _TYPES
        and dtype in _PLAIN_DTYPES
        and tensor.layout is _STRIDED
        and not (tensor.is_nested or tensor.is_neg())
        and tensor.is_contiguous()
    ):
        try:
            return tensor.data_ptr()
        except RuntimeError:  # what functorch has wrapped looks like a tensor and has no memory
            pass
    return 0


def same(before: Fingerprint, now: Fingerprint, tensor: Tensor) -> bool:
    """Whether a tensor still holds what it held; how it lies in memory does not count."""
    if before.initialised != now.initialised or before[:3] != now[:3]:
        return False
    if before.sharded != now.sharded and before.size != now.size:
        return True  # FSDP has gathered it, or let go of it again: a part and the whole cannot be compared
    if before.strides == now.strides:
        return before.bits == now.bits
    arranged = empty(before.shape, dtype=before.dtype, device=before.device)
    if before.strides is not None:
        arranged = empty_strided(before.shape, before.strides, dtype=before.dtype, device=before.device)
    return fingerprint(arranged.copy_(tensor), before.kept).bits == before.bits


def values(print_: Fingerprint) -> Tensor | None:
    """The tensor that was, where it was kept by value: flat, in the order of its memory."""
    if not print_.kept or not print_.bits:
        return None
    return frombuffer(bytearray(print_.bits), dtype=print_.dtype)


def large(tensors: Iterable[Tensor]) -> dict[int, Tensor]:
    """Those that are worth reading in a thread, each once, by `id`."""
    return {
        id(tensor): tensor
        for tensor in tensors
        if tensor.numel() >= LARGE_ELEMENTS and address_of(tensor, tensor.dtype)
    }


@contextmanager
def digests(tensors: Mapping[int, Tensor], *, once: bool = False) -> Iterator[dict[int, bytes]]:
    """Read large tensors while the caller reads others; their digests are there at the end, by the keys given.

    On as many threads as torch uses: xxh3 frees the GIL.  What is read `once` is not watched for the next time.
    """
    ranges = {key: (tensor.data_ptr(), tensor.nbytes) for key, tensor in tensors.items()}
    known = memory.known(dict.fromkeys(ranges.values()))
    unknown = {range_: tensors[key] for key, range_ in ranges.items() if range_ not in known}
    memory.tally.read += sum(size for _, size in unknown)
    memory.tally.unread += sum(size for _, size in known)
    armed = [] if once else memory.arm(unknown)  # before any of it is read
    pieces = {range_: _pieces(*range_) for range_ in unknown}
    # The largest first: the threads come to their ends at about the same time.
    todo = sorted(set(chain.from_iterable(pieces.values())), key=itemgetter(1), reverse=True)
    helpers = min(get_num_threads() - 1, sum(size for _, size in todo) // _PIECE_BYTES)
    done: dict[tuple[int, int], bytes] = {}
    turns = iter(todo)

    def read() -> None:
        for piece in turns:
            done[piece] = _digest(*piece)

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


def brought(tensors: Iterable[Tensor]) -> dict[int, bytes]:
    """What accelerators say of the tensors that lie on them, by `id`; the caller is `undisturbed`."""
    there: dict[int, Tensor] = {}
    copied: dict[int, Tensor] = {}
    for tensor in tensors:
        if devices.holds(tensor):
            if place_of(tensor, tensor.dtype):  # nearly all are, and to know more of one takes a while
                there[id(tensor)] = tensor
                continue
            local: Tensor = cast(Any, tensor)._local_tensor if _is_sharded(tensor) else tensor
            if not is_lazy(local) and _is_plain(local):
                in_place = _is_dense(local) and not (local.is_conj() or local.is_neg())
                if in_place:
                    there[id(tensor)] = local.detach()
                else:
                    copied[id(tensor)] = local
    found = devices.read(there.items())
    for key, local in copied.items():  # one at a time: there may be room for no more
        found.update(devices.read([(key, _packed(local))]))
    return found


def settle(tensors: Iterable[Tensor]) -> None:
    """Wait for what devices may yet write to these tensors; what is pinned they write to on the host."""
    kind = torch.accelerator.current_accelerator()
    waiting: set[torch.device] = set()
    for tensor in tensors:
        if kind is not None and tensor.device.type == kind.type:
            waiting.add(tensor.device)
        elif kind is not None and address_of(tensor, tensor.dtype) and tensor.is_pinned():
            waiting.add(torch.device(kind.type))
    devices.settle(waiting)


def _digest(address: int, size: int) -> bytes:
    if size > _PIECE_BYTES:
        return _joined([_digest(*piece) for piece in _pieces(address, size)])
    return xxh3_128_digest(_block(size).from_address(address))


def _pieces(address: int, size: int) -> list[tuple[int, int]]:
    """A block of memory in pieces that several threads can share out."""
    return [(address + start, min(_PIECE_BYTES, size - start)) for start in range(0, size, _PIECE_BYTES)]


def _joined(digests: list[bytes]) -> bytes:
    return digests[0] if len(digests) == 1 else xxh3_128_digest(b"".join(digests))


def _unusual(tensor: Tensor, keep: bool, found: bytes | None) -> Fingerprint:
    if found is not None and not _is_sharded(tensor):
        return _strided(tensor, keep, found)  # `brought` has seen to all that follows
    if is_lazy(tensor):
        return Fingerprint((), tensor.dtype, tensor.device, None, b"", False, 0, initialised=False)
    if _is_plain(tensor):
        return _strided(tensor, keep, found)
    if is_functorch_wrapped_tensor(tensor):
        return fingerprint(get_unwrapped(tensor), keep)
    if _is_sharded(tensor):
        local = fingerprint(cast(Any, tensor)._local_tensor, keep, found)
        return local._replace(shape=tuple(tensor.shape), sharded=True)
    digest, size = xxh3_128(), 0
    for name, value in _components(tensor):
        inner = fingerprint(value, keep=False) if isinstance(value, Tensor) else None
        digest.update(f"{name} {value if inner is None else inner[:4]}".encode())
        if inner is not None:
            digest.update(inner.bits)
            size += inner.size
    shape = () if tensor.is_nested else tuple(tensor.shape)
    return Fingerprint(shape, tensor.dtype, tensor.device, None, digest.digest(), False, size)


def _is_plain(tensor: Tensor) -> bool:
    """Whether this is one block of memory seen through strides; a subclass is where it does not wrap others."""
    return (
        tensor.layout is torch.strided
        and not (tensor.is_quantized or tensor.is_nested or tensor.is_meta or is_fake(tensor))
        and not hasattr(tensor, "__tensor_flatten__")
        and _has_memory(tensor)
    )


def _is_sharded(tensor: Tensor) -> bool:
    """Whether only a part of a tensor is here; a DTensor can be met only where its module was imported already."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def _has_memory(tensor: Tensor) -> bool:
    """Whether there is something to read: not where FSDP has released it, nor in what only looks like a tensor."""
    try:
        return tensor.data_ptr() != 0 or tensor.numel() == 0
    except (RuntimeError, NotImplementedError):
        return False


def _strided(tensor: Tensor, keep: bool, found: bytes | None) -> Fingerprint:
    """A tensor whose memory is not simply its elements in order, or is not the host's."""
    size = tensor.nbytes
    kept = keep and size <= KEPT_BYTES
    if devices.holds(tensor):
        data = devices.read([(0, _packed(tensor))])[0] if found is None else found
        bits = data if kept else xxh3_128_digest(data)
    else:
        packed = _packed(tensor)
        address = packed.data_ptr()
        bits = _block(size).from_address(address).raw if kept else _digest(address, size)
    strides = None if tensor.is_contiguous() or not _is_dense(tensor) else tensor.stride()
    return _new(Fingerprint, (tensor.shape, tensor.dtype, tensor.device, strides, bits, kept, size, True, False))


def _packed(tensor: Tensor) -> Tensor:
    """A tensor as one block of memory, a copy where it is none."""
    plain = tensor.detach().resolve_conj().resolve_neg()
    return plain if _is_dense(tensor) else plain.contiguous()


def _is_dense(tensor: Tensor) -> bool:
    """Whether the elements fill a block of memory without gap or overlap, in whatever order."""
    if tensor.is_contiguous():
        return True
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size == 1:
            continue
        if stride != expected:
            return False
        expected *= size
    return True


def _components(tensor: Tensor) -> Iterator[tuple[str, Any]]:
    """What a tensor without a block of its own is made of, by name and in order."""
    if tensor.is_nested and tensor.layout is torch.jagged:
        # Not what it flattens to: that grows by the lengths that it finds out about itself when it is used.
        inside = cast(Any, tensor)
        yield from (("values", inside._values), ("offsets", inside._offsets), ("lengths", inside._lengths))
    elif hasattr(tensor, "__tensor_flatten__"):
        names, _ = tensor.__tensor_flatten__()
        yield from ((name, getattr(tensor, name)) for name in names)
    elif tensor.is_nested:
        yield "values", tensor.detach().values()
        yield "sizes", tensor._nested_tensor_size()
    elif tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        yield from (("crow", tensor.crow_indices()), ("col", tensor.col_indices()), ("values", tensor.values()))
    elif tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
        yield from (("ccol", tensor.ccol_indices()), ("row", tensor.row_indices()), ("values", tensor.values()))
    elif tensor.layout is torch.sparse_coo:
        yield from (("indices", tensor._indices()), ("values", tensor._values()))
    elif tensor.is_quantized:
        yield "values", tensor.int_repr()
        yield "scheme", tensor.qscheme()
        if tensor.qscheme() in (torch.per_tensor_affine, torch.per_tensor_symmetric):
            yield from (("scale", tensor.q_scale()), ("zero", tensor.q_zero_point()))
        else:
            yield "scale", tensor.q_per_channel_scales()
            yield "zero", tensor.q_per_channel_zero_points()
            yield "axis", tensor.q_per_channel_axis()
    elif tensor.is_mkldnn:
        yield "values", tensor.to_dense()
    elif not tensor.is_meta and not tensor.is_inference():
        yield "version", tensor._version  # nothing to read: what torch counts is all there is
